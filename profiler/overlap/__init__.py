"""Time as sets of intervals, the sweep over a device's kernels, and its parts by phase, layer, operator and more."""
