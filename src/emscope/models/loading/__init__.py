"""From a model's folder to a model in memory: references, checkpoints, tokenizers and chat formats."""
