"""Pages, figures and sentences of studies and checks."""
