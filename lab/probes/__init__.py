"""Probes: they observe a run while it goes on, yield events, and never change it."""
