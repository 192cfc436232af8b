"""Places inside a model: reading and changing what flows there."""
