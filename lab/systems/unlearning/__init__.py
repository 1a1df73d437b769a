"""Making a model forget: the vector of LUNAR, its rivals, what they are measured by, and attacks on them."""
