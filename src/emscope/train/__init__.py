"""Fine-tuning: Hugging Face's Trainer with explicit batches, a checkpoint plan and readings at each step."""
