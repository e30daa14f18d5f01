"""Prefill, decode, and what serves requests with them."""
