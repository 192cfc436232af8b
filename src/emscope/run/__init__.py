"""Whole jobs: a study from its YAML file, a check of somebody's checkpoints. The only place where a stage meets the store."""
