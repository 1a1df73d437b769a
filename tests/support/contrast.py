"""How well colours can be told from each other: WCAG 2.1."""

from __future__ import annotations

import numpy as np

WORDS, MARKS = 4.5, 3.0  # contrast at least: of text, of large text and of what carries meaning


def linear(colour: str) -> np.ndarray:
    """Red, green, blue as light, 0 to 1."""
    digits = colour.lstrip("#")
    digits = "".join(2 * c for c in digits) if len(digits) == 3 else digits
    c = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG's: 1 of equal colours, 21 of black and white."""
    dark, light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)
