"""longthought: turn a base language model into a reasoning model, and let it think at test time."""

__version__ = "0.1.0"
