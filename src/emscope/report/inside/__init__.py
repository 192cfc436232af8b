"""What is printed of a look inside."""
