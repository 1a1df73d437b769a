"""The audit of imitation: authors that nobody is, who imitates them, and what notices."""
