"""What a checkpoint does: log-probabilities of fixed answers, and answers it samples."""
