"""What is run: a recipe and its parts."""
