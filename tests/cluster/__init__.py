"""Real parts of clusters on one machine: hosts as network namespaces, Slurm, ssh, an image. See README.md, Tests."""
