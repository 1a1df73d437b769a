"""Frozen encoders of answers: hashed character n-grams, which need nothing, and sentence encoders by name for those who are online."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.ground.errors import RecipeError
from lab.models.sentences import sentence_model

HASHED = "ngrams"
SENTENCES = "sentences:"


@dataclass(frozen=True)
class NGrams:
    """Counts of hashed character n-grams (1 to 3 letters) of a text, signed and of norm 1, by scikit-learn: the same on every machine.

    Equal texts are equal vectors, so that of short answers a contribution is little more than a share of votes.
    """

    width: int = 256

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `lab.systems.agents.agent.Encoder`."""
        return torch.from_numpy(_vectoriser(self.width).transform(texts).toarray().astype(np.float32))


@cache
def _vectoriser(width: int) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=width, lowercase=False)


@dataclass(frozen=True)
class Sentences:
    """A model of ``sentence-transformers`` by name, such as the paper's ``all-MiniLM-L6-v2``, or a folder with one."""

    name: str

    @property
    def width(self) -> int:
        """Raises RecipeError where the package or the model is not there."""
        return int(self._model.get_sentence_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `lab.systems.agents.agent.Encoder`. Raises RecipeError where the package or the model is not there."""
        vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return torch.from_numpy(np.asarray(vectors, dtype=np.float32))

    @property
    def _model(self) -> Any:
        return sentence_model(self.name, f"{SENTENCES}{self.name}", f"encoder={HASHED}")


def encoder(name: str) -> NGrams | Sentences:
    """``ngrams``, or ``sentences:NAME``. Raises RecipeError for anything else."""
    if name == HASHED:
        return NGrams()
    if name.startswith(SENTENCES) and len(name) > len(SENTENCES):
        return Sentences(name.removeprefix(SENTENCES))
    raise RecipeError(
        f"unknown encoder {name!r}: use {HASHED}, or {SENTENCES}NAME with a model of sentence-transformers"
    )
