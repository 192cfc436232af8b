"""What is read at checkpoints, and what a verdict rests on."""
