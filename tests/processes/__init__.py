"""Runs over several processes, and what others on a machine can reach of them."""
