"""Ranks, links, and the exchange of tokens between them."""
