"""Other trainers: their names, files and scripts, taken as ours."""
