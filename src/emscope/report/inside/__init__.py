"""What is printed about a model's inside."""
