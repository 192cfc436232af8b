"""Fine-tunes put onto a base and taken off again, and what they change."""
