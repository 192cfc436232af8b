"""Places inside a model: what flows there, read and changed."""
