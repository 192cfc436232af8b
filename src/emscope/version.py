"""The version, which everything may ask for without importing anything else."""

__version__ = "0.1.0"
