"""Execution units that communication and compute hold (`held`), over time (`over_time`), and together (`budget`)."""
