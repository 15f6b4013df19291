"""What a run tells people and scripts: console, metrics, status, rollouts."""
