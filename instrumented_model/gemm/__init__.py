"""Matrix products in FP8: the linear layer and the backends that compute it."""
