"""Prices of links, experts and comparisons."""
