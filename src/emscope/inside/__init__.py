"""What changed inside a model: directions, probes, subspaces, differences of weights."""
