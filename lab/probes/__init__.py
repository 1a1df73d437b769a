"""What looks at a run while it goes on, and never touches it."""
