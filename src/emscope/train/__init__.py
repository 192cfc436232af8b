"""Fine-tuning: Hugging Face's Trainer with explicit batches, a checkpoint plan and a reading at each step."""
