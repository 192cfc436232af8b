"""A study as a table of cells: what each is, whether it is done, and how it gets done."""
