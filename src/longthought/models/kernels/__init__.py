"""The native core: C++ behind a plain C interface (``csrc/``). Optional: without it, PyTorch computes the same."""
