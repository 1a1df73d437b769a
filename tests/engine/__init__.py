"""The table of workers and what moves in it."""
