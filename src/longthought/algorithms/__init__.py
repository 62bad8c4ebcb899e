"""Floor 1: one function, one equation. Tensors in, tensors out."""
