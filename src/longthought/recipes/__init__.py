"""Floor 5: the arrows of the pipeline. A recipe is a function with a frozen settings dataclass."""
