"""Traffic of experts: what if no site holds the whole model?

FoMoE (arXiv 2606.19025) with a random placement, the same seed with every overlap O_e, from stored runs. Who holds what is told by
the `Placed` events, bytes by the ledger.

Legend: M sites, O_e the overlap, E experts of a layer, R rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from lab.costs.network import human
from lab.engine.ledger import Ledger
from lab.events import Evaluated, Event, Placed, Sent, Started
from lab.recipes.recipe import Recipe
from widgets.answers import percent
from widgets.boards import Board
from widgets.colours import COLOURS, NOTHING
from widgets.explorables.explorable import Explorable
from widgets.explorables.pieces import Exercise, Place, Prediction, Slip, loss_against, loss_difference
from widgets.explorables.stored_runs import events_of
from widgets.matrices import Matrix
from widgets.pictures import Bars, Lines, Series

NAME = "expert_traffic"
SITES, ROUND, STEPS = 8, 8, 64
OVERLAPS = tuple(range(1, SITES + 1))
PARTS = {"about an eighth": 1 / 8, "about a quarter": 1 / 4, "about half": 1 / 2, "about three quarters": 3 / 4}


def recipe_of(overlap: int) -> Recipe:
    return Recipe.of(
        {
            "model": "moe-nano",
            "corpus": "stdlib",
            "num_workers": SITES,
            "batch_size": 4,
            "context": 64,
            "steps": STEPS,
            "schedule": {"kind": "wsd", "warmup": 8},
            "eval_every": ROUND,
            "eval_windows": 64,
            "routing_every": 0,
            "checkpoint_every": 0,
            "placement": {"overlap": overlap, "kind": "random"},
            "method": {"name": "fomoe", "sync_every": {"params": ROUND}},
        }
    )


def recipes() -> list[Recipe]:
    return [recipe_of(overlap) for overlap in OVERLAPS]


@dataclass(frozen=True)
class Traffic:
    """What the mean site hands over, or is sent, in one round: payload bytes."""

    dense: float
    averaged: float  # experts
    moved: float  # experts that come from elsewhere

    @property
    def total(self) -> float:
        return self.dense + self.averaged + self.moved


@dataclass(frozen=True)
class Run:
    """A stored run in numbers."""

    overlap: int
    events: list[Event]

    @classmethod
    def of(cls, overlap: int) -> Run:
        return cls(overlap, events_of(NAME, recipe_of(overlap)))

    @cached_property
    def started(self) -> Started:
        return next(e for e in self.events if isinstance(e, Started))

    @cached_property
    def placed_R(self) -> list[Placed]:
        """The table of every round."""
        tables = {(e.step - 1) // ROUND: e for e in self.events if isinstance(e, Placed)}
        return [tables[max(k for k in tables if k <= r)] for r in range(STEPS // ROUND)]

    @property
    def moved_R(self) -> list[int]:
        """Copies of experts, of all layers, that come to another site at the start of each round."""
        new = {(e.step - 1) // ROUND: e.moved for e in self.events if isinstance(e, Placed)}
        return [new.get(r, 0) for r in range(STEPS // ROUND)]

    @cached_property
    def traffic_R(self) -> list[Traffic]:
        sent: dict[int, list[Sent]] = {}
        for e in self.events:
            if isinstance(e, Sent):
                sent.setdefault((e.step - 1) // ROUND, []).append(e)
        return [_traffic(sent.get(r, [])) for r in range(STEPS // ROUND)]

    @property
    def mean(self) -> Traffic:
        """Of a round that begins with a new table: all but the first."""
        later = self.traffic_R[1:]
        return Traffic(*(sum(vars(t)[part] for t in later) / len(later) for part in ("dense", "averaged", "moved")))

    @property
    def held(self) -> int:
        """Numbers that a site holds; all hold as many."""
        (held,) = set(self.started.params_per_worker)
        return held

    @property
    def loss(self) -> float:
        """Of the model put together from all sites, at the end."""
        return [e.loss for e in self.events if isinstance(e, Evaluated)][-1]


def _traffic(sent: list[Sent]) -> Traffic:
    """A mean over one holder is in the ledger too, but nothing leaves its site for that."""
    by = Ledger(e for e in sent if e.op == "broadcast" or len(e.workers) > 1).by("op", "group")
    moved = sum(n for (op, _), n in by.items() if op == "broadcast")
    averaged = sum(n for (op, group), n in by.items() if op != "broadcast" and group == "experts")
    return Traffic((sum(by.values()) - moved - averaged) / SITES, averaged / SITES, moved / SITES)


def held_numbers(dense: float, sparse: float, sites: int, overlap: int) -> float:
    """What a site holds: all dense numbers, and overlap ∕ sites of those of experts."""
    return dense + sparse * overlap / sites


def explorable() -> Explorable:
    runs = [Run.of(overlap) for overlap in OVERLAPS]
    alone, full = runs[0], runs[-1]
    part, whole = alone.mean.total / full.mean.total, full.started.num_params
    sparse = (whole - alone.held) * SITES / (SITES - 1)
    return Explorable(
        name=NAME,
        title="What if no site holds the whole model?",
        question="In a mixture of experts, each token is worked on by a few of many small networks, the experts. Eight sites (workers, each with a narrow link) "
        "train one: what has to travel when each expert lives on only some of the sites?",
        prediction=Prediction(
            f"Experts are {percent(sparse / whole)} of this model's numbers; all else is dense: every token passes it, and every site holds it. With each expert on one "
            "site, instead of on all eight, and dealt anew in every round, how much is what a site hands over to averages and the experts that it is sent, "
            "compared with before?",
            list(PARTS),
            min(PARTS, key=lambda words: abs(math.log(PARTS[words] / part))),
            f"With one site for each expert it is {percent(part)} of what everything everywhere takes.",
        ),
        sentence="If each expert lives on {dragged}, a site holds {held} of the model's {whole} numbers; what it hands over to averages and the experts that it "
        "is sent are {bytes} in a round. {moved} of experts change site between two rounds, which makes {moving} of those bytes (all on average over rounds), and the model put together from all sites ends with a loss of "
        "{loss}. Against everything everywhere that is {less}, and {worse}.",
        dragged="sites that hold each expert",
        places=[_place(run, runs) for run in runs],
        start=OVERLAPS.index(2),
        moment="round",
        why=_why(runs, sparse),
        exercise=_exercise(),
        further=[
            ("FoMoE: what it sends, its options, its traps", "docs/methods/fomoe.md"),
            (
                "Notebook 02: loss against bytes for every placement, and whether routing stays healthy",
                "notebooks/02_fomoe.ipynb",
            ),
            ("FoMoE, a federation of experts (arXiv 2606.19025)", "https://arxiv.org/abs/2606.19025"),
        ],
        made_of=f"From {len(runs)} stored runs of one seed: {SITES} sites, a model of {whole:,} numbers with {_experts(full)} experts in each of "
        f"{len(full.placed_R[0].workers_LE)} layers, {STEPS // ROUND} rounds of {ROUND} steps on the source text of Python's standard library; "
        "parameters are averaged after each round, and experts placed anew. An average is counted once, where it is handed over, and an expert that moves "
        "where it arrives. The loss is in nats per byte: minus the natural logarithm of the probability that the model gave to the byte that came.",
    )


def _experts(run: Run) -> int:
    return len(run.placed_R[0].workers_LE[0])


def _place(run: Run, runs: list[Run]) -> Place:
    full = runs[-1]
    everywhere, copies = run is full, round(sum(run.moved_R) / (len(run.moved_R) - 1))
    numbers = {
        "held": f"{run.held:,}",
        "whole": f"{run.started.num_params:,}",
        "bytes": human(run.mean.total),
        "moved": f"{copies} {'copy' if copies == 1 else 'copies'}",
        "moving": percent(run.mean.moved / run.mean.total),
        "loss": f"{run.loss:.3f}",
        "less": "the same bytes" if everywhere else f"{percent(run.mean.total / full.mean.total)} of the bytes",
        "worse": loss_against(run.loss, full.loss),
    }
    value = f"all {SITES} sites" if everywhere else f"{run.overlap} of {SITES} sites"
    return Place(value, numbers, {f"round {r + 1}": _board(run, runs, r) for r in range(STEPS // ROUND)})


def _board(run: Run, runs: list[Run], r: int) -> Board:
    """What is to be seen in round ``r``, counted from 0."""
    copies = run.overlap * _experts(run) * len(run.placed_R[0].workers_LE)
    says = f"Round {r + 1}: {run.moved_R[r]} of {copies} copies of experts are new where they are; a site hands over and is sent {human(run.traffic_R[r].total)}."
    return Board(
        "Who holds which expert, and what that sends", [_held(run, r), _sent(run, runs, r), _paid(run, runs)], says
    )


def _held(run: Run, r: int) -> Matrix:
    """The first layer: 0 not there, 1 there, 2 there since this round."""
    now_E, before_E = (run.placed_R[k].workers_LE[0] for k in (r, max(0, r - 1)))
    cells = [
        [0 if m not in now else 1 if m in before else 2 for m in range(SITES)]
        for now, before in zip(now_E, before_E, strict=True)
    ]
    return Matrix(
        "Who holds which expert? (layer 1)",
        "site (blue: there, ochre: new)",
        [f"E{e}" for e in range(len(cells))],
        [f"s{m}" for m in range(SITES)],
        cells,
        "0 absent, 1 there, 2 new",
        low=0,
        high=2,
        hover="expert {row} at site {column}: {value} (0 absent, 1 there, 2 came in this round)",
        colours=(NOTHING, COLOURS[0], COLOURS[1]),
        gap=2,
        bar=False,
        wide=False,
    )


def _sent(run: Run, runs: list[Run], r: int) -> Bars:
    now, full = run.traffic_R[r], runs[-1].mean.total
    rows = {
        "all everywhere": full,
        "here": now.total,
        "of it dense": now.dense,
        "averaged": now.averaged,
        "moved": now.moved,
    }
    return Bars(
        "What travels for a site in a round?",
        "payload, bytes",
        list(rows),
        list(rows.values()),
        [human(v) for v in rows.values()],
        colours=(6, 0, 2, 3, 1),
        most=1.02 * max(t.total for other in runs for t in other.traffic_R),
    )


def _paid(run: Run, runs: list[Run]) -> Lines:
    every = Series("any number of sites", [r.mean.total for r in runs], [r.loss for r in runs], colour=6)
    here = Series("this one", [run.mean.total], [run.loss], colour=1)
    return Lines(
        "What does the loss cost?",
        "payload of a site and round, bytes",
        "loss at the end",
        [every, here],
        hover="{name}: loss {y} for {x}",
    )


def _why(runs: list[Run], sparse: float) -> list[str]:
    half, one, full = runs[SITES // 2 - 1], runs[0], runs[-1]
    dense = full.mean.dense
    most = max(runs, key=lambda run: run.mean.moved)
    lowest, highest = min(runs, key=lambda run: run.loss), max(runs, key=lambda run: run.loss)
    return [
        f"<b>Dense tensors.</b> Attention, norms and embeddings are at every site, and all sites average them: {human(dense)} a round, however many "
        "sites hold an expert. That is what no placement saves.",
        f"<b>Experts that are averaged.</b> An expert on O of {SITES} sites is averaged among those O alone. A site holds O ∕ {SITES} of the experts, so it "
        f"hands over O ∕ {SITES} of their {human(4 * sparse)}: {human(half.mean.averaged)} with {half.overlap}, {human(full.mean.averaged)} with all "
        f"{SITES}. With one there is nobody to average with, and nothing travels for it.",
        f"<b>Experts that move.</b> A site has an expert in the next round with chance O ∕ {SITES}, whether or not it has it now; so of the O ∕ {SITES} that "
        f"it will hold, 1 − O ∕ {SITES} have to come. The product is largest in the middle: here {human(most.mean.moved)} with {most.overlap} of {SITES}, "
        f"{human(one.mean.moved)} with one. Who holds all never receives any.",
        f"<b>Loss.</b> An expert on few sites sees only their tokens. Among these runs the lowest loss, {lowest.loss:.3f}, is that of {lowest.overlap} sites for "
        f"each expert, and the highest, {highest.loss:.3f}, that of {highest.overlap}. It is one run each: small differences are luck.",
        f"<b>So:</b> with each expert on one site instead of {SITES}, a site holds {percent(one.held / full.held)} of the numbers, hands over and is sent "
        f"{percent(one.mean.total / full.mean.total)} of the bytes, and the loss changes by {loss_difference(one.loss, full.loss):+.3f}.",
    ]


def _exercise() -> Exercise:
    dense, sparse, sites, overlap = 4, 12, 8, 2
    return Exercise(
        question=f"Another model has {dense} million dense numbers and {sparse} million in experts. It lies on {sites} sites, each expert on {overlap} of "
        "them. How many numbers does one site hold?",
        unit="million",
        right=held_numbers(dense, sparse, sites, overlap),
        slips=[
            Slip(
                (dense + sparse) * overlap / sites,
                "dense tensors were shared out as well: every site holds all of them",
            ),
            Slip(sparse * overlap / sites, "those are the experts alone: the dense tensors are there too"),
            Slip(dense + sparse / sites, f"that is with each expert on one site: here each is on {overlap}"),
            Slip(
                dense + sparse / overlap,
                f"experts were divided by the overlap: a site holds {overlap} ∕ {sites} of them",
            ),
            Slip(dense + sparse, "that is the whole model, as where everything is everywhere"),
            Slip(
                dense + sparse * overlap,
                f"that has {overlap} copies of all experts at one site: the copies lie on different sites",
            ),
            Slip(
                dense / sites + sparse * overlap / sites,
                "dense tensors are not shared out: every site holds all of them",
            ),
            Slip(dense + sparse * (1 - overlap / sites), "those experts are the ones that are not there"),
            Slip(
                sites * held_numbers(dense, sparse, sites, overlap),
                "that is what all sites hold together: asked is one",
            ),
            Slip(1e6 * held_numbers(dense, sparse, sites, overlap), "asked are millions"),
        ],
        solution=f"{dense} million that are everywhere, and {overlap} ∕ {sites} of {sparse} million",
        hint="which numbers are at every site, and which part of the others is at one",
    )
