"""Rivals of LUNAR: their formulas by hand in float64, and that they descend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lab.data.tasks.task import IGNORED
from lab.models.gpt import GPT
from lab.systems.unlearning.places import Places
from lab.systems.unlearning.rivals import LOSSES, Given, Pairs, Rival, log_likelihood, train_


class Table(nn.Module):
    """Logits that depend on the last token alone."""

    def __init__(self, rows: list[list[float]]):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows, dtype=torch.float64).log())

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows[ids]


# Probabilities of the next of three tokens, now and before.
NOW = Table([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
BEFORE = Table([[0.25, 0.5, 0.25], [0.3, 0.4, 0.3], [0.2, 0.4, 0.4]])


def rows(*pairs: tuple[list[int], list[int]]) -> tuple[Tensor, Tensor]:
    return Pairs([torch.tensor(p) for p, _ in pairs], [torch.tensor(a) for _, a in pairs]).batch(range(len(pairs)))


# prompt 0, answer 1 1; the refusal of it 2; to retain: prompt 1, answer 2 2 and prompt 2 1, answer 0
GIVEN = Given(rows(([0], [1, 1])), rows(([0], [2])), rows(([1], [2, 2]), ([2, 1], [0])))
LOG = math.log
CE_FORGET = -(LOG(0.25) + LOG(0.6)) / 2
CE_REFUSED = -LOG(0.25)
CE_RETAIN = -(LOG(0.2) + LOG(0.8) + LOG(0.2)) / 3
GAIN_FORGET = LOG(0.25 * 0.6) - LOG(0.5 * 0.4)
GAIN_REFUSED = LOG(0.25) - LOG(0.25)


def kl(now: list[float], before: list[float]) -> float:
    return sum(q * LOG(q / p) for p, q in zip(now, before, strict=True))


AT_1, AT_2 = kl([0.2, 0.6, 0.2], [0.3, 0.4, 0.3]), kl([0.1, 0.1, 0.8], [0.2, 0.4, 0.4])
BETA = 0.5
BY_HAND = {
    "gradient_ascent": -CE_FORGET,
    "gradient_difference": -CE_FORGET + CE_RETAIN,
    "kl": -CE_FORGET + (AT_1 + AT_2 + AT_1) / 3,
    "npo": 2 / BETA * LOG(1 + math.exp(BETA * GAIN_FORGET)),
    "dpo": 1 / BETA * LOG(1 + math.exp(-BETA * (GAIN_REFUSED - GAIN_FORGET))),
    "refusal": CE_REFUSED + CE_RETAIN,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_its_formula_says(name: str) -> None:
    assert LOSSES[name](NOW, BEFORE, GIVEN, BETA).item() == pytest.approx(BY_HAND[name], rel=1e-12)


def test_rows_of_pairs() -> None:
    ids, targets = GIVEN.retain
    assert ids.tolist() == [[1, 2], [2, 1]]
    assert targets.tolist() == [[2, 2], [IGNORED, 0]]
    assert log_likelihood(NOW(ids), targets).tolist() == pytest.approx([LOG(0.2 * 0.8), LOG(0.2)])


def test_negative_preference_is_gradient_ascent_where_beta_vanishes() -> None:
    """Up to a constant: the gradient of −2/β·log σ(−β·gain) goes to that of the gain (Zhang et al. 2024, proposition 1)."""
    found = []
    for name, beta in (("npo", 1e-7), ("gradient_ascent", 1.0)):
        NOW.rows.grad = None
        LOSSES[name](NOW, BEFORE, GIVEN, beta).backward()  # type: ignore[no-untyped-call]
        found.append(NOW.rows.grad)
    torch.testing.assert_close(
        found[0], 2 * found[1], rtol=1e-6, atol=1e-9
    )  # an answer of two tokens: a mean and a sum


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_training_descends_its_loss_and_adapters_are_merged(name: str, rank: int) -> None:
    model = GPT(dim=8, num_layers=2, num_heads=2).build(9, 8, seed=1).double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pairs = Pairs([torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([4, 0]), torch.tensor([5, 6, 0])])
    refused = Pairs(pairs.prompts, [torch.tensor([7, 0])] * 2)
    retain = Pairs([torch.tensor([2, 2])], [torch.tensor([8, 0])])
    first = GPT(dim=8, num_layers=2, num_heads=2).build(9, 8, seed=1).double()
    given = Given(pairs.batch([0, 1]), refused.batch([0, 1]), retain.batch([0]))
    start = LOSSES[name](model, first, given, 0.1).item()
    train_(Places.of(model), pairs, refused, retain, Rival(loss=name, rank=rank, epochs=6, lr=3e-3))  # type: ignore[arg-type]
    assert LOSSES[name](model, first, given, 0.1).item() < start - 1e-3
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert (moved == before.keys()) is (rank == 0)
    assert {n for n, _ in model.named_parameters()} == before.keys()
    if rank:
        added = model.get_parameter("blocks.1.mlp.2.weight") - before["blocks.1.mlp.2.weight"]
        assert torch.linalg.matrix_rank(added, tol=1e-9) == rank
