"""Runs: built, driven, steered, written down, taken up again, read."""
