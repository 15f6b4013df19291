"""Check whether this machine can run rlcli, and whether a run's nodes can connect."""
