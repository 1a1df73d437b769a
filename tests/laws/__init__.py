"""What every method keeps, and every run with it, without opting in."""
