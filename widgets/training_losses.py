"""Does it learn? Losses of every worker, their mean, and the model that they agree on, against what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lab.costs.network import NETWORKS, Network
from lab.events import Event, Started
from lab.runs.columns import Columns, Curves
from lab.runs.growing import Growing
from widgets.pictures import Lines, Picture, Series
from widgets.view import Control, Lane, View

AXES = {
    "steps": "local steps of every worker",
    "tokens": "tokens seen by all workers together",
    "bytes": "payload sent by all workers together, bytes",
}
SECONDS = "seconds on "  # and the name of a network
MAX_LINES = 16  # thin lines, one a worker; with more workers there is only their mean


@dataclass(eq=False, repr=False)
class Losses(View):
    """Training loss of every worker (thin) and their mean, validation loss of the agreed model (thick), in nats per token.

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

    def pictures(self) -> list[Picture]:
        several, series, floor = len(self.runs) > 1, list[Series](), None
        for k, (name, run) in enumerate(self.runs.items()):
            along, at_evals = self._along(run)
            curves = run.curves
            if not several and len(curves.loss_W) <= MAX_LINES:
                lines = enumerate(curves.loss_W)
                series += [Series(f"worker {w}", along, y, faint=True, colour=2 + w) for w, y in lines]
            agreed, mean = ("agreed model", "workers' mean") if not several else (name, f"{name}: workers' mean")
            series.append(Series(mean, along, curves.loss, faint=several, colour=k if several else 1))
            series.append(Series(agreed, at_evals, curves.eval_loss, colour=k))
            if run.started is not None and run.started.floor_nats is not None:
                floor = (run.started.floor_nats, "entropy rate of the corpus")
        log = several and self.x not in ("steps", "tokens")
        label = AXES.get(self.x, self.x)
        series.sort(key=lambda s: not s.faint)
        return [Lines("How low is the loss?", label, "loss, nats per token", series, log_x=log, floor=floor)]

    def _choices(self) -> list[str]:
        return [*AXES, *(SECONDS + name for name in self.networks)]

    def _along(self, run: Columns) -> tuple[Growing, Growing]:
        """The chosen axis at every row and at every evaluation."""
        if self.x.startswith(SECONDS):
            price = run.priced(self.networks[self.x.removeprefix(SECONDS)])
            return price.seconds, price.eval_seconds
        curves = run.curves
        return {
            "steps": (curves.steps, curves.eval_steps),
            "tokens": (curves.tokens, curves.eval_tokens),
            "bytes": (curves.bytes, curves.eval_bytes),
        }[self.x]
