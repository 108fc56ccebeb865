"""Launchers of the runs of a sweep: on this machine, on Slurm through submitit, or on Ray."""
