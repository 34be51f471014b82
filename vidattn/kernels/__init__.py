"""Triton kernels and their launchers. Nothing here imports the rest of the package."""
