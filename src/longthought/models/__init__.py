"""Floor 1: the decoder. Mathematics only: no training, no sampling, no files but weights."""
