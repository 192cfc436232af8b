"""Inside the model: activations, directions, their effects, and what they predict."""
