"""What the scripts in `training/` join together: run files, loops, checkpoints, logs, pictures."""
