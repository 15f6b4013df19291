"""Test a reward on answers of known quality before training with it."""
