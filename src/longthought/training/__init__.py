"""Floor 2: backward passes. Knows no algorithm."""
