"""What is printed about answers, judges and rates."""
