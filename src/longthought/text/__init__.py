"""Floor 1: tokenizers, chat formats, and the <think> parser."""
