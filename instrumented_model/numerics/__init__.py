"""Number formats, quantisation, and the arithmetic of the tensor core."""
