"""Floor 2: run folders, settings, checkpoints, traces, progress."""
