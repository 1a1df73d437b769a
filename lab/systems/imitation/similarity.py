"""How like are texts? Overlap with what the author wrote on the same subject, distributions of n-grams, and what was merely copied.

Legend: E texts, R references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def bleu(written: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of words over all texts together, 0 to 1, smoothed (method 1 of Chen & Cherry 2014), by ``nltk``."""
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    pairs = [[r.split()] for r in references], [w.split() for w in written]
    return float(corpus_bleu(*pairs, smoothing_function=SmoothingFunction().method1))


def chrf(written: Sequence[str], references: Sequence[str]) -> float:
    """chrF of characters (up to 6-grams, β = 3), the mean over texts, 0 to 1, by ``nltk``; an empty text has 0."""
    from nltk.translate.chrf_score import sentence_chrf

    scores = [sentence_chrf(r, w) if w.strip() else 0.0 for r, w in zip(references, written, strict=True)]
    return float(np.mean(scores))


def divergence(written: Sequence[str], genuine: Sequence[str], n: int = 3) -> float:
    """Jensen-Shannon divergence of the character n-grams of two sets of texts, in bits: 0, all alike, to 1, none in common.

    In the place of MAUVE, which compares clusters of a large model's features.
    """
    from scipy.spatial.distance import jensenshannon

    a, b = (Counter(t[i : i + n] for t in texts for i in range(len(t) - n + 1)) for texts in (written, genuine))
    grams = sorted(a.keys() | b.keys())
    if not a or not b:
        return 1.0 if grams else 0.0
    p, q = (np.array([c[g] for g in grams], float) for c in (a, b))
    return float(jensenshannon(p, q, base=2) ** 2)


class Copied:
    """What share of a text is one stretch that stands in one of R others, word for word: the longest common substring."""

    def __init__(self, known: Sequence[str]):
        self.known = [k for k in known if k]
        self._of: dict[int, set[str]] = {}  # all stretches of a length

    def _stretches(self, length: int) -> set[str]:
        if length not in self._of:
            self._of[length] = {k[i : i + length] for k in self.known for i in range(len(k) - length + 1)}
        return self._of[length]

    def longest(self, text: str) -> int:
        """Characters of the longest stretch: what has one of a length has one of each shorter length, so it is looked for by halves."""
        low, high = 0, min(len(text), max(map(len, self.known), default=0))
        while low < high:
            middle = (low + high + 1) // 2
            there = self._stretches(middle)
            if any(text[i : i + middle] in there for i in range(len(text) - middle + 1)):
                low = middle
            else:
                high = middle - 1
        return low

    def shares(self, texts: Sequence[str]) -> np.ndarray:
        """Of each text, float64 ``[E]``; 0 of an empty one."""
        return np.array([self.longest(t) / len(t) if t else 0.0 for t in texts])
