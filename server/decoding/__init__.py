"""Hostile files: what they are, decoded in a child process that can do nothing else."""
