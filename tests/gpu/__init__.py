"""Kernels on a real GPU against plain references: `make gpu-check`. Not yet run on a GPU."""
