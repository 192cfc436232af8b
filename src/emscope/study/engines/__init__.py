"""Who does the cells of a study: this process, several of this machine, a Ray cluster, or a SLURM site."""
