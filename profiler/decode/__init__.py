"""Decoding: which stretches are decode steps, where their time goes, and how far it is from what memory allows."""
