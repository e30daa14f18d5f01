"""The FP8 MoE stack against references of its own."""
