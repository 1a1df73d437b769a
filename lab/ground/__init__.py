"""What everybody may use, and what knows nobody: errors, options that check themselves, draws, files that are whole or not there."""
