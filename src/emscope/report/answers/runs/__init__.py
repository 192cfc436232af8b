"""Results about tables of runs, in a terminal and as figures."""
