"""BM25 (Okapi): how much the words of a text are those of some documents. Static: it knows no model.

Legend: A documents, n(t) of which have the term t, tf how often one has it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

Term = Hashable
K1, B = 1.5, 0.75


class BM25:
    """The mean over documents v of BM25(x, v), for texts x as sets of terms: each term counts once.

    ``idf(t) = ln(1 + (A − n + 0.5) / (n + 0.5))``. What a term adds is the same for every x, so it is worked out once.
    """

    def __init__(self, documents: Sequence[Sequence[Term]]):
        num, mean = len(documents), sum(map(len, documents)) / len(documents)
        having = Counter(term for document in documents for term in {*document})
        self.worth = dict.fromkeys(having, 0.0)
        for document in documents:
            norm = K1 * (1 - B + B * len(document) / mean) if mean else K1
            for term, tf in Counter(document).items():
                idf = math.log(1 + (num - having[term] + 0.5) / (having[term] + 0.5))
                self.worth[term] += idf * tf * (K1 + 1) / (tf + norm) / num

    def score(self, terms: Iterable[Term]) -> float:
        """Of one text; the order of its terms does not matter, nor how often they are there."""
        return math.fsum(self.worth.get(term, 0.0) for term in {*terms})


def words(text: str) -> list[Term]:
    """Lower-cased, cut at white space."""
    return [*text.lower().split()]


def pairs(ids: Sequence[int]) -> list[Term]:
    """Tokens next to each other: for what has no words."""
    return [*zip(ids[:-1], ids[1:], strict=True)]
