"""What is sent, and how long does the budget last? Payload and wire bytes, and the time that links need for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lab.costs.network import NETWORKS, Network, duration, human
from lab.events import Event, Started
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns, Curves, Price
from lab.runs.growing import Growing
from widgets.answers import percent
from widgets.forecasts import forecast
from widgets.pictures import Bars, Lines, Picture, Series
from widgets.view import Control, View

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "s": 1, "min": 60, "h": 3600, "d": 86400}
MAX_BARS = 8  # workers; of more, those that sent most
STEP = "local step"
SENDS = {"sync_every": "sync periods were turned", "down": "workers were killed or came back"}  # knobs


@dataclass(frozen=True)
class Budget:
    """So many bytes of payload (of all workers together), or so many seconds on the links."""

    words: str
    amount: float
    in_bytes: bool

    @classmethod
    def of(cls, words: str) -> Budget | None:
        """``20 MB`` or ``3 h``; nothing is no budget. Raises ValueError with what is allowed."""
        if not words.strip():
            return None
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(\w+)\s*", words)
        unit = next((u for u in UNITS if found and u.lower() == found[2].lower()), None)
        if found is None or unit is None or not float(found[1]):
            raise ValueError(
                f"budget {words!r}: write bytes or hours on the links, as in 20 MB or 1.5 h ({', '.join(UNITS)})"
            )
        return cls(f"{found[1]} {unit}", float(found[1]) * UNITS[unit], unit.endswith("B"))

    def verdict(self, run: _Spent, plan: _Spent | None) -> tuple[float, str]:
        """The budget with the step at which it runs out."""
        spent, counted = _crossing(run.steps, run.of(self), self.amount), self.words + " of payload" * self.in_bytes
        if spent is not None:
            return self.amount, f"{counted}: spent at step {spent}"
        if plan is not None:
            will_be = _crossing(plan.steps, plan.of(self), self.amount)
            words = "enough to the end" if will_be is None else f"will be spent at step {will_be}"
            return self.amount, f"{counted}: {words}"
        share = run.of(self)[-1] / self.amount if len(run.of(self)) else 0.0
        return self.amount, f"{counted}: {share:.0%} spent"

    def answer(self, run: _Spent, plan: _Spent | None, end: int, but: str) -> str:
        """The verdict as a sentence; ``end`` is the last step of the recipe, ``but`` what the forecast knows nothing of."""
        now = int(run.steps[-1]) if len(run.steps) else 0
        spent = self._says(float(run.of(self)[-1])) if now else ""
        gone = _crossing(run.steps, run.of(self), self.amount)
        if gone is not None:
            return f"{self.words} lasted until step {gone:,} of {end:,}; by step {now:,}, {spent} are spent."
        if plan is not None:
            out = _crossing(plan.steps, plan.of(self), self.amount)
            lasts = f"to the end (step {end:,})" if out is None else f"until step {out:,} of {end:,}"
            so_far = f"; by step {now:,}, {spent} are spent" if now else ""
            return f"{self.words} last {lasts}, by the forecast{but}{so_far}."
        return f"{percent(run.of(self)[-1] / self.amount) if now else '0 %'} of {self.words} is spent by step {now:,} of {end:,}."

    def _says(self, amount: float) -> str:
        return human(amount) if self.in_bytes else duration(amount)


@dataclass(frozen=True)
class _Spent:
    """What a run, or its forecast, has spent after each step: bytes of payload and on the wire, seconds of sending."""

    steps: Growing
    payload: Growing
    price: Price

    @classmethod
    def by(cls, run: Columns, network: Network) -> _Spent:
        return cls(run.curves.steps, run.curves.bytes, run.priced(network, compute_seconds=0.0))

    def of(self, budget: Budget) -> Growing:
        return self.payload if budget.in_bytes else self.price.seconds


@dataclass(eq=False, repr=False)
class CommunicationBudget(View):
    """Payload and wire bytes by state and worker, and the time that a network needs, beside what the dry run foresees.

    recipe
        of the run to come; its forecast is there before the run starts (and stays). Without it there is no forecast.
    network
        one of ``networks``, at first. Seconds are those of sending alone, as if computing took none.
    budget
        of all workers together: bytes of payload (``20 MB``) or time on the links (``1.5 h``).
    """

    title = "What does it send?"
    reads = Curves.READS

    recipe: Recipe | None = None
    network: str = "100Mbit"
    budget: str = ""
    networks: Mapping[str, Network] = field(default_factory=lambda: NETWORKS)
    run: Columns = field(default_factory=Columns, init=False)
    plan: Columns | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.network not in self.networks:
            raise ValueError(f"network = {self.network!r} is not allowed: use {', '.join(self.networks)}")
        Budget.of(self.budget)
        if self.recipe is not None:
            self.plan = Columns.of(forecast(self.recipe).events())
            self.plan.close()

    def fold(self, event: Event) -> None:
        if isinstance(event, Started):
            self.run = Columns()
        self.run.add(event)

    def controls(self) -> list[Control]:
        return [
            Control("network", "network", self.network, list(self.networks)),
            Control("budget", "budget", self.budget, hint="20 MB or 1.5 h"),
        ]

    def answer(self) -> str:
        network = self.networks[self.network]
        run, plan = _Spent.by(self.run, network), None if self.plan is None else _Spent.by(self.plan, network)
        budget = Budget.of(self.budget)
        begun = bool(len(run.steps))
        known = run if begun else plan
        if known is None or not len(known.payload):
            return "Nothing has been sent yet." if budget is None else f"Nothing has been sent yet of {budget.words}."
        columns = self.run if self.run.started is not None or self.plan is None else self.plan
        end = int(columns.recipe.steps)
        at = int(known.steps[-1])
        if budget is not None:
            return budget.answer(run, plan, end, self._but())
        sent, seconds = human(float(known.payload[-1])), duration(float(known.price.seconds[-1]))
        who = f"{'By' if begun else 'Forecast: by'} step {at:,} of {end:,} all workers together {'have sent' if begun else 'send'} {sent}"
        return (
            f"{who} ({human(float(known.price.wire_bytes[-1]))} on the links); at {self.network} that takes {seconds}."
        )

    def _but(self) -> str:
        """What was turned by hand since the forecast was made and changes what is sent: it does not know of that."""
        turned = [(e.step, e.knob) for e in self.run.turned if e.knob in SENDS]
        if not turned:
            return ""
        step, knob = turned[0]
        return f" from before {SENDS[knob]} by hand in step {step:,}"

    def pictures(self) -> list[Picture]:
        budget = Budget.of(self.budget)
        network = self.networks[self.network]
        run, plan = _Spent.by(self.run, network), None if self.plan is None else _Spent.by(self.plan, network)
        sent, time = list[Series](), list[Series]()
        if plan is not None:
            sent.append(Series("payload, planned", plan.steps, plan.payload, faint=True, colour=0))
            sent.append(Series("wire, planned", plan.steps, plan.price.wire_bytes, faint=True, colour=1))
            time.append(Series("planned", plan.steps, plan.price.seconds, faint=True, colour=0))
        sent.append(Series("payload", run.steps, run.payload, colour=0))
        sent.append(Series("wire", run.steps, run.price.wire_bytes, colour=1))
        time.append(Series(f"{self.network} (thin: planned)" if plan else self.network, run.steps, run.price.seconds))
        verdict = None if budget is None else budget.verdict(run, plan)
        of_bytes, of_time = (verdict, None) if budget is not None and budget.in_bytes else (None, verdict)
        seconds = "seconds of sending"
        return [
            _lines("How many bytes were sent?", "bytes, all workers", sent, of_bytes, "{name}: {y} at step {x}"),
            _lines("How long do the links need?", seconds, time, of_time, "{name}: {y} s at step {x}"),
            *self._bars(run.price),
        ]

    def _bars(self, price: Price) -> list[Picture]:
        """Payload and wire bytes, of every state and of every worker."""
        meter, curves = price.meter, self.run.curves
        states = [(s, b, meter.wire_bytes_by_state.get(s, 0.0)) for s, b in curves.bytes_by_state.items()]
        workers = [(f"w{w}", b, x) for w, (b, x) in enumerate(zip(curves.bytes_W, meter.wire_bytes_W, strict=True))]
        by_worker = "Who sent it?"
        if len(workers) > MAX_BARS:
            workers = sorted(workers, key=lambda worker: -worker[1])[:MAX_BARS]
            by_worker = f"Who sent it? The {MAX_BARS} that sent most"
        return [_pairs("Which state was it?", states), _pairs(by_worker, workers)]


def _crossing(steps: Growing, amounts: Growing, budget: float) -> int | None:
    """The first step after which more than the budget is spent."""
    k = int(np.searchsorted(amounts.values, budget, side="right"))
    return int(steps[k]) if k < min(len(amounts), len(steps)) else None


def _lines(title: str, y: str, series: list[Series], floor: tuple[float, str] | None, hover: str) -> Lines:
    """A budget far above all lines is told in words: as a line it would flatten the others."""
    highest = max((float(s.y[-1]) for s in series if len(s.y)), default=0.0)
    if floor is not None and floor[0] > 3 * highest > 0:
        title, floor = f"{title} Budget {floor[1]}", None
    return Lines(title, STEP, y, series, floor=floor, hover=hover)


def _pairs(title: str, rows: list[tuple[str, int, float]]) -> Bars:
    names = [f"{name} {what}" for name, _, _ in rows for what in ("payload", "wire")]
    values = [v for _, payload, wire in rows for v in (float(payload), wire)]
    return Bars(title, "bytes", names, values, [human(v) for v in values], colours=[0, 1] * len(rows))
