"""Weights of samples, formula by formula, against what is worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lab.data.bm25 import BM25, pairs, words
from lab.methods.weights import (
    by_sample,
    centroid,
    directions,
    gate,
    hard,
    lin_upper,
    pooled,
    positions,
    real_tokens,
    reduced,
    shown_as,
    softmax,
)

ANY = (0.0, 10.0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_positions_sum_to_one_rise_and_leave_out_padding() -> None:
    alpha = positions(torch.tensor([4, 2, 1]), 4)
    torch.testing.assert_close(alpha[0], torch.tensor([1.0, 2, 3, 4]) / 10)
    torch.testing.assert_close(alpha[1], torch.tensor([1 / 3, 2 / 3, 0, 0]))
    torch.testing.assert_close(alpha[2], torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(alpha.sum(1), torch.ones(3))


def test_what_is_padding_has_no_part_in_a_direction() -> None:
    hidden, counts = drawn(3, 5, 4), torch.tensor([5, 3, 2])
    other = hidden.clone()
    other[1, 3:], other[2, 2:] = 1e3, -1e3
    assert torch.equal(pooled(hidden, counts), pooled(other, counts))
    assert not torch.equal(pooled(hidden, counts), pooled(other, torch.full((3,), 5)))


def test_real_tokens_end_with_the_last_target_that_counts() -> None:
    """Prompts, whose tokens are no targets, are real; rows without any target are real as a whole."""
    targets = torch.tensor([[1, 2, 3, 4], [-100, -100, 5, -100], [-100, 2, -100, -100], [-100] * 4])
    assert real_tokens(targets).tolist() == [4, 3, 2, 4]


def test_the_product_with_the_centroid_is_the_mean_cosine() -> None:
    anchors, x = drawn(7, 5, seed=1), drawn(3, 5, seed=2)
    mean = torch.stack([torch.stack([torch.cosine_similarity(a, v, dim=0) for v in anchors]).mean() for a in x])
    c = centroid(directions(anchors))
    torch.testing.assert_close(directions(x) @ c, mean, rtol=1e-12, atol=1e-12)
    assert float(c.norm()) < 1, "it is not normalised again"


def test_the_gate_is_the_sigmoid_clipped_and_each_sample_is_for_itself() -> None:
    s = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    by_hand = [1 / (1 + math.exp(-x / 0.5)) for x in s.tolist()]
    torch.testing.assert_close(gate(s, 0.5, ANY), torch.tensor(by_hand, dtype=torch.float64))
    clipped = [min(0.9, max(0.2, x)) for x in by_hand]
    torch.testing.assert_close(gate(s, 0.5, (0.2, 0.9)), torch.tensor(clipped, dtype=torch.float64))
    assert torch.equal(gate(s, 0.5, ANY)[2:], gate(s[2:], 0.5, ANY))
    torch.testing.assert_close(gate(s, 1e15, ANY), torch.full_like(s, 0.5), rtol=1e-14, atol=0)


def test_rivals_hang_on_the_rest_of_the_batch() -> None:
    s = torch.tensor([0.3, 0.1, 0.4, 0.2], dtype=torch.float64)
    assert hard(s, 0.5).tolist() == [1, 0, 1, 0]
    assert hard(s[[0, 1, 1, 1]], 0.25).tolist() == [1, 0, 0, 0]
    assert hard(torch.zeros(4), 0.25).tolist() == [1, 0, 0, 0], "of equal ones the first"
    e = [math.exp(x / 0.1) for x in s.tolist()]
    torch.testing.assert_close(softmax(s, 0.1), torch.tensor([4 * x / sum(e) for x in e], dtype=torch.float64))
    # losses 1, 2, 3, 5 lie at 0, 1/4, 1/2, 1 of the way; capped at 1/2 and brought to a mean of 1
    raw = [0, 0.25, 0.5, 0.5]
    want = torch.tensor([x / (sum(raw) / 4) for x in raw], dtype=torch.float64)
    torch.testing.assert_close(lin_upper(torch.tensor([1.0, 2, 3, 5], dtype=torch.float64), 0.5), want)
    assert lin_upper(torch.full((3,), 2.0), 0.5).tolist() == [1, 1, 1]


def test_losses_of_samples_are_means_over_what_counts() -> None:
    logits, targets = drawn(3, 4, 5), torch.tensor([[1, 2, 3, 4], [-100, 0, -100, 2], [-100] * 4])
    log_p = logits.log_softmax(-1)
    first = -sum(log_p[0, t, targets[0, t]] for t in range(4)) / 4
    second = -(log_p[1, 1, 0] + log_p[1, 3, 2]) / 2
    torch.testing.assert_close(by_sample(logits, targets), torch.stack([first, second, torch.zeros_like(first)]))


@pytest.mark.parametrize(("how", "factor"), [("sum", 1.0), ("mean", 1 / 3), ("normalised", 1 / 1.75)])
def test_what_is_trained_on(how: str, factor: float) -> None:
    """Σ w ∇ℓ, over nothing, over B, or over Σ w; the value that is told is the plain loss; no gradient goes through w."""
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([1.0, 0.25, 0.5], dtype=torch.float64)
    losses = x**2
    loss = shown_as(reduced(w, losses, how), losses.mean())  # type: ignore[arg-type]
    assert float(loss.detach()) == pytest.approx(7.0)
    loss.backward()
    torch.testing.assert_close(x.grad, factor * w * 2 * x.detach())


def test_bm25_by_hand() -> None:
    documents = ["the cat sat", "the dog", "a cat and a cat"]
    bm25, texts = BM25([words(d) for d in documents]), [d.split() for d in documents]
    mean = sum(map(len, texts)) / 3

    def one(term: str, document: list[str]) -> float:
        n, tf = sum(term in d for d in texts), document.count(term)
        idf = math.log(1 + (3 - n + 0.5) / (n + 0.5))
        return idf * tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * len(document) / mean))

    for query in ("The Cat", "dog dog dog", "nothing of it", "a the"):
        terms = {*query.lower().split()}
        want = sum(sum(one(t, d) for t in terms) for d in texts) / 3
        assert bm25.score(words(query)) == pytest.approx(want, abs=1e-12)
    assert bm25.score(words("dog dog")) == bm25.score(words("dog")), "each term counts once"


def test_pairs_of_tokens() -> None:
    assert pairs([3, 1, 4, 1]) == [(3, 1), (1, 4), (4, 1)]
