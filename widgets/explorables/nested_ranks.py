"""Nested ranks: what can clients of different rank learn together?

PreLort (arXiv 2606.15963) and two that lack one of its ingredients or both, with the same seed, from stored runs: who hands in which
rank segments is told by `Covered` events, energy and loss of what is cut by `Truncated`, bytes by the ledger.

Legend: M segments, W clients, r a rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lab.costs.network import human
from lab.engine.ledger import Ledger
from lab.events import Covered, Event, Sent, Started, Truncated
from lab.recipes.recipe import Recipe
from widgets.answers import percent as exactly
from widgets.boards import Board
from widgets.colours import COLOURS, NOTHING
from widgets.explorables.explorable import Explorable
from widgets.explorables.pieces import Exercise, Place, Prediction, Slip
from widgets.explorables.stored_runs import events_of
from widgets.matrices import Matrix
from widgets.pictures import Lines, Series
from widgets.rank_segments import segment_names

NAME = "nested_ranks"
RANKS = (64, 32, 16, 16, 8, 8, 4, 4, 4, 4)
BOUNDS = tuple(sorted(set(RANKS)))
ROUND, STEPS = 8, 64
PRELORT, SEGMENTS, PADDING = "PreLort", "segments only", "zeros"
LEFT = {"as much": 1.0, "about half": 1 / 2, "about a tenth": 1 / 10, "a hundredth or less": 1 / 100}
METHODS = {
    PRELORT: {"name": "prelort", "sync_every": ROUND},
    SEGMENTS: {"name": "prelort", "sync_every": ROUND, "nested": "none"},
    PADDING: {"name": "zero_padding", "sync_every": ROUND},
}


def recipe_of(rule: str) -> Recipe:
    return Recipe.of(
        {
            "model": "nano",
            "start": "pretrained",
            "lora": {"ranks": list(RANKS), "targets": ["attention.qkv"]},
            "corpus": "task:docstrings",
            "split": "dirichlet:1.0",
            "num_workers": len(RANKS),
            "batch_size": 4,
            "context": 128,
            "steps": STEPS,
            "eval_every": ROUND,
            "eval_windows": 96,
            "checkpoint_every": 0,
            "method": METHODS[rule],
        }
    )


def recipes() -> list[Recipe]:
    return [recipe_of(rule) for rule in METHODS]


@dataclass(frozen=True)
class Run:
    """A stored run in numbers."""

    rule: str
    events: list[Event]

    @classmethod
    def of(cls, rule: str) -> Run:
        return cls(rule, events_of(NAME, recipe_of(rule)))

    @cached_property
    def started(self) -> Started:
        return next(e for e in self.events if isinstance(e, Started))

    @cached_property
    def looks(self) -> list[Truncated]:
        """After every round."""
        return [e for e in self.events if isinstance(e, Truncated)]

    @cached_property
    def covered(self) -> Covered:
        """The last aggregation; all clients take part in all."""
        return [e for e in self.events if isinstance(e, Covered)][-1]

    def fetched(self, worker: int) -> int:
        """Payload in a round, one way."""
        sent = Ledger(e for e in self.events if isinstance(e, Sent) and e.op == "broadcast" and e.step <= ROUND)
        return sent.total_bytes(worker)

    def beyond(self, look: int, rank: int) -> float:
        """Share of the energy in the ranks above ``rank``."""
        e = self.looks[look]
        return sum(share for bound, share in zip(e.bounds_M, e.energy_M, strict=True) if bound > rank)

    def loss(self, look: int, rank: int) -> float:
        """Of the adapters cut to ``rank``."""
        e = self.looks[look]
        return e.loss_M[e.bounds_M.index(rank)]


def percent(share: float) -> str:
    return "under 0.01 %" if 0 < share < 1e-4 else exactly(share)


def segment_mean(values: Sequence[float], examples: Sequence[float]) -> float:
    """What becomes of a number that these clients hold, weighted by their examples; whoever lacks it takes no part."""
    return sum(v * n for v, n in zip(values, examples, strict=True)) / sum(examples)


def explorable() -> Explorable:
    runs = {rule: Run.of(rule) for rule in METHODS}
    segments, padding = runs[SEGMENTS], runs[PADDING]
    highest, mass = segment_names(BOUNDS)[-1], padding.covered.mass_M[-1]
    kept = padding.beyond(-1, BOUNDS[-2]) / segments.beyond(-1, BOUNDS[-2])
    return Explorable(
        name=NAME,
        title="What can clients of different rank learn together?",
        question="Ten clients adapt one model. An adapter adds to a weight the product of two thin matrices; how thin they are is its rank, and each client takes as much "
        "as it can afford: what becomes of the ranks that only few of them have?",
        prediction=Prediction(
            f"{highest.capitalize().replace('-', ' to ')} are held by one client of ten, which has {percent(mass)} of the examples. A server takes the mean over all ten, "
            f"with zeros for those who lack them. After {STEPS // ROUND} rounds, how much of the adapter's energy (the squared size of what it adds to the model) is in these ranks, compared with a "
            "mean over those who hold them?",
            list(LEFT),
            min(LEFT, key=lambda words: abs(math.log(LEFT[words] / kept))),
            f"With zeros {percent(padding.beyond(-1, BOUNDS[-2]))} of the energy is in them, with a mean over those who hold them "
            f"{percent(segments.beyond(-1, BOUNDS[-2]))}.",
        ),
        sentence="A client that can afford {dragged} holds {held} numbers and fetches {bytes} in a round; {num} of the ten can afford as much, "
        "with {mass} of all examples. Cut to that rank, the server's adapter has a loss of {loss} and leaves {beyond} of its energy behind with "
        "PreLort, which averages each rank over those who have it; with zeros in the mean it is {padded} and {diluted}.",
        dragged="rank that a client can afford",
        places=[_place(rank, runs) for rank in BOUNDS],
        start=BOUNDS.index(16),
        moment="round",
        why=_why(runs, kept),
        exercise=_exercise(),
        further=[
            ("PreLort: what it sends, its options, its traps", "docs/methods/prelort.md"),
            (
                "Notebook 03: ten ways to average adapters, at equal rounds and at equal bytes",
                "notebooks/03_prelort.ipynb",
            ),
            ("PreLort (arXiv 2606.15963)", "https://arxiv.org/abs/2606.15963"),
        ],
        made_of=f"From {len(runs)} stored runs of one seed: {len(RANKS)} clients of rank {', '.join(map(str, RANKS))} adapt a small model that has read "
        f"Python's standard library, in {STEPS // ROUND} rounds of {ROUND} steps: given a function, write the first line of its docstring. Energy of ranks: "
        "the squared size of what they add to the model. “Segments only” is PreLort without its nested loss. The loss is in nats per byte of docstrings "
        "that nobody trained on: minus the natural logarithm of the probability that the model gave to the byte that came.",
    )


def _place(rank: int, runs: dict[str, Run]) -> Place:
    prelort, padding = runs[PRELORT], runs[PADDING]
    worker = RANKS.index(rank)
    numbers = {
        "held": f"{prelort.started.params_per_worker[worker]:,}",
        "bytes": human(prelort.fetched(worker)),
        "num": f"{sum(r >= rank for r in RANKS)}",
        "mass": percent(prelort.covered.mass_M[BOUNDS.index(rank)]),
        "loss": f"{prelort.loss(-1, rank):.3f}",
        "padded": f"{padding.loss(-1, rank):.3f}",
        "beyond": percent(prelort.beyond(-1, rank)),
        "diluted": percent(padding.beyond(-1, rank)),
    }
    moments = {f"round {look + 1}": _board(rank, runs, look) for look in range(len(prelort.looks))}
    return Place(f"rank {rank}", numbers, moments)


def _board(rank: int, runs: dict[str, Run], look: int) -> Board:
    """What is to be seen after a round, counted from 0."""
    prelort, padding = runs[PRELORT], runs[PADDING]
    says = (
        f"Round {look + 1}: beyond rank {rank} lie {percent(prelort.beyond(look, rank))} of the energy with PreLort, {percent(padding.beyond(look, rank))} "
        f"with zeros; cut there, the loss is {prelort.loss(look, rank):.3f} and {padding.loss(look, rank):.3f}."
    )
    return Board(
        "Who holds what, and what it is worth", [_held(rank), _beyond(rank, runs, look), _worth(rank, runs, look)], says
    )


def _held(rank: int) -> Matrix:
    """Clients and segments: 0 not held, 1 held, 2 held and within the cut."""
    cells = [[0 if bound > own else 2 if bound <= rank else 1 for bound in BOUNDS] for own in RANKS]
    return Matrix(
        "Who holds which ranks?",
        "ranks (blue: held, ochre: in the cut)",
        [f"client {w}, rank {own}" for w, own in enumerate(RANKS)],
        [name.removeprefix("ranks ") for name in segment_names(BOUNDS)],
        cells,
        "0 not held, 1 held, 2 within the cut",
        low=0,
        high=2,
        hover="{row}, ranks {column}: {value} (0 not held, 1 held, 2 held and within the cut)",
        colours=(NOTHING, COLOURS[0], COLOURS[1]),
        gap=2,
        bar=False,
        wide=False,
    )


def _beyond(rank: int, runs: dict[str, Run], look: int) -> Lines:
    steps = [e.step for e in runs[PRELORT].looks]
    lines = [Series(rule, steps, [run.beyond(k, rank) for k in range(len(steps))]) for rule, run in runs.items()]
    return Lines(
        "How much of the energy lies beyond the cut?",
        "local step",
        "share of the energy",
        lines,
        hover="{name}, step {x}: {y} of the energy lies beyond the cut",
        reach=(0.0, 1.0),
        until=steps[look],
    )


def _worth(rank: int, runs: dict[str, Run], look: int) -> Lines:
    seen = [v for run in runs.values() for e in run.looks for v in e.loss_M]
    lines = [Series(rule, BOUNDS, run.looks[look].loss_M) for rule, run in runs.items()]
    here = Series("this cut", [rank], [runs[PRELORT].loss(look, rank)], colour=4)
    return Lines(
        "What is the adapter worth, cut to each rank?",
        "cut to rank",
        "loss",
        [*lines, here],
        log_x=True,
        hover="{name}, cut to rank {x}: {y}",
        reach=(min(seen), max(seen)),
    )


def _enough(run: Run) -> int:
    """The smallest rank whose loss, as it is printed, is the lowest: where ranks are equal in three digits, more of them are no better."""
    printed = {rank: round(run.loss(-1, rank), 3) for rank in BOUNDS}
    return min(rank for rank in BOUNDS if printed[rank] == min(printed.values()))


def _why(runs: dict[str, Run], kept: float) -> list[str]:
    prelort, segments, padding = runs[PRELORT], runs[SEGMENTS], runs[PADDING]
    low, high = BOUNDS[0], BOUNDS[-1]
    mass = padding.covered.mass_M[-1]
    per_rank = prelort.started.params_per_worker[0] // high
    best = {rule: _enough(run) for rule, run in runs.items()}
    return [
        "<b>Prefixes.</b> An adapter of rank r adds B·A to a weight, a product of two thin matrices: r columns of B, r rows of A. A client that can afford "
        f"rank r holds the first r of them and no more, {per_rank} numbers for each rank; so memory and bytes grow in step with r.",
        f"<b>The mean of a segment.</b> Ranks that are held by the same clients are a segment. With zeros for whoever lacks it, a segment is multiplied in every "
        f"round by the part of the examples that stands behind it: {mass:.3f} for the highest. Both A and B are, so their product is by {mass**2:.3f}, before "
        "the one client who has it trains it again. The mean over those who hold it divides by their examples alone, and nothing shrinks: here "
        f"the highest segment ends with {percent(segments.beyond(-1, BOUNDS[-2]))} of the energy instead of {percent(padding.beyond(-1, BOUNDS[-2]))}.",
        "<b>The nested loss.</b> That alone does not make a prefix useful by itself, as its ranks were trained together with those behind them. PreLort's clients "
        f"train several prefixes at once. Cut to rank {low} the loss is {prelort.loss(-1, low):.3f} with it, {segments.loss(-1, low):.3f} without, and "
        f"{padding.loss(-1, low):.3f} with zeros, where these ranks are all there is; uncut it is {prelort.loss(-1, high):.3f}, {segments.loss(-1, high):.3f} and "
        f"{padding.loss(-1, high):.3f}. What only one client has trained, the highest ranks, need not help everybody.",
        f"<b>So:</b> in these runs the lowest loss is reached at rank {best[PRELORT]} with PreLort ({prelort.loss(-1, best[PRELORT]):.3f}), at rank {best[SEGMENTS]} "
        f"with segments only ({segments.loss(-1, best[SEGMENTS]):.3f}) and at rank {best[PADDING]} with zeros ({padding.loss(-1, best[PADDING]):.3f}); more ranks bring "
        "nothing, or harm; the highest ranks keep "
        f"{percent(kept)} of their share with zeros. It is one run each: small differences are luck.",
    ]


def _exercise() -> Exercise:
    ranks, examples, values = (16, 8, 4), (30, 10, 60), (0.8, 0.4)
    held = examples[: len(values)]
    right = segment_mean(values, held)
    return Exercise(
        question=f"Three clients of rank {ranks[0]}, {ranks[1]} and {ranks[2]} have {examples[0]}, {examples[1]} and {examples[2]} examples. A number that belongs to "
        f"ranks 5 to 8 is {values[0]} at the first and {values[1]} at the second. What is it after the mean of its segment?",
        unit="",
        right=right,
        slips=[
            Slip(
                segment_mean((*values, 0.0), examples),
                "the third client took part with a zero: it does not hold this number, so its examples do not count",
            ),
            Slip(sum(values) / len(values), "both count alike there: a client counts by its examples"),
            Slip(
                sum(values) / len(ranks),
                "that is the sum by three: only two hold the number, and each counts by its examples",
            ),
            Slip(sum(values), "that is the sum: it should be a mean"),
            Slip(values[0], "only the client of the highest rank is listened to: the second holds this number too"),
            Slip(
                segment_mean(values, ranks[: len(values)]), "that is weighted by ranks: a client counts by its examples"
            ),
            Slip(segment_mean(values, held[::-1]), "the examples of the two were exchanged"),
            Slip(
                segment_mean(values, held[::-1]) * sum(held) / sum(examples),
                "the examples of the two were exchanged, and those of the third do not count",
            ),
        ],
        solution=f"({held[0]} · {values[0]} + {held[1]} · {values[1]}) ∕ {sum(held)}, as the third client does not hold it",
        hint="who holds ranks 5 to 8, and how much does each of them count",
    )
