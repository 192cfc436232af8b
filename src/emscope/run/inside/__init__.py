"""Jobs that look inside models: directions, what they do, what activations predict, what a fine-tune changed."""
