"""Pictures of what runs and recipes have sent. Each function answers one question, which is its title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lab.costs.network import human
from lab.events import Sent
from lab.methods.registry import round_steps
from lab.runs.columns import Columns
from lab.study.compare import looks
from widgets.pictures import Bars, Lines, Series
from widgets.timelines import Calendar, Marks


def bytes_sent(runs: Mapping[str, Columns], title: str = "What did one worker hand to the network?") -> Bars:
    """Payload of the worker that sent most, one bar a run, with how many times less that is than the first run sent."""
    totals = [max(run.ledger.total_bytes(w) for w in range(run.num_workers)) for run in runs.values()]
    labels = [human(totals[0])] + [f"{human(b)}, {totals[0] / b:.1f}× fewer" if b else "nothing" for b in totals[1:]]
    return Bars(title, "payload of one worker, bytes", list(runs), totals, labels)


def over_rounds(runs: Mapping[tuple[str, int], Columns], score: str, title: str) -> Lines:
    """A score of the agreed model after every round, by setting: the mean over seeds, and (thin) each. Keys are setting and seed."""
    lines: list[Series] = []
    for k, name in enumerate(dict.fromkeys(name for name, _ in runs)):
        found = [run for (other, _), run in runs.items() if other == name]
        rounds = [step / round_steps(found[0].recipe.method) for step in found[0].eval_step]
        lines += [Series(name, rounds, looks(run, score), faint=True, colour=k) for run in found]
        lines.append(Series(name, rounds, np.mean([looks(run, score) for run in found], axis=0), colour=k))
    return Lines(title, "round", score, lines)


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
