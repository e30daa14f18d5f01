"""The model: attention, router, experts, and the chunks of a layer."""
