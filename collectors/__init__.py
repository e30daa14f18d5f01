"""What runs in the target (the agent and its C library) and beside it (the sidecar)."""
