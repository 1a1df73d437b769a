"""Pictures of runs: folds of columns. Each function answers one question, which is its title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lab.costs.network import Network, human
from lab.events import Sent
from lab.runs.columns import Columns
from widgets.pictures import Bars, Lines, Series
from widgets.timelines import Calendar, Marks

AXES = {
    "steps": "local steps of every worker",
    "bytes": "payload sent by all workers together, bytes",
    "seconds": "seconds on the link",
    "tokens": "tokens seen by all workers together",
}


def axis(run: Columns, x: str, network: Network | None = None, compute_seconds: float | None = None) -> np.ndarray:
    """Where each finished step of a run lies on an axis of `AXES`, ``[steps]``."""
    if x == "steps":
        return np.asarray(run.step, dtype=float)
    if x == "bytes":
        return run.payload_bytes
    if x == "tokens":
        assert run.started is not None
        of_one = run.started.tokens_per_step / run.num_workers
        return np.cumsum(
            [of_one * sum(x is not None for x in row) for row in run.loss_W], dtype=float
        )  # those that were up
    if x == "seconds" and network is not None:
        return run.price(network, compute_seconds).at_step[run.step]
    raise ValueError(f"axis {x!r}: use one of {', '.join(AXES)}; 'seconds' needs a network")


def losses(
    runs: Mapping[str, Columns],
    x: str = "steps",
    *,
    network: Network | None = None,
    compute_seconds: float | None = None,
    title: str | None = None,
) -> Lines:
    """Validation loss of the averaged model of each run (thick) and its workers' mean training loss (thin)."""
    titles = {
        "steps": "How well does each method learn per step?",
        "bytes": "How well does each method learn per byte sent?",
        "seconds": "How well does each method learn per second on this link?",
        "tokens": "How well does each method learn per token?",
    }
    series, floor = [], None
    for name, run in runs.items():
        along = axis(run, x, network, compute_seconds)
        at = dict(zip(run.step, along, strict=True))
        if x == "steps":
            window = max(1, len(run.step) // 60)
            series.append(Series(name, along[window - 1 :], _smooth(run.loss, window), faint=True))
        series.append(Series(name, [at[s] for s in run.eval_step], run.eval_loss))
        if run.started is not None and run.started.floor_nats is not None:
            floor = (run.started.floor_nats, "entropy rate of the corpus")
    faint_last = sorted(series, key=lambda s: s.faint)
    log = x == "bytes" or (x == "seconds" and len(runs) > 1)
    return Lines(title or titles[x], AXES[x], "loss, nats per token", faint_last, log_x=log, floor=floor)


def bytes_sent(runs: Mapping[str, Columns], title: str = "What did one worker hand to the network?") -> Bars:
    """Payload of the worker that sent most, one bar a run, with how many times less that is than the first run sent."""
    totals = [max(run.ledger.total_bytes(w) for w in range(run.num_workers)) for run in runs.values()]
    labels = [human(totals[0])] + [f"{human(b)}, {totals[0] / b:.1f}× fewer" if b else "nothing" for b in totals[1:]]
    return Bars(title, "payload of one worker, bytes", list(runs), totals, labels)


def calendar(ledger: Sequence[Sent], last: int, title: str = "When does which state travel?") -> Calendar:
    """A mark at every step in which a state was sent."""
    rows = _by_state(ledger)
    marks = [Marks(k, state, steps, colour=k) for k, (state, steps) in enumerate(rows.items())]
    return Calendar(title, "local step", list(rows), marks, last)


def calendars(
    ledgers: Mapping[str, Sequence[Sent]], last: int, title: str = "When does which state travel?"
) -> Calendar:
    """The same for several recipes, one row per recipe and state; a colour means a recipe, as in the other pictures."""
    marks: list[Marks] = []
    for k, (name, ledger) in enumerate(ledgers.items()):
        marks += [
            Marks(len(marks) + i, f"{name}: {state}", steps, colour=k)
            for i, (state, steps) in enumerate(_by_state(ledger).items())
        ]
    return Calendar(title, "local step", [m.name for m in marks], marks, last)


def _by_state(ledger: Sequence[Sent]) -> dict[str, list[int]]:
    """The steps in which each state was sent."""
    return {s: sorted({r.step for r in ledger if r.state == s}) for s in dict.fromkeys(r.state for r in ledger)}


def _smooth(y: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(y, np.ones(window) / window, mode="valid") if len(y) >= window else y
