"""What is read at checkpoints, and the evidence for a verdict."""
