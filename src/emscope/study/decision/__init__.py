"""From evidence to what is said: states, onset, stop, verdict."""
