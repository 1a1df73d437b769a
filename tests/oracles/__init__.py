"""Steps worked by hand, torch's own optimizers and the real DDP: what the numbers must be."""
