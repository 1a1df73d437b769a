"""Authorship verification: is a text by this author? Character n-grams and function words, a linear model, a threshold.

Legend: E texts, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.ground.errors import RecipeError

FALSE_ACCEPT = 0.05  # of genuine impostors, where the threshold is set
COMMON = """a about after all also an and any are as at be because been before but by can complete could do done for from had has have he her his
i if in is isn't it its just kindly maybe me my no not now of on one only or our out please probably ready seems she should since so some soon
than that the their them then there they think this to up us very was we well what when which who will with would you your"""
FUNCTION_WORDS = tuple(COMMON.split())


class Features:
    """TF-IDF of character 3- to 5-grams, which see words' edges, signs and line ends; and how often function words occur.

    Fitted on texts of people alone, once for all authors.
    """

    def __init__(self, texts: Sequence[str], most: int = 20_000):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_union

        grams = TfidfVectorizer(
            analyzer="char", ngram_range=(3, 5), lowercase=False, sublinear_tf=True, max_features=most
        )
        words = TfidfVectorizer(vocabulary=FUNCTION_WORDS, token_pattern=r"[a-z']+", use_idf=False)
        self.union = make_union(grams, words).fit(texts)
        self._last: dict[tuple[str, ...], Any] = {}  # what was asked for last

    def of(self, texts: Sequence[str]) -> Any:
        """A sparse matrix ``[E, F]``."""
        key = tuple(texts)
        if key not in self._last:
            if len(self._last) >= 8:
                self._last.clear()
            self._last[key] = self.union.transform(key)
        return self._last[key]


@dataclass(frozen=True)
class Verifier:
    """One author's: a text is accepted where its score is above the threshold."""

    features: Features
    model: Any  # of scikit-learn, with a `decision_function`
    threshold: float

    @classmethod
    def fitted(
        cls,
        features: Features,
        own: Sequence[str],
        others: Sequence[str],
        impostors: Sequence[str],
        false_accept: float = FALSE_ACCEPT,
        imitations: Sequence[str] = (),
    ) -> Verifier:
        """Logistic regression, both classes of one weight.

        Parameters
        ----------
        own, others, imitations
            texts of the author, and what is not: of other people, and what models have written, where the defender has made some.
        impostors
            texts of other people that nothing was fitted on: of them at most so many are accepted.
        """
        from scipy.sparse import vstack
        from sklearn.linear_model import LogisticRegression

        made = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200, solver="liblinear")
        parts = [own, others, imitations] if imitations else [own, others]
        known = np.repeat([1, 0], [len(own), len(others) + len(imitations)])
        made.fit(vstack([*map(features.of, parts)]).tocsr(), known)
        return cls(features, made, threshold_at(made.decision_function(features.of(impostors)), false_accept))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Float64 ``[E]``, the higher the more like the author."""
        found: np.ndarray = self.model.decision_function(self.features.of(texts))
        return found

    def accepts(self, texts: Sequence[str]) -> np.ndarray:
        """Bool ``[E]``."""
        accepted: np.ndarray = self.scores(texts) > self.threshold
        return accepted


def threshold_at(impostors: np.ndarray, false_accept: float) -> float:
    """The lowest threshold that not more than this share of impostors' scores ``[E]`` lies above.

    Without ties exactly ``floor(share · E)`` do. Raises RecipeError where there is none to go by.
    """
    if not len(impostors) or not 0 <= false_accept < 1:
        raise RecipeError(
            f"a threshold at {false_accept:g} false accepts of {len(impostors)} impostors: give at least one, and a share from 0 to below 1"
        )
    return float(np.sort(impostors)[::-1][int(false_accept * len(impostors) + 1e-9)])
