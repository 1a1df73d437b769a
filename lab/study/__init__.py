"""What is done with runs: claims, notebooks, sweeps, lessons, toys."""
