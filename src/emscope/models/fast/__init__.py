"""The same numbers in less time and memory, each way with a check that it is right."""
