"""Does it learn? Losses of every worker, their mean, and the model that they agree on, against what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lab.costs.network import NETWORKS, Network
from lab.events import Event, Started
from lab.runs.columns import Columns, Curves
from lab.runs.growing import MANY, Growing
from widgets.answers import last
from widgets.pictures import Band, Lines, Picture, Series, bands
from widgets.view import Control, Lane, View

AXES = {
    "steps": "local steps of every worker",
    "tokens": "tokens seen by all workers together",
    "bytes": "payload sent by all workers together, bytes",
}
TITLES = {
    "steps": "How well does each method learn per step?",
    "tokens": "How well does each method learn per token?",
    "bytes": "How well does each method learn per byte sent?",
    "seconds": "How well does each method learn per second on this link?",
}
SECONDS = "seconds on "  # and the name of a network


@dataclass(eq=False, repr=False)
class Losses(View):
    """Training loss of every worker (thin; of many: bands) and their mean, validation loss of the agreed model (thick), in nats per token.

    x
        ``steps``, ``tokens``, ``bytes``, or ``seconds on`` one of the ``networks``, priced from the ledger.
    networks
        links by name.

    Several runs share the axes: ``losses.lane("DiLoCo")`` is the way in for one of them while they go on, and
    `Losses.compare` shows them afterwards.
    """

    title = "Does it learn?"
    reads = Curves.READS

    x: str = "steps"
    networks: Mapping[str, Network] = field(default_factory=lambda: NETWORKS)
    runs: dict[str, Columns] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.x not in self._choices():
            raise ValueError(f"x = {self.x!r} is not allowed: use {', '.join(self._choices())}")

    @classmethod
    def compare(cls, runs: Mapping[str, Iterable[Event]], x: str = "steps") -> Losses:
        """Runs that are over, by name."""
        view = cls(x)
        for name, events in runs.items():
            view.replay(events, name)
        return view

    def lane(self, run: str) -> Lane:
        self.runs.setdefault(run, Columns())  # the legend has them in this order
        return View.lane(self, run)

    def leave(self, run: str) -> None:
        """Take a run out of the picture."""
        with self._lock:
            self.runs.pop(run, None)
            self._awaited -= {run}
            self._changed = True

    def fold(self, event: Event) -> None:
        if isinstance(event, Started) or self._run not in self.runs:
            self.runs[self._run] = Columns()
        self.runs[self._run].add(event)

    def controls(self) -> list[Control]:
        return [Control("x", "against", self.x, self._choices())]

    def answer(self) -> str:
        """The losses at the ends of the lines, whatever they are drawn against."""
        ends = {n: end for n, run in self.runs.items() if (end := last(run.curves.eval_steps, run.curves.eval_loss))}
        unit = _unit(self.runs.values())
        if not ends:
            means = [end for run in self.runs.values() if (end := last(run.curves.steps, run.curves.loss))]
            if len(means) != 1:
                return "No step has been taken yet." if not means else "No agreed model has been evaluated yet."
            return f"The workers' mean loss is {means[0][1]:.4g} {unit} at step {means[0][0]:,}; the agreed model was not evaluated yet."
        if len(self.runs) > 1:
            best, worst = min(ends, key=lambda n: ends[n][1]), max(ends, key=lambda n: ends[n][1])
            rest = (
                f", highest that of {worst} ({ends[worst][1]:.4g} at step {ends[worst][0]:,})" if worst != best else ""
            )
            return f"Lowest is the loss of {best}: {ends[best][1]:.4g} {unit} at step {ends[best][0]:,}{rest}."
        ((name, (step, loss)),) = ends.items()
        curves = self.runs[name].curves
        first, at = float(curves.eval_loss[0]), int(curves.eval_steps[0])
        moved = loss - first
        was = (
            f", {abs(moved):.3g} {'lower' if moved < 0 else 'higher'} than at step {at:,}"
            if at != step and first == first
            else ""
        )
        return f"The agreed model has a loss of {loss:.4g} {unit} at step {step:,}{was}."

    def pictures(self) -> list[Picture]:
        on = {name: along(run, self.x, self._network()) for name, run in self.runs.items()}
        return [_lines("How low is the loss?", AXES.get(self.x, self.x), self.runs, on, self.x)]

    def _choices(self) -> list[str]:
        return [*AXES, *(SECONDS + name for name in self.networks)]

    def _network(self) -> Network | None:
        return self.networks[self.x.removeprefix(SECONDS)] if self.x.startswith(SECONDS) else None


def losses(
    runs: Mapping[str, Columns],
    x: str = "steps",
    *,
    network: Network | None = None,
    compute_seconds: float | None = None,
    title: str | None = None,
) -> Lines:
    """The picture of `Losses` for runs that are over, to be saved or shown beside others. Means of several are smoothed.

    ``x`` is ``steps``, ``tokens``, ``bytes``, or ``seconds`` on a ``network``, where a local step takes ``compute_seconds`` or as
    long as it took here.
    """
    _check_axis(x, network)
    on = {name: along(run, x, network, compute_seconds) for name, run in runs.items()}
    return _lines(title or TITLES[x], AXES.get(x, "seconds on the link"), runs, on, x, smooth=True)


def along(
    run: Columns, x: str, network: Network | None = None, compute_seconds: float | None = None
) -> tuple[Growing, Growing]:
    """Where the rows and the evaluations of a run lie on an axis: one of `AXES`, else seconds on a network."""
    curves = run.curves
    match x:
        case "steps":
            return curves.steps, curves.eval_steps
        case "tokens":
            return curves.tokens, curves.eval_tokens
        case "bytes":
            return curves.bytes, curves.eval_bytes
    assert network is not None
    price = run.priced(network, compute_seconds)
    return price.seconds, price.eval_seconds


def axis(run: Columns, x: str, network: Network | None = None, compute_seconds: float | None = None) -> np.ndarray:
    """Where each finished step of a run lies on an axis of `losses`, ``[steps]``."""
    _check_axis(x, network)
    return along(run, x, network, compute_seconds)[0].values


def _check_axis(x: str, network: Network | None) -> None:
    if x not in TITLES or (x == "seconds" and network is None):
        raise ValueError(f"axis {x!r}: use one of {', '.join(TITLES)}; 'seconds' needs a network")


def _lines(
    title: str,
    label: str,
    runs: Mapping[str, Columns],
    on: Mapping[str, tuple[Growing, Growing]],
    x: str,
    smooth: bool = False,
) -> Lines:
    """Of one run a line for each worker, their mean and the agreed model; of several the means (thin) and the models."""
    several, series, spread, floor = len(runs) > 1, list[Series](), list[Band](), None
    for k, (name, run) in enumerate(runs.items()):
        curves, (at_rows, at_evals) = run.curves, on[name]
        if not several and len(curves.loss_W) <= MANY:
            lines = enumerate(curves.loss_W)
            series += [Series(f"worker {w}", at_rows, y, faint=True, colour=2 + w) for w, y in lines]
        elif not several:
            spread = bands(at_rows, curves.loss_spread, 1)
        if several and smooth:
            if x != "bytes":  # there, steps that send nothing stand in one place: a mean would be a row of strokes
                series.append(Series(name, *_smoothed(at_rows, curves.loss), faint=True, colour=k))
        else:
            mean = f"{name}: workers' mean" if several else "workers' mean"
            series.append(Series(mean, at_rows, curves.loss, faint=several, colour=k if several else 1))
        series.append(Series(name if several else "agreed model", at_evals, curves.eval_loss, colour=k))
        if run.started is not None and run.started.floor_nats is not None:
            floor = (run.started.floor_nats, "entropy rate of the corpus")
    series.sort(key=lambda s: not s.faint)
    log = several and x not in ("steps", "tokens")
    counted = {run.started.counted for run in runs.values() if run.started is not None} or {"tokens"}
    if x == "tokens" and counted != {"tokens"}:
        label = label.replace("tokens", "examples")
    unit = _unit(runs.values())
    unit += " (bands: 90 % and 50 % of workers)" if spread else ""
    return Lines(title, label, f"loss, {unit}", series, log_x=log, floor=floor, bands=spread)


def _unit(runs: Iterable[Columns]) -> str:
    counted = {run.started.counted for run in runs if run.started is not None} or {"tokens"}
    return (
        "nats per token" if counted == {"tokens"} else "per example" if counted == {"examples"} else "of several kinds"
    )


def _smoothed(x: Growing, y: Growing) -> tuple[np.ndarray, np.ndarray]:
    """A running mean over the sixtieth part of a run, at the last of the steps that it is taken over."""
    rows = min(len(x), len(y))
    window = max(1, rows // 60)
    return x.values[window - 1 : rows], np.convolve(y.values[:rows], np.ones(window) / window, mode="valid")
