"""What runs the cells of a study: this process, several processes on this machine, a Ray cluster, or a SLURM site."""
