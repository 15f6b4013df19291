"""Commands beside training, without their terminal output."""
