"""Compares two runs: what differs, by how much, and whether that is more than their steps scatter."""
