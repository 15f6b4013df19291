"""Output of a run for people and scripts: console, metrics, status, rollouts."""
