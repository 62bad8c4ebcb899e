"""Floor 2: play a task with a sampler."""
