"""From evidence to conclusions: states, onset, stop, verdict."""
