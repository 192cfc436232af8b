"""Commands on fine-tunes."""
