"""Measures of unlearning, each against a case worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.systems.unlearning.metrics import (
    deviation_score,
    embedder,
    extraction_strength,
    ranks,
    reciprocal_rank,
    refusal_quality,
    rouge1_recall,
    top_hits,
)
from tests.support.texts import fails


class Successor(nn.Module):
    """After token t comes t + 1, then t + 2, and so on, of seven; 9.0 for the first, 8.0 for the next."""

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(7)
        return 9.0 - ((places - ids[..., None] - 1) % 7).double()


def tokens(*ids: int) -> Tensor:
    return torch.tensor(ids)


def test_rouge_recall_is_the_share_of_the_true_words_that_are_written() -> None:
    assert rouge1_recall(["the red fox", "Nothing", "a a"], ["a red fox ran", "no thing", "a a b c"]) == [0.5, 0.0, 0.5]


def test_deviation_score() -> None:
    assert deviation_score(0.0, 1.0) == 0
    assert deviation_score(0.3, 0.6) == pytest.approx(50)
    # two rows of the paper's table for TOFU, as others quote them
    assert round(deviation_score(0.109, 0.898), 1) == 14.9
    assert round(deviation_score(0.106, 0.909), 1) == 14.0


def test_refusal_quality_is_the_cosine_with_the_closest() -> None:
    at = {"x": [1.0, 0], "y": [0, 1.0], "z": [0.6, 0.8], "w": [-1.0, 0]}

    def embed(texts: object) -> np.ndarray:
        return np.array([at[t] for t in texts])  # type: ignore[attr-defined]

    assert refusal_quality(["z", "w"], ["x", "y"], embed) == pytest.approx((0.8 + 0) / 2)


def test_hashed_letters() -> None:
    """``ab`` is within spaces `` ab ``: two of three letters, one of four, so each counts 1 / √3."""
    (row,) = embedder()(["ab"])
    assert sorted(row[row > 0]) == pytest.approx([1 / math.sqrt(3)] * 3)
    same, near, far = embedder()(["i dont know about boda", "i dont know about kika", "zulo vanem"])
    assert same @ same == pytest.approx(1)
    assert 1 > same @ near > 0.5 > same @ far == pytest.approx(0)


def test_ranks_follow_the_model_s_own_answer() -> None:
    """After 1 it says 2, 3, 4. Of the truth 2, 5, 4 the second is third where 3 is expected (3, 4, 5); 4 comes after its own 3."""
    (found,) = ranks(Successor(), [tokens(0, 1)], [tokens(2, 5, 4)])
    assert found.tolist() == [1, 3, 1]
    both = ranks(Successor(), [tokens(0, 1), tokens(1)], [tokens(2, 5, 4), tokens(1)])
    assert [x.tolist() for x in both] == [[1, 3, 1], [7]]
    assert reciprocal_rank(both) == pytest.approx(((1 + 1 / 3 + 1) / 3 + 1 / 7) / 2)
    assert top_hits(both, 2) == pytest.approx((2 / 3 + 0) / 2)
    assert top_hits(both) == 1


def test_extraction_strength_is_one_less_the_prefix_that_is_needed() -> None:
    def strength(*answer: int) -> float:
        return extraction_strength(Successor(), tokens(0, 1), tokens(*answer))

    assert strength(2, 3, 4, 5) == 1  # no prefix is needed
    assert strength(3, 4, 5, 6) == 0.75  # its first word
    assert strength(2, 3, 5, 6) == 0.25  # after 2, 3, 5
    assert strength(2, 3, 4, 0) == 0  # all of it


def test_an_embedding_that_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with fails(
        "embeddings by 'all-MiniLM-L6-v2' need sentence-transformers: pip install sentence-transformers, or use hashed"
    ):
        embedder("all-MiniLM-L6-v2")
