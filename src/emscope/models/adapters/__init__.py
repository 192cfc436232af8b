"""Fine-tunes applied to a base and removed again, and what they change."""
