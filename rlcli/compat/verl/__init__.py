"""verl: setting names and values, and scripts that start it."""
