"""Floor 2: forward passes. Schedules rows, keeps caches, samples."""
