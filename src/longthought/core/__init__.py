"""Floor 0: the nouns and the protocols."""
