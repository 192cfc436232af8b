"""How much memory a model takes, counted before it is loaded, and small copies of its architecture."""
