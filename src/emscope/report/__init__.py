"""Results drawn: a self-contained page and tables for the terminal. Nothing is computed here."""
