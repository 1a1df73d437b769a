"""Looking at a run while it goes on, without touching it."""
