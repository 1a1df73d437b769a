"""The fold: events in, columns out. Tables, figures and views read columns and never events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lab.engine.comm import Ledger
from lab.events import (
    Covered,
    Drifted,
    Ended,
    Evaluated,
    Event,
    Measured,
    Placed,
    Routed,
    Saturated,
    Sent,
    Started,
    Stepped,
    Truncated,
    Turned,
    Warned,
    WorkersChanged,
)
from lab.recipes.recipe import Recipe

if TYPE_CHECKING:
    from lab.costs.network import Bill, Network


_LISTS = {Drifted: "drifted", WorkersChanged: "changes", Turned: "turned", Warned: "warnings", Placed: "placed"}
_LISTS |= {Routed: "routed", Covered: "covered", Truncated: "truncated", Measured: "measured"}


@dataclass(repr=False)
class Columns:
    """One run as columns. ``add`` takes events as they come; reading is cheap at any time."""

    started: Started | None = None
    ended: Ended | None = None
    step: list[int] = field(default_factory=list)
    loss_W: list[list[float | None]] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    eval_step: list[int] = field(default_factory=list)
    eval_loss: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    drifted: list[Drifted] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    changes: list[WorkersChanged] = field(default_factory=list)
    turned: list[Turned] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)
    saturated: Saturated | None = None
    scores: list[dict[str, float]] = field(default_factory=list)
    covered: list[Covered] = field(default_factory=list)
    truncated: list[Truncated] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Columns:
        columns = cls()
        for event in events:
            columns.add(event)
        return columns

    def add(self, event: Event) -> None:
        match event:
            case Stepped():
                self.step.append(event.step)
                self.loss_W.append(event.loss_W)
                self.lr.append(event.lr)
                self.seconds.append(event.seconds)
            case Sent():
                self.ledger.records.append(event)
            case Evaluated():
                self.eval_step.append(event.step)
                self.eval_loss.append(event.loss)
                self.drift.append(event.drift)
                self.scores.append(event.scores)
            case Started():
                self.started = event
            case Ended():
                self.ended = event
            case _ if type(event) in _LISTS:
                getattr(self, _LISTS[type(event)]).append(event)
            case Saturated():
                self.saturated = event

    def __repr__(self) -> str:
        loss = f", validation loss {self.eval_loss[-1]:.4f}" if self.eval_loss else ""
        status = self.ended.status if self.ended else "not ended"
        return f"<Columns of {len(self.step):,} local steps, {status}{loss}, {self.ledger.total_bytes():,} bytes sent>"

    @property
    def recipe(self) -> Recipe:
        assert self.started is not None
        return Recipe.of(self.started.recipe)

    @property
    def num_workers(self) -> int:
        assert self.started is not None
        return int(self.started.recipe["num_workers"])

    @property
    def loss(self) -> np.ndarray:
        """Mean training loss over the workers that were up, nats per token, ``[steps]``."""
        rows = np.array(self.loss_W, dtype=float)  # None becomes NaN
        with np.errstate(all="ignore"):
            up = ~np.isnan(rows)
            return np.where(up, rows, 0).sum(1) / up.sum(1) if len(rows) else np.zeros(0)

    @property
    def payload_bytes(self) -> np.ndarray:
        """Payload of all workers since the start, after each step, ``[steps]``."""
        steps = max([*self.step[-1:], *(r.step for r in self.ledger.records[-1:]), 0])
        per_step = np.zeros(steps + 1)
        for r in self.ledger:
            per_step[r.step] += r.bytes_all
        return np.asarray(per_step.cumsum()[self.step] if self.step else np.zeros(0))

    @property
    def tokens_per_second(self) -> float:
        """Of this process, over all steps but the first (which warms up)."""
        assert self.started is not None
        timed = self.seconds[1:] or self.seconds
        return self.started.tokens_per_step * len(timed) / sum(timed) if timed else 0.0

    def price(self, network: Network, compute_seconds: float | None = None) -> Bill:
        """What this run would have taken on a network.

        ``compute_seconds`` of one local step at one worker; by default the `pace` of this run.
        """
        assert self.started is not None
        steps = self.step[-1] if self.step else 0
        if compute_seconds is None:
            compute_seconds = pace(self.seconds, self.started)
        slow: dict[str, Any] = self.started.recipe["scenario"]["slow"]
        return network.price(
            self.ledger,
            num_workers=self.num_workers,
            steps=steps,
            compute_seconds=compute_seconds,
            slow={int(w): float(f) for w, f in slow.items()},
        )


def pace(seconds: Sequence[float] | np.ndarray, started: Started) -> float:
    """Seconds of one local step at one worker, if every worker had a machine of its own.

    What steps took here (the median, without the first, which warms up) × threads / workers.
    """
    timed = seconds[1:] if len(seconds) > 1 else seconds
    threads, num_workers = int(started.environment.get("threads", 1)), int(started.recipe["num_workers"])
    return float(np.median(timed)) * threads / num_workers if len(timed) else 0.0
