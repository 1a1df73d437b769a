"""Energy as a second price of a run: joules of sending, of computing, and of waiting.

There are no figures here: what a byte costs depends on the links (a cable, a mobile network, a satellite) and on what of them is counted, and what
a step costs on the machine. Where none is given nothing is said. A byte is one on a wire, as a network's bill has them: with
``framing="ethernet"`` headers count too. How joules follow from these three figures is a plain product, and ours.

Legend: T local steps, W workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from lab.costs.calendar import Calendar
from lab.costs.network import FRAMING, Network, Turn, pace_TW
from lab.ground.config import checked, config, number_in
from lab.ground.errors import RecipeError, one_of, shown

NotNegative = Annotated[float, Field(ge=0)]


@config
class Energy:
    """What is known of a run's energy.

    joules_per_byte
        of a byte on a worker's link.
    levels
        of a byte between the nodes of a tree, 1, 2, … levels above workers; the last is for all above it as well. Without any, as of workers.
    joules_per_step
        of one local step at one worker. Or:
    watts
        that a worker's machine draws while it computes: times the seconds of its steps.
    idle_watts
        that it draws while it waits, for others or for links. A worker that is down waits, too.
    """

    joules_per_byte: NotNegative | None = None
    levels: tuple[NotNegative, ...] = ()
    joules_per_step: NotNegative | None = None
    watts: NotNegative | None = None
    idle_watts: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.joules_per_step is not None and self.watts is not None:
            raise RecipeError("energy: joules_per_step and watts both say what computing draws: give one of them")
        if self.levels and self.joules_per_byte is None:
            raise RecipeError(
                "energy: levels without joules_per_byte: say what a byte on a worker's link costs, 0 if nothing"
            )
        if all(x is None for x in (self.joules_per_byte, self.joules_per_step, self.watts, self.idle_watts)):
            raise RecipeError(f"energy says nothing: give one of {', '.join(FIGURES)}")

    def of_byte(self, level: int) -> float:
        """Joules of a byte on links of so many levels above workers."""
        if level and self.levels:
            return self.levels[min(level, len(self.levels)) - 1]
        return self.joules_per_byte or 0.0


FIGURES = ("joules_per_byte", "joules_per_step", "watts", "idle_watts")


def energy(spelled: str) -> Energy:
    """``joules_per_byte=6e-8,watts=300``; ``joules_per_byte=1e-8:6e-8`` with links between the nodes of a tree behind colons.

    Raises
    ------
    RecipeError
        for what is not written so.
    """
    fields: dict[str, object] = {}
    for part in spelled.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in FIGURES:
            raise RecipeError(one_of("figure of energy", key, FIGURES) + "; write it as joules_per_byte=6e-8,watts=300")
        numbers = [number_in(word.strip()) for word in value.split(":")]
        if None in numbers or (len(numbers) > 1 and key != "joules_per_byte"):
            raise RecipeError(f"energy {key}={shown(value)}: write a number, 0 or more, as in {key}=300")
        fields[key] = numbers[0]
        if len(numbers) > 1:
            fields["levels"] = numbers[1:]
    return checked(Energy, fields, "energy")


@dataclass(frozen=True)
class Joules:
    """Of all workers together. None: nothing was said of it, and it is not in the sum."""

    sending: float | None
    computing: float | None
    waiting: float | None
    at_step: np.ndarray  # the sum so far, at the end of each step, ``[T]``

    @property
    def total(self) -> float:
        return sum(x for x in (self.sending, self.computing, self.waiting) if x is not None)

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON values."""
        return {"sending": self.sending, "computing": self.computing, "waiting": self.waiting, "total": self.total}


def joules(
    given: Energy,
    network: Network,
    sent: Calendar,
    up_TW: np.ndarray,
    seconds_at_step: np.ndarray,
    compute_seconds: float = 0.0,
    slow: dict[int, float] | None = None,
    turns: Sequence[Turn] = (),
) -> Joules:
    """What a ledger and its steps take.

    Parameters
    ----------
    up_TW
        who computes in each local step, bool ``[T, W]``.
    seconds_at_step
        when each step is over on this network, ``[T]`` (`lab.costs.network.Bill.at_step` from 1 on).
    compute_seconds, slow, turns
        of one local step at one worker, as for `lab.costs.network.Network.price`.
    """
    factor = FRAMING[network.framing]
    of_kinds = [
        sum(network.wire_bytes(r.op, r.bytes_each * factor, len(r.workers)) * given.of_byte(r.level) for r in kind)
        for kind in sent.kinds
    ]
    sending_T = np.array(of_kinds, dtype=float)[sent.which_T].cumsum()
    steps_T, seconds_T = np.zeros(len(up_TW)), np.zeros(len(up_TW))
    paces = pace_TW(turns, *up_TW.shape) if turns else None
    for w in range(up_TW.shape[1]):
        steps_T += up_TW[:, w]
        one = compute_seconds * (slow or {}).get(w, 1.0)
        seconds_T += up_TW[:, w] * (one if paces is None else one * paces[:, w])
    steps_T, seconds_T = steps_T.cumsum(), seconds_T.cumsum()
    parts_T: list[np.ndarray | None] = [None if given.joules_per_byte is None else sending_T, None, None]
    if given.joules_per_step is not None:
        parts_T[1] = given.joules_per_step * steps_T
    elif given.watts is not None:
        parts_T[1] = given.watts * seconds_T
    if given.idle_watts is not None:
        parts_T[2] = given.idle_watts * np.maximum(up_TW.shape[1] * seconds_at_step - seconds_T, 0.0)
    known = [x for x in parts_T if x is not None]
    sending, computing, waiting = (None if x is None else float(x[-1]) if len(x) else 0.0 for x in parts_T)
    return Joules(sending, computing, waiting, np.sum(known, axis=0))


UNITS = ("J", "kJ", "MJ", "GJ", "TJ")


def human_joules(num: float | None) -> str:
    """``12.8 MJ`` (3.6 MJ are a kilowatt-hour); – where nothing is known."""
    if num is None:
        return "–"
    for unit in UNITS[:-1]:
        if abs(num) < 999.5:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:.3g} {UNITS[-1]}"
