"""From a name to a loaded model: references, fetching, GGUF conversion, chat formats, checkpoints of a fine-tune."""
