"""What is kept? Run directories, logs, checkpoints."""
