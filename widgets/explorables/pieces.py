"""What an explorable is made of: a prediction, places of a number that is dragged, an exercise that knows what was confused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lab.study.teaching import CLOSE, NOT_YET, OPEN, RIGHT, Checked
from widgets.boards import Board

THOUSANDS, COMMA = re.compile(r"^\d{1,3}(,\d{3})+(\.\d+)?$"), re.compile(r"^\d+,\d+$")
FRACTION = re.compile(r"^(\d+\.?\d*)[/∕](\d+\.?\d*)$", re.ASCII)
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Prediction:
    """What a reader is asked before anything is shown: one of ``options``. ``because`` says what is so, in one sentence with numbers."""

    question: str
    options: Sequence[str]
    truth: str
    because: str

    def __post_init__(self) -> None:
        if self.truth not in self.options:
            raise ValueError(f"truth = {self.truth!r} is none of the options: use {', '.join(self.options)}")

    def verdict(self, chosen: str | None) -> str:
        """What is said to who has chosen this, or has skipped the question."""
        if chosen is None:
            return self.because
        return f"{'Right' if chosen == self.truth else 'Not so'}: you said “{chosen}”. {self.because}"


@dataclass(frozen=True)
class Place:
    """One place of the dragged number: ``value`` stands in the sentence for it, ``numbers`` for the sentence's other fields.

    ``moments`` are what the picture shows, by the name of each moment; all places have the same moments.
    """

    value: str
    numbers: Mapping[str, str]
    moments: Mapping[str, Board]


@dataclass(frozen=True)
class Slip:
    """An answer that comes of confusing something, and what to say about it."""

    value: float
    hint: str


@dataclass(frozen=True)
class Exercise:
    """A question with one number for an answer, and what is said to whoever has another one.

    ``right`` and the values of ``slips`` are worked out from the same numbers, so that an exercise can be changed without going stale.
    """

    question: str
    unit: str
    right: float
    slips: Sequence[Slip]
    solution: str  # how one gets there
    hint: str  # where no slip gives the answer

    def __post_init__(self) -> None:
        if not 0 < self.right < math.inf:
            raise ValueError(f"right = {self.right} is no number greater than 0, which is all that can be asked for")

    @cached_property
    def told_apart(self) -> list[Slip]:
        """The slips that do not happen to give the right answer."""
        return [slip for slip in self.slips if not _close(slip.value, self.right)]

    def check(self, answer: str) -> Checked:
        """What an answer, as it was typed, is worth. ``explorable.js`` says the same."""
        if not answer.strip():
            return Checked(OPEN, ("type a number",))
        number = number_in(answer, self.unit)
        if not 0 < number < math.inf:
            return Checked(NOT_YET, (f"{answer.strip()} is no number greater than 0: write one, for example 12.5",))
        if _close(number, self.right):
            return Checked(RIGHT, (self.solution,))
        hints = dict.fromkeys(slip.hint for slip in self.told_apart if _close(number, slip.value))
        if hints:
            return Checked(NOT_YET, tuple(hints))
        return Checked(NOT_YET, (f"too {'much' if number > self.right else 'little'}: {self.hint}",))


def number_in(answer: str, unit: str = "") -> float:
    """A number as people write it (``1,472,256``, ``3.9e6``, ``12,5``, ``28/40``, with its unit or without); not a number where there is none."""
    words = answer.strip().replace(" ", "")
    if unit and words.lower().endswith(unit.lower()):
        words = words[: -len(unit)]
    if found := FRACTION.match(words):
        over, under = map(float, found.groups())
        return over / under if under else math.nan
    words = (
        words.replace(",", "") if THOUSANDS.match(words) else words.replace(",", ".") if COMMA.match(words) else words
    )
    return float(words) if NUMBER.match(words) else math.nan


def loss_difference(loss: float, other: float) -> float:
    """Of two losses as they are printed, with three digits."""
    return round(loss, 3) - round(other, 3)


def loss_against(loss: float, other: float) -> str:
    """The same in words."""
    extra = loss_difference(loss, other)
    return f"{abs(extra):.3f} {'more' if extra > 0 else 'less'} loss" if extra else "the same loss"


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * abs(b)
