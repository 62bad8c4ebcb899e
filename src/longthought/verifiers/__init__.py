"""Floor 1: rules that grade. They never raise and never run what they read."""
