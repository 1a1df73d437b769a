"""The table (named tensors down, workers across) and what moves in it. Knows no recipe, no text, no Jupyter."""
