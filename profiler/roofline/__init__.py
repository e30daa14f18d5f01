"""What the hardware allows and what was reached: peaks, operations and bytes of kernels, and their bounds."""
