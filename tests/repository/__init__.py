"""What holds of the repository itself: documents, packages, rings."""
