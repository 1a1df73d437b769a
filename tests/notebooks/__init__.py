"""Notebooks executed, swept and taught with."""
