"""Speed and memory against the ceiling. Each file prints ratios within one run, and says what it compares."""
