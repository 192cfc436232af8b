"""What a study trains, and on what."""
