"""From a study file or a folder of checkpoints to a verdict."""
