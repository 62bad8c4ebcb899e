"""Floor 3: evaluate a sampler on a task, count behaviours, report."""
