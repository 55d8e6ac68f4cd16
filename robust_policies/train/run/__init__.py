"""What every training shares: the run folder, the loop, checkpoints, logs, progress, and what ends it."""
