"""A reward tried on answers whose worth is known, before a run learns from it."""
