"""Tables with a row a finished run: what correlates with what over runs, and how large a study has to be."""
