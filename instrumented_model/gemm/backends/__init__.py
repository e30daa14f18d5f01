"""Ways to compute products in FP8, one a module."""
