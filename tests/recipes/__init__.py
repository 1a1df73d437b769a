"""What a recipe may say, and what is said of it before a run."""
