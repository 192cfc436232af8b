"""Inside the model: activations, directions, what they do, and what they say."""
