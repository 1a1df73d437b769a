"""Does routing stay stable? Where the routers of a mixture of experts send their tokens, and how that settles.

Legend: W workers, L layers, E experts of a layer, T looks (every ``routing_every`` steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lab.events import Ended, Event, Placed, Routed, Saturated, Started
from lab.probes.routing import balance
from widgets.answers import percent, plural
from widgets.matrices import Grid, Matrix
from widgets.pictures import Lines, Note, Picture, Series, numbered
from widgets.view import View

MAX_BANDS = 64  # rows of the heat map; with more, it shows the layer with the worst balance
MAX_LAYERS = 16  # thin lines in a picture; with more, they are the lowest and the highest layer
FULL_SCALE = 2  # even shares at which the colour scale of the heat map ends: an even load is in its middle

# Share of choices that change from look to look: up to it, and with no dead expert, routing is called stable.
SETTLED_BELOW = 0.1

SHARE = (0.0, 1.0)
STEP = "local step"
LOAD = "{row} at step {column}: {value} × an even share of the slots\n0 = nobody chose it, 1 = its fair share"
ENTROPY = "{name}, step {x}: {y}\n1 = the gate spreads evenly over the experts it knows, 0 = always the same one"
CHURN = "{name}, step {x}: {y}\n0 = the same choices as at the look before, 1 = all others"
BALANCE = "{name}, step {x}: {y}\nEven load: busiest ÷ mean is 1, and CV (standard deviation ÷ mean) is 0"
DEAD = "{name}, step {x}: {y} dead\nDead: less than 1 % of an even share"
GHOSTS = "{name}, step {x}: {y}\nShare of the slots that chose an expert which is not on that worker"
DIVERGENCE = (
    "{name}, step {x}: {y}\n‖copy − mean‖ ÷ ‖mean‖ over an expert's holders, just before the average; 0 = all alike"
)
SETTLED = "{name}, step {x}: {y}\nShare of the final choices that were made already"


@dataclass(eq=False, repr=False)
class RoutingStability(View):
    """Load, entropy, churn, ghosts, divergence and placement of the experts, from `Routed`, `Placed` and `Saturated`.

    ``source`` of load: ``agreed`` is the agreed model on the probe batch, ``workers`` the sum over the workers' last batches.
    ``layer`` shows that layer alone in the heat map. All other pictures show the mean over layers, and each layer thin.
    """

    title = "Does routing stay stable?"
    leads = True
    reads = (Started, Placed, Routed, Saturated, Ended)

    source: Literal["agreed", "workers"] = "agreed"
    layer: int | None = None
    num_workers: int = field(default=0, init=False)
    placed: Placed | None = field(default=None, init=False)
    saturated: Saturated | None = field(default=None, init=False)
    moved: int = field(default=0, init=False)
    looks: list[_Look] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.source not in ("agreed", "workers"):
            raise ValueError(
                f"source = {str(self.source)[:40]!r} is not allowed: use 'agreed' or 'workers' "
                "(a stored run is shown by RoutingStability.of(find_run(id).events()))"
            )

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.num_workers = int(event.recipe["num_workers"])
                self.placed, self.saturated, self.moved, self.looks = None, None, 0, []
            case Placed():
                self.placed = event
                self.moved += event.moved
            case Routed():
                self.num_workers = self.num_workers or len(event.load_WLE)
                self.looks.append(_Look.of(event, self.source, self._ideal()))
            case Saturated():
                self.saturated = event

    def answer(self) -> str:
        if not self.looks:
            return "No look at the routers yet."
        now = self.looks[-1]
        dead, of = int(now.dead_L.sum()), now.share_LE.size
        idle = f"{dead} of {plural(of, 'expert')} {'is' if dead == 1 else 'are'} dead (chosen for under 1 % of an even share)"
        changed = float(_mean(now.churn_L, 0))
        if not np.isfinite(changed):
            return f"At step {now.step:,} {idle}; there is no earlier look to compare choices with."
        verdict = "Stable" if changed <= SETTLED_BELOW and not dead else "Not stable yet"
        return f"{verdict}: {percent(changed)} of choices changed since the last look (step {now.step:,}), {idle}."

    def pictures(self) -> list[Picture]:
        if not self.looks:
            words = "No look at the routers yet: a model with experts gives one every routing_every steps."
            return [Note("Does every expert get its share of the tokens?", words), *self._held()]
        churn = self._lines("How many choices changed?", "share changed (1 − Jaccard)", CHURN, "churn_L", SHARE)
        out: list[Picture | None] = [
            churn,
            self._load(),
            self._lines("How varied are the gates?", "entropy ÷ its maximum", ENTROPY, "entropy_L", SHARE),
            self._balance(),
            self._dead(),
            self._ghosts(),
            self._lines("How far apart are the copies?", "distance ÷ norm", DIVERGENCE, "divergence_L"),
            self._settled(),
            *self._held(),
        ]
        return numbered([picture for picture in out if picture is not None])

    # one picture each

    def _load(self) -> Matrix:
        share_TLE = np.stack([x.share_LE for x in self.looks])
        _, num_layers, num_experts = share_TLE.shape
        title, layers = "Does every expert get its share of the tokens?", range(num_layers)
        if self.layer is not None:
            if not 0 <= self.layer < num_layers:
                raise ValueError(f"layer {self.layer}: this model has layers 0 to {num_layers - 1}")
            layers = range(self.layer, self.layer + 1)
            title += f" Layer {self.layer}"
        elif num_layers > 1 and num_layers * num_experts > MAX_BANDS:
            worst = int(np.argmax(np.nan_to_num(_mean(self._columns("cv_L"), 0), nan=-1.0)))
            layers = range(worst, worst + 1)
            title += f" Layer {worst}, the least balanced of {num_layers}"
        single = len(layers) == 1
        return Matrix(
            title,
            STEP,
            [f"E{e}" if single else f"L{k} E{e}" for k in layers for e in range(num_experts)],
            [x.step for x in self.looks],
            share_TLE[:, layers].reshape(len(self.looks), -1).T,
            "× an even share",
            low=0,
            high=FULL_SCALE,
            bands=() if single else [(f"layer {k}", num_experts) for k in layers],
            hover=LOAD,
        )

    def _lines(
        self, title: str, y: str, hover: str, what: str, reach: tuple[float, float] | None = None
    ) -> Lines | None:
        """One of a look's numbers over time, unless it was never known."""
        values_TL = self._columns(what)
        if not np.isfinite(values_TL).any():
            return None
        return Lines(title, STEP, y, _layers(self._steps, values_TL), hover=hover, reach=reach)

    def _balance(self) -> Lines:
        busiest = _layers(self._steps, self._columns("busiest_L"), "busiest ÷ mean")
        cv = Series("CV (spread ÷ mean)", self._steps, _mean(self._columns("cv_L"), 1), colour=1)
        return Lines("How uneven is the load?", STEP, "× the mean load", [*busiest, cv], hover=BALANCE)

    def _dead(self) -> Lines:
        dead = Series("all layers together", self._steps, self._columns("dead_L").sum(1))
        y = f"dead, of {self.looks[-1].share_LE.size}"
        return Lines("How many experts are dead?", STEP, y, [dead], hover=DEAD)

    def _ghosts(self) -> Lines | None:
        if not any(x.has_ghosts for x in self.looks):
            return None
        measured = _layers(self._steps, self._columns("ghosts_L"), "measured")
        ideal = Series("ideal 1 − Oₑ/M", self._steps, [x.ideal for x in self.looks], colour=1)
        return Lines(
            "How often is an expert absent?", STEP, "share of slots", [*measured, ideal], hover=GHOSTS, reach=SHARE
        )

    def _settled(self) -> Lines | None:
        if self.saturated is None or not self.saturated.steps:
            return None
        share = _layers(self.saturated.steps, _floats(self.saturated.overlap_RL))
        return Lines("How early do choices settle?", STEP, "share already made", share, hover=SETTLED, reach=SHARE)

    def _held(self) -> list[Picture]:
        if self.placed is None or not self.placed.workers_LE:
            return []
        where = f"{self.moved} copies moved by step {self.placed.step}" if self.moved else ""
        return [holdings("Who holds which expert?", self.placed.workers_LE, self.num_workers, where)]

    # the columns

    @property
    def _steps(self) -> list[int]:
        return [x.step for x in self.looks]

    def _columns(self, what: str) -> np.ndarray:
        """One of a look's numbers per layer, ``[T, L]``."""
        return np.stack([vars(x)[what] for x in self.looks])

    def _ideal(self) -> float:
        """Share of (worker, expert) pairs in which the worker lacks the expert: 1 − O_e/M."""
        if self.placed is None or not self.num_workers:
            return float("nan")
        holders = [len(workers) for row in self.placed.workers_LE for workers in row]
        return 1 - sum(holders) / (len(holders) * self.num_workers) if holders else float("nan")


@dataclass(frozen=True)
class _Look:
    """One `Routed` in numbers per layer; not a number where nothing can be said."""

    step: int
    share_LE: np.ndarray  # load in even shares
    cv_L: np.ndarray
    busiest_L: np.ndarray
    dead_L: np.ndarray
    entropy_L: np.ndarray  # mean over the workers that are up
    ghosts_L: np.ndarray
    churn_L: np.ndarray
    divergence_L: np.ndarray  # mean over experts
    ideal: float
    has_ghosts: bool  # whether a router may choose an expert that is not there

    @classmethod
    def of(cls, event: Routed, source: str, ideal: float) -> _Look:
        num_layers = len(event.agreed_load_LE)
        loads = [_floats(load) for load in event.load_WLE if load is not None]
        load_LE = _floats(event.agreed_load_LE)
        if source == "workers":
            known = [np.isfinite(x) for x in loads]
            summed = np.sum([np.where(k, x, 0) for k, x in zip(known, loads, strict=True)], axis=0)
            load_LE = np.where(np.any(known, axis=0), summed, np.nan) if loads else np.full(load_LE.shape, np.nan)
        even = _mean(load_LE, 1)[:, None]
        rows = [balance([None if np.isnan(v) else int(v) for v in row]) for row in load_LE]
        nothing = np.full((1, num_layers), np.nan)
        up = [w for w, x in enumerate(event.ghost_fraction_WL) if x is not None]
        ghosts_WL = _floats([event.ghost_fraction_WL[w] for w in up]) if up else nothing
        entropies = [x for x in event.entropy_WL if x is not None]
        chosen_anywhere = all(np.isfinite(x).all() for x in loads)  # every router knows every expert
        return cls(
            step=event.step,
            share_LE=np.divide(load_LE, even, out=np.full(load_LE.shape, np.nan), where=even > 0),
            cv_L=np.array([b.cv for b in rows]),
            busiest_L=np.array([b.max_over_mean for b in rows]),
            dead_L=np.array([b.dead for b in rows]),
            entropy_L=_mean(_floats(entropies) if entropies else nothing, 0),
            ghosts_L=_mean(ghosts_WL, 0),
            churn_L=_floats(event.churn_L),
            divergence_L=_mean(_floats(event.divergence_LE), 1),
            ideal=ideal,
            has_ghosts=bool((ghosts_WL > 0).any() or (up and chosen_anywhere and ideal > 0)),
        )


def _layers(steps: Sequence[int], values_TL: np.ndarray, name: str = "mean") -> list[Series]:
    """The mean over layers, and behind it each layer as a thin line of the same colour."""
    num_layers, which = values_TL.shape[1], "layers"
    thin = [(f"layer {k}", values_TL[:, k]) for k in range(num_layers)] if num_layers > 1 else []
    if num_layers > MAX_LAYERS:
        low, high = np.where(np.isnan(values_TL), np.inf, values_TL), np.where(np.isnan(values_TL), -np.inf, values_TL)
        thin, which = [("lowest layer", low.min(1)), ("highest layer", high.max(1))], "extremes"
    faint = [Series(n, steps, y, faint=True, colour=0) for n, y in thin]
    name += f" (thin: {which})" if thin and name == "mean" else ""
    return [*faint, Series(name, steps, _mean(values_TL, 1), colour=0)]


def _floats(values: object) -> np.ndarray:
    """Nested lists as an array; None becomes not-a-number."""
    return np.array(values, dtype=float)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Of the numbers among them; not a number where there are none."""
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(count, np.where(known, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def holdings(title: str, workers_LE: Sequence[Sequence[Sequence[int]]], num_workers: int = 0, where: str = "") -> Grid:
    """Which worker holds which expert of a placement table (`lab.recipes.placement.Table`).

    Layers with the same map are drawn once; too many different ones as the share of layers, by shade.
    """
    num_layers, num_experts = len(workers_LE), max(map(len, workers_LE), default=0)
    num_workers = max([num_workers, *(w + 1 for row in workers_LE for held in row for w in held)])
    held_LEW = np.zeros((num_layers, num_experts, num_workers))
    for k, row in enumerate(workers_LE):
        for e, workers in enumerate(row):
            held_LEW[k, e, list(workers)] = 1
    axis = f"worker; {where}" if where else "worker"
    columns = [f"w{w}" for w in range(num_workers)]
    experts = [f"E{e}" for e in range(num_experts)]
    same = bool((held_LEW == held_LEW[:1]).all())
    if not same and num_layers * num_experts <= MAX_BANDS:
        rows = [f"L{k} E{e}" for k in range(num_layers) for e in range(num_experts)]
        bands = [(f"layer {k}", num_experts) for k in range(num_layers)]
        return Grid(title, axis, rows, columns, held_LEW.reshape(len(rows), num_workers), bands)
    says = "{row} on {column}: {value} % held"
    if num_layers > 1:
        says = "{row} on {column}: in {value} % of the layers"
        axis += f"; the same in all {num_layers} layers" if same else f"; shade: share of {num_layers} layers"
    return Grid(title, axis, experts, columns, held_LEW.mean(0), hover=says)
