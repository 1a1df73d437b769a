"""Federations of adapters of different rank: their factors and products, the server's rounds, and what is seen of them."""
