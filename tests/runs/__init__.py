"""A run from its start to its folder: training, knobs, measurements, the command line."""
