"""What is printed of answers, judges and rates."""
