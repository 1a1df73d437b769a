"""More exercises whose checks hint: what a codec sends, a mean over those who hold, and what paired runs decide.

Right is what the lab's own codec, averaging and verdict say; `lab.study.teaching` has the first three, and says how a check speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from lab.engine.codecs import Int8, codec
from lab.ground.seeds import generator
from lab.study.claims import Verdict
from lab.study.effects import Effect
from lab.study.teaching import CLOSE, OPEN, RIGHT, Checked, exercise, not_yet

# --- what does a codec send? -----------------------------------------------------------------------------------------


@exercise("bytes of a message")
def check_coded_bytes(answer: object, spec: str, numbers: int) -> Checked:
    """Is this how many bytes a worker hands over for ``numbers`` float32 numbers under the codec ``spec`` (as in recipes)?"""
    if answer is None or answer is ...:
        return Checked(OPEN, ("put the number of bytes in place of the dots",))
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer) or answer <= 0:
        return not_yet(f"{answer!r} is no number of bytes: give one number greater than 0")
    coder = codec(spec)
    x = torch.randn(numbers, generator=generator(0, "coded bytes"))
    right = sum(part.nbytes for part in coder.encode(x))
    if answer == right:
        return Checked(RIGHT, ("the tensors that the codec makes have as many",))
    # to the byte, since slips lie near each other
    slips = [hint for value, hint in _coded_slips(spec, right, numbers) if abs(answer - value) < 1]
    if slips:
        return not_yet(*dict.fromkeys(slips))
    if abs(answer - right) <= CLOSE * right:
        return not_yet("nearly: a message has a whole number of bytes, and they can be counted to the last one")
    return not_yet(
        f"too {'much' if answer > right else 'little'}. What does a message hold besides the values, and how wide is each of it"
    )


def _coded_slips(spec: str, right: int, n: int) -> Iterator[tuple[float, str]]:
    """What typical slips give, and what to say about them."""
    yield 4 * n, "that is all of it in float32: what does the codec leave out"
    yield 8 * right, "that is in bits: 8 bits are a byte"
    yield right / 8, "divided by 8 once too often: a byte has 8 bits, and these are bytes already"
    name, *options = spec.split(":")
    if name == "topk":
        fraction = float(options[0])
        k = max(1, round(fraction * n))
        yield k, "so many numbers travel: how many bytes has each"
        yield 4 * k, "that is the values alone: how does whoever receives them know where they belong"
        yield 12 * k, "an index has 4 bytes here, enough for four billion places"
        yield 4 * k + n / 8, "that is the values and a bit for every place: this codec sends an index for each value"
        yield 4 * n * (1 - fraction), "that is what is left out: asked is what travels"
        yield right / 100, "is the fraction a percentage already"
    elif name == "int8":
        yield n, "that is the bytes alone: each is a multiple of a scale, which travels too"
        yield n + 4, "one scale would not do: there is one for every chunk"
        yield n + n / Int8().chunk, "a scale is a float32: it has 4 bytes"
        yield n + -(-n // Int8().chunk), "a scale is a float32: it has 4 bytes"
        yield (
            n + 4 * n / Int8().chunk,
            "the last chunk, though it is shorter, has a scale as well: chunks come in whole numbers",
        )
        yield n + 4 * (n // Int8().chunk), "the last chunk, though it is shorter, has a scale as well"
        yield 2 * n, "8 bits are one byte, not two"
        yield 5 * n, "the scale is one for a whole chunk, not one for each number"


# --- a mean over those who hold --------------------------------------------------------------------------------------

Held = Sequence[Tensor]  # of each client its first r_k rows, [r_k, d]
RANKS = (4, 4, 2, 1)


@exercise("mean over holders")
def check_holder_mean(rule: Callable[[Held], Any], ranks: Sequence[int] = RANKS) -> Checked:
    """Is ``rule(rows) -> [max r, d]`` the mean of every row over those clients that have it? ``rows``: of client k the first r_k."""
    rows = [torch.randn(r, 3, generator=generator(k, "held rows"), dtype=torch.float64) for k, r in enumerate(ranks)]
    try:
        got = rule([x.clone() for x in rows])
    except Exception as error:
        return not_yet(f"the rule raised {type(error).__name__}: {error}")
    if got is None or got is ...:
        return Checked(OPEN, ("write the rule in place of the dots",))
    if not isinstance(got, Tensor):
        return not_yet("give back one tensor: the agreed rows")
    right = _over_holders(rows)
    if got.shape != right.shape:
        least = got.shape == rows[-1].shape or got.shape == (min(ranks), 3)
        hint = "only rows that all clients have are left: what the others have more is lost" if least else ""
        return not_yet(hint or f"it comes back as {list(got.shape)} instead of {list(right.shape)}")
    if _equal(got, right):
        return Checked(RIGHT, (f"{len(right)} rows, each the mean of those who hold it",))
    for wrong, hint in _holder_slips(rows):
        if _equal(got, wrong):
            return not_yet(hint)
    off = [i for i in range(len(right)) if not _equal(got[i], right[i])]
    return not_yet(
        f"row {off[0]} is the first that is not right: {_holders(ranks, off[0])} of {len(ranks)} clients hold it"
    )


def _over_holders(rows: Held) -> Tensor:
    return torch.stack([torch.stack([x[i] for x in rows if len(x) > i]).mean(0) for i in range(max(map(len, rows)))])


def _holders(ranks: Sequence[int], row: int) -> int:
    return sum(r > row for r in ranks)


def _holder_slips(rows: Held) -> Iterator[tuple[Tensor, str]]:
    """Rules that are nearly right, and what to say about them."""
    most = max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(x, (0, 0, 0, most - len(x))) for x in rows])
    yield (
        padded.mean(0),
        "that is zero-padding: who does not have a row counts as having zeros there, and pulls it towards 0",
    )
    yield padded.sum(0), "that is the sum: a row should not grow with the number of those who hold it"
    largest = max(rows, key=len)
    yield largest, "that is the client of the highest rank alone: whom should the first rows listen to as well"
    weights = torch.tensor([float(len(x)) for x in rows], dtype=padded.dtype)
    yield (
        (weights[:, None, None] * padded).sum(0) / weights.sum(),
        "weighted by rank, and still divided by all clients: who holds the row",
    )
    held = torch.tensor([[float(len(x) > i) for i in range(most)] for x in rows], dtype=padded.dtype)
    heavy = (weights[:, None, None] * padded).sum(0) / (weights[:, None] * held).sum(0)[:, None]
    yield heavy, "who has a higher rank counts more here: the mean asked for counts every holder alike"


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b, rtol=1e-5, atol=1e-7)


# --- what do paired runs decide? -------------------------------------------------------------------------------------


@exercise("verdicts of paired runs")
def check_verdicts(answers: object, effects: Mapping[str, Effect]) -> Checked:
    """Are these the verdicts of the effects, by name: ``holds``, ``contradicted`` or ``inconclusive``? The first wrong one is hinted at."""
    if answers is None or answers is ...:
        return Checked(OPEN, (f"give a verdict to each of {', '.join(effects)}",))
    if not isinstance(answers, Mapping):
        return not_yet(f"{answers!r} is one value: give each its own, as in {{{next(iter(effects))!r}: …}}")
    left = [name for name in effects if answers.get(name) in (None, ...)]
    if left:
        return Checked(OPEN, (f"give a verdict to {', '.join(left)} as well",))
    for name, effect in effects.items():
        if answers[name] not in get_args(Verdict):
            return not_yet(f"{name}: {answers[name]!r} is no verdict: say holds, contradicted or inconclusive")
        if answers[name] != effect.verdict:
            return not_yet(f"{name}: {_misread(str(answers[name]), effect)}")
    return Checked(RIGHT, ("the lab's own intervals say the same",))


def _misread(answer: str, effect: Effect) -> str:
    """What makes a verdict look like this one."""
    if answer in ("exact", "not tested"):
        return "something was measured, over seeds: it holds, is contradicted, or is inconclusive"
    interval = effect.line_interval
    if interval is None:
        return "one pair has no interval, so it decides nothing"
    if answer == "inconclusive":
        zero = replace(effect, margin=0.0) if effect.scale != "times" else effect
        if zero.verdict == "inconclusive":
            return "the interval has 0 inside, but what was asked is not whether there is any difference: where is the margin"
        return "the margin lies outside the interval: so something is decided"
    if effect.verdict == "inconclusive":
        left, right = effect.claimed
        mean = "holds" if left < effect.middle < right else "contradicted"
        if answer == mean:
            return "that is what the mean says alone: how far does the interval reach, and is the margin inside"
        return "the margin lies inside the interval, so nothing is decided to either side"
    if replace(effect, better="higher" if effect.better == "lower" else "lower").verdict == answer:
        return f"turned round: here {effect.better} is better"
    return "the whole interval lies on one side of the margin: is that the side of the claim"
