"""What tests share and what they start; nothing here is a test, and no test module imports another."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
