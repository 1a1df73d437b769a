"""Exercises of the later lessons: right answers pass, each slip gets its own hint, nonsense a clear line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lab.engine.codecs import codec
from lab.study.effects import Effect
from lab.study.exercises import (
    RANKS,
    _coded_slips,
    _holder_slips,
    _over_holders,
    check_coded_bytes,
    check_holder_mean,
    check_verdicts,
)
from lab.study.teaching import NOT_YET, OPEN, Checked

N = 100_000


def says(checked: Checked, words: str, *secrets: str) -> None:
    """Not right, with these words in it, and without the solution."""
    assert checked.verdict == NOT_YET
    assert words in repr(checked), checked
    assert not [secret for secret in secrets if secret in repr(checked).replace(",", "")]


# --- bytes of a message ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "right"), [("int8", N + 4 * 391), ("topk:0.01", 8 * 1000), ("e3m0", N // 2 + 4 * 391)]
)
def test_the_right_number_of_bytes(spec: str, right: int) -> None:
    """By hand: a byte and a scale for every 256; a value and an index for one in a hundred; half a byte and a scale."""
    assert check_coded_bytes(right, spec, N).right
    nearly = check_coded_bytes(right + 40, spec, N)
    assert not nearly.right
    assert nearly.hints[0].startswith("nearly")


@pytest.mark.parametrize(
    ("spec", "answer", "words"),
    [
        ("int8", N, "a multiple of a scale"),
        ("int8", N + 4, "one for every chunk"),
        ("int8", N + 4 * N / 256, "chunks come in whole numbers"),
        ("int8", N + 4 * 390, "though it is shorter"),
        ("int8", N + 391, "it has 4 bytes"),
        ("int8", 5 * N, "not one for each number"),
        ("int8", 2 * N, "one byte, not two"),
        ("int8", 4 * N, "all of it in float32"),
        ("int8", 8 * (N + 1564), "in bits"),
        ("int8", (N + 1564) / 8, "once too often"),
        ("int8", 1.3 * N, "too much"),
        ("topk:0.01", 1000, "how many bytes has each"),
        ("topk:0.01", 4000, "where they belong"),
        ("topk:0.01", 12_000, "four billion places"),
        ("topk:0.01", 4000 + N / 8, "a bit for every place"),
        ("topk:0.01", 0.99 * 4 * N, "what is left out"),
        ("topk:0.01", 80, "a percentage already"),
        ("topk:0.01", 3000, "too little"),
        ("int8", "much", "is no number of bytes"),
        ("int8", -1, "is no number of bytes"),
        ("int8", math.inf, "is no number of bytes"),
    ],
)
def test_slips_in_messages(spec: str, answer: Any, words: str) -> None:
    says(check_coded_bytes(answer, spec, N), words, "101564", "8000")


@pytest.mark.parametrize("spec", ["int8", "topk:0.01"])
def test_no_slip_passes_for_right(spec: str) -> None:
    right = sum(part.nbytes for part in codec(spec).encode(torch.linspace(-1, 1, N)))
    for value, hint in _coded_slips(spec, right, N):
        assert hint in check_coded_bytes(value, spec, N).hints


# --- a mean over those who hold --------------------------------------------------------------------------------------


def test_the_mean_over_holders() -> None:
    assert check_holder_mean(_over_holders).right
    by_hand = _over_holders([torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0]])])
    assert by_hand.tolist() == [[2.0], [4.0]]


def test_slips_in_the_mean() -> None:
    """Each wrong rule gets its own hint: no other slip, and not the solution, gives the same."""
    rows = [torch.linspace(r, 1, 3 * r, dtype=torch.float64).view(r, 3) for r in RANKS]
    hints = [hint for _, hint in _holder_slips(rows)]
    assert len({*hints}) == len(hints) == 5
    for k, hint in enumerate(hints):
        assert check_holder_mean(lambda rows, k=k: [wrong for wrong, _ in _holder_slips(rows)][k]).hints == (hint,)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda rows: torch.stack([x[0] for x in rows]).mean(0, keepdim=True), "what the others have more is lost"),
        (lambda rows: rows[0].T, "instead of"),
        (lambda rows: rows, "one tensor"),
        (lambda rows: rows.nothing, "raised AttributeError"),
        (lambda rows: torch.stack(rows).mean(0), "raised RuntimeError"),
        (lambda rows: _over_holders(rows) + torch.tensor([[0.0], [0.0], [1.0], [0.0]]), "row 2 is the first"),
    ],
)
def test_rules_that_are_none(rule: Any, words: str) -> None:
    says(check_holder_mean(rule), words)


# --- verdicts --------------------------------------------------------------------------------------------------------

CONTROL = [2.50, 2.53, 2.48, 2.51, 2.52]
EFFECTS = {
    "A": Effect([2.51, 2.54, 2.49, 2.51, 2.53], CONTROL, 0.02, "no worse", "lower"),
    "B": Effect([2.53, 2.51, 2.52, 2.50, 2.56], CONTROL, 0.02, "no worse", "lower"),
    "C": Effect([2.55, 2.57, 2.54, 2.56, 2.56], CONTROL, 0.02, "no worse", "lower"),
    "D": Effect([2.52, 2.53, 2.47, 2.52, 2.51], CONTROL, 0.02, "no worse", "lower"),  # 0 inside, the margin outside
}
SO = {"A": "holds", "B": "inconclusive", "C": "contradicted", "D": "holds"}


def test_right_verdicts() -> None:
    assert {name: effect.verdict for name, effect in EFFECTS.items()} == SO
    assert check_verdicts(SO, EFFECTS).right


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("A", "inconclusive", "the margin lies outside the interval"),
        ("A", "contradicted", "is that the side of the claim"),
        ("B", "holds", "the mean says alone"),
        ("B", "contradicted", "the margin lies inside"),
        ("C", "holds", "turned round"),
        ("D", "inconclusive", "not whether there is any difference"),
        ("A", "exact", "something was measured"),
        ("A", "true", "is no verdict"),
    ],
)
def test_misread_verdicts(name: str, answer: str, words: str) -> None:
    says(check_verdicts(SO | {name: answer}, EFFECTS), f"{name}: ")
    says(check_verdicts(SO | {name: answer}, EFFECTS), words)


def test_one_pair_decides_nothing() -> None:
    single = {"S": Effect([2.0], [1.0], 0.1, "no worse", "lower")}
    assert check_verdicts({"S": "inconclusive"}, single).right
    says(check_verdicts({"S": "contradicted"}, single), "one pair has no interval")


@pytest.mark.parametrize("answer", [None, ...])
def test_not_answered_yet(answer: Any) -> None:
    told = (
        check_coded_bytes(answer, "int8", N),
        check_holder_mean(lambda rows: answer),
        check_verdicts(answer, EFFECTS),
        check_verdicts(SO | {"B": answer}, EFFECTS),
    )
    assert [one.verdict for one in told] == [OPEN] * 4
    says(check_verdicts("holds", EFFECTS), "is one value")
