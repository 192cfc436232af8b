"""Arrays in, estimates out. Knows nothing of models or files."""
