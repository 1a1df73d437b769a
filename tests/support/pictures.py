"""Pictures of every kind, the made-up events that views fold, and where they show themselves."""

from __future__ import annotations

import html
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

import widgets.view
from lab.costs.network import Network
from lab.events import (
    VERSION,
    Adapted,
    Branched,
    CellDone,
    ClientsScored,
    Clipped,
    Covered,
    Defended,
    Drifted,
    Ended,
    Evaluated,
    Event,
    GroupsScored,
    Imitated,
    Iterated,
    Masked,
    Orchestrated,
    Placed,
    PseudoLabelled,
    Redirected,
    Routed,
    Saturated,
    Sent,
    Started,
    Steered,
    Stepped,
    Truncated,
    Unlearned,
    Weighted,
)
from lab.models.lora import LoRA
from lab.probes.fairness import histogram, spread
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from tests.support import ROOT
from widgets import (
    Board,
    Grid,
    Matrix,
    bytes_sent,
    calendar,
    calendars,
    losses,
)
from widgets.colours import through
from widgets.graphs import Dot, Graph, Link
from widgets.pictures import MAX_POINTS, Band, Bars, Lines, Note, Picture, Series, bundle
from widgets.timelines import Calendar, Marks


def made_up(period: int, steps: int = 40, num_bytes: int = 1000) -> Columns:
    """A run of two workers that send everything every ``period`` steps."""
    recipe = Recipe.of("diloco", [f"steps={steps}", "num_workers=2"])
    columns = Columns()
    columns.add(Started(1, recipe.to_dict(), 10, [10, 10], 64, 0.5, 1.0, {"threads": 2}))
    for t in range(1, steps + 1):
        columns.add(Stepped(t, [5 - t / 20, None if t == 3 else 5.2 - t / 20], 1.0, 0.1))
        if t % period == 0:
            columns.add(Sent(t, "all_reduce", "params", (0, 1), {"mlp": num_bytes, "norm": 24}))
        if t % 10 == 0:
            columns.add(Evaluated(t, 5 - t / 20, 0.0))
    columns.add(Ended(steps, "done", ""))
    return columns


RUNS = {"often <&>": made_up(1), "rarely": made_up(20)}


PICTURES = {
    "losses": losses(RUNS, "steps"),
    "per byte": losses(RUNS, "bytes"),
    "per second": losses(RUNS, "seconds", network=Network(bits_per_second=1e4)),
    "per token": losses(RUNS, "tokens"),
    "bytes": bytes_sent(RUNS),
    "calendar": calendar(RUNS["rarely"].ledger.records, 40),
    "calendars": calendars({n: r.ledger.records for n, r in RUNS.items()}, 40),
    "empty lines": Lines("Nothing yet?", "x", "y", []),
    "one point": Lines("One?", "x", "y", [Series("a", [1], [2])], log_x=True, log_y=True),
    "not a number": Lines("Gaps?", "x", "y", [Series("a", [1, 2, 3], [float("nan"), 2, float("inf")])]),
    "bands": Lines(
        "Between?",
        "x",
        "y",
        [Series("middle", [1, 2, 3, 4], [2, 3, 3, 4])],
        bands=[
            Band([1, 2, 3, 4], [1, 2, float("nan"), 3], [3, 4, 9, 5]),
            Band([1, 2, 3, 4], [-2, 2, 2.5, 3.5], [2.5, 3.5, 3.5, 4.5], colour=1, strength=0.3),
            Band([1], [float("nan")], [1]),
        ],
    ),
    "empty bars": Bars("None?", "x", [], [], []),
    "empty calendar": Calendar("Never?", "step", ["params"], [Marks(0, "params", [])], 10),
    "bars and strokes": Calendar(
        "Who?",
        "step",
        ["w0", "w1"],
        [
            Marks(0, "up", [1, 8], to=[5, 10]),
            Marks(1, "up", [1], to=[10]),
            Marks(1, "sends <&>", [4, 8], colour=1, lane=(0, 0.5)),
            Marks(1, "planned", [9], colour=1, faint=True, lane=(0, 0.5)),
        ],
        10,
        now=8,
    ),
    "graph": Graph(
        "Linked <&>?",
        "width: how much",
        [Dot(0.5, 0, "a <top>", 1.0, ["a", "1"]), Dot(0.2, 1, "low", 2.0, ["<low>"], True), Dot(0.8, 1, "unknown")],
        [Link("up", [(0.5, 0), (0.2, 1)], 3.0), Link("across", [(0.2, 1), (0.5, 0.7), (0.8, 1)], 1.5, 3, 1)],
        "loss",
    ),
    "graph without links": Graph("Alone?", "", [Dot(0.5, 0, "alone")], [], "loss"),
}


def routing(
    layers: int = 4,
    experts: int = 8,
    workers: int = 4,
    holders: int = 2,
    looks: int = 64,
    every: int = 10,
    *,
    mode: str = "B",
    down: tuple[int, ...] = (),
    moves: bool = False,
    seed: int = 0,
) -> Iterator[Event]:
    """A made-up run of a mixture of experts that settles: gates sharpen, churn and drift fall, one expert dies.

    In mode A a router knows only the experts of its worker; in mode B it knows all, and may choose one that is not there.
    Workers in ``down`` miss the third and fourth look. ``moves`` deals the experts anew in mid-run.
    """
    rng = np.random.default_rng(seed)
    recipe = Recipe.of(
        "diloco", [f"steps={max(1, looks * every)}", f"num_workers={workers}", "schedule.warmup=0"]
    ).to_dict()
    yield Started(VERSION, recipe, 10, [10] * workers, 4096, None, 1.0, {"threads": 2})
    place = _deal(rng, layers, experts, workers, holders, mixed=False)
    yield Placed(0, place, 0)
    logits = rng.normal(0, 0.9, (layers, experts))
    goal = logits * 0.25 + rng.normal(0, 0.15, logits.shape)
    goal[-1, min(5, experts - 1)] = -7
    slots, steps = 2 * 2048, []
    for look in range(looks):
        step = (look + 1) * every
        if look:
            yield Stepped(step - 1, [2.0] * workers, 1.0, 0.01)
        if moves and look == looks // 2:
            place = _deal(rng, layers, experts, workers, holders, mixed=True)
            yield Placed(step, place, layers * experts)
        logits += 0.12 * (goal - logits) + rng.normal(0, 0.05, logits.shape)
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        absent = 1 - holders / workers
        load_WLE: list[list[list[int | None]] | None] = []
        ghosts_WL: list[list[float] | None] = []
        entropy_WL: list[list[float] | None] = []
        for w in range(workers):
            if w in down and look in (2, 3):
                load_WLE.append(None), ghosts_WL.append(None), entropy_WL.append(None)
                continue
            has = np.array([[w in place[k][e] for e in range(experts)] for k in range(layers)])
            mine = np.where(has | (mode == "B"), share, 0)
            mine = mine / mine.sum(1, keepdims=True)
            load = np.stack([rng.multinomial(slots, row) for row in mine])
            known = has | (mode == "B")
            load_WLE.append(
                [[int(v) if k else None for v, k in zip(*row, strict=True)] for row in zip(load, known, strict=True)]
            )
            noise = rng.normal(0, 0.02, layers) + 0.15 * np.exp(-look / 9)
            ghosts_WL.append((np.clip(absent + noise, 0, 1) if mode == "B" else np.zeros(layers)).round(4).tolist())
            even = -(share * np.log(share)).sum(1) / np.log(experts)
            entropy_WL.append((even - 0.06 * look / looks + rng.normal(0, 0.006, layers)).clip(0, 1).tolist())
        agreed = np.stack([rng.multinomial(slots, row) for row in share])
        fall = 0.62 * np.exp(-look / 14) + 0.04
        churn = (fall * (1 + 0.25 * np.arange(layers) / layers) + rng.normal(0, 0.015, layers)).clip(0, 1)
        drift = (0.05 + 0.3 * np.exp(-look / 20)) * np.exp(rng.normal(0, 0.15, (layers, experts)))
        yield Routed(
            step,
            load_WLE,
            ghosts_WL,
            entropy_WL,
            agreed.tolist(),
            [None] * layers if look == 0 else churn.tolist(),
            [[None if holders == 1 or look == 0 else float(v) for v in row] for row in drift],
        )
        steps.append(step)
    if steps:
        overlap = [
            [1 - 0.6 * np.exp(-3 * k / looks) * (1 - k / looks) ** 0.5 for _ in range(layers)] for k in range(looks)
        ]
        overlap = [[float(min(1, v + 0.03 * i * (1 - v))) for i, v in enumerate(row)] for row in overlap]
        yield Saturated(steps[-1], steps, [*overlap[:-1], [1.0] * layers])
    yield Ended(looks * every, "done", "")


def _deal(
    rng: np.random.Generator, layers: int, experts: int, workers: int, holders: int, *, mixed: bool
) -> list[list[list[int]]]:
    """Every expert on so many workers, in turn; ``mixed`` deals each layer in an order of its own."""
    orders = [rng.permutation(experts) if mixed else np.arange(experts) for _ in range(layers)]
    return [[sorted((int(o[e]) + j) % workers for j in range(holders)) for e in range(experts)] for o in orders]


TABLES: dict[str, Picture] = {
    "table": Grid("Who?", "worker", ["E0", "E1"], ["w0", "w1", "w2"], [[1, 0, 0.5], [0, 1, 1]]),
    "512 rows": Grid("Who?", "worker", [f"layer {k}" for k in range(512)], ["w0", "w1"], np.eye(2)[[0, 1] * 256]),
    "700 columns": Matrix("When?", "step", ["a"], list(range(700)), [list(range(700))], "unit"),
    "gaps": Matrix("Gaps?", "step", ["a", "b"], [1, 2], [[None, 1.0], [float("nan"), 2.0]], "unit"),
    "nothing": Matrix("Nothing?", "step", [], [], [], "unit"),
    "bands": Matrix(
        "Bands?", "step", list("abc"), [1], [[0.0], [1.0], [9.0]], "unit", high=1, bands=[("x", 1), ("y", 2)]
    ),
    "words": Note("What <happened>?", "A long story. " * 30),
}


def panels(picture: Picture) -> list[Picture]:
    return list(picture.pictures) if isinstance(picture, Board) else [picture]


class Place:
    """What a notebook was asked to show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str):
        self.shown: list[tuple[str, dict[str, Any]]] = []
        self.changed: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(widgets.view, "surroundings", lambda: where)
        monkeypatch.setattr(widgets.view, "display", self._to(self.shown))
        monkeypatch.setattr(widgets.view, "update_display", self._to(self.changed))

    def _to(self, outputs: list[tuple[str, dict[str, Any]]]) -> Callable[..., None]:
        return lambda data, *, raw, display_id, metadata=None: outputs.append((display_id, data))


RANKS = (4, 2, 1)


SAMPLES = (2, 1, 1)


ROUND = 5  # local steps


def federation(rounds: int = 4, absent: tuple[int, ...] = (1, 2), scores: bool = True) -> Iterator[Event]:
    """Clients of rank 4, 2 and 1; the first stays away from the rounds in ``absent``, so that nobody covers ranks 3-4.

    Every client fetches 10 bytes for each of its ranks and hands in as much, but for those that stay away.
    """
    yield Started(VERSION, Recipe(num_workers=3, lora=LoRA(ranks=RANKS)).to_dict(), 9, [9] * 3, 8, None, 1.0, {})
    last = [0, 0, 0]
    for k in range(rounds):
        t, up = (k + 1) * ROUND, [w for w in range(3) if w or k not in absent]
        for w in up:
            yield Sent(t - ROUND + 1, "broadcast", "params", (w,), {"ranks 1-1": 10, "other": 10 * (RANKS[w] - 1)})
        yield Stepped(t, [1.0] * 3, 1.0, 0.1)
        for w in up:
            yield Sent(t, "gather" if k % 2 else "reduce", "params", (w,), {"all": 10 * RANKS[w]})
        reach = [[w for w in up if RANKS[w] >= high] for high in (1, 2, 4)]
        mass = [sum(SAMPLES[w] for w in workers) / sum(SAMPLES[w] for w in up) for workers in reach]
        yield Covered(t, [1, 2, 4], reach, mass, [t - x for x in last], 0.5 / t)
        last = [t if workers else x for workers, x in zip(reach, last, strict=True)]
        yield Evaluated(t, 2.0 - k / 10, 0.1)
        losses = [3.0 - k, 2.0 - k / 2, 2.5]
        found = [{"accuracy": 0.1 * (m + k)} if scores else {} for m in range(3)]
        areas = {"loss": 2.0 - k / 4} | ({"accuracy": 0.1 + k / 10} if scores else {})
        yield Truncated(t, [1, 2, 4], losses, found, areas, [0.7, 0.2, 0.1], [0.5, 0.3, 0.2])
    yield Ended(rounds * ROUND, "done", "")


def by_client(looks: int = 6, clients: int = 40, personal: bool = True, every: int = 10) -> Iterator[Event]:
    """A made-up federation of four rows in which some clients are worse off, and most gain by what they keep.

    In look k the clients 4·k … 4·k + 3 take part, modulo all.
    """
    rows = min(4, clients)
    recipe = Recipe(num_workers=rows, steps=max(1, looks * every), clients={"num": clients, "held_out": 0.2})
    yield Started(VERSION, recipe.to_dict(), 10, [10] * rows, 64, None, 1.0, {})
    rng = np.random.default_rng(0)
    ease, own = rng.beta(5, 2, clients), rng.normal(0.06, 0.08, clients)
    for k in range(looks):
        yield Stepped(every * (k + 1), [2.0] * rows, 1.0, 0.01)
        accuracy = ease * (1 - 0.5 * np.exp(-k / 3))
        scores = {"loss": 2.3 * (1 - accuracy) + 0.1, "accuracy": accuracy}
        better = {"loss": scores["loss"] - own, "accuracy": (accuracy + own).clip(0, 1)} if personal else {}
        gains = {n: (scores[n] - x) * (1 if n == "loss" else -1) for n, x in better.items()}
        here = sorted((rows * k + w) % clients for w in range(rows))
        yield ClientsScored(
            every * (k + 1),
            {n: spread(x, n == "loss") for n, x in scores.items()},
            {n: spread(x, n == "loss") for n, x in better.items()},
            {n: spread(x, False) | {"share": float((x > 0).mean())} for n, x in gains.items()},
            {n: histogram(x, better.get(n)) for n, x in scores.items()},
            here,
            {n: x[here].tolist() for n, x in scores.items()},
            {n: x[here].tolist() for n, x in better.items()},
        )
    yield Ended(looks * every, "done", "")


def compared(
    looks: int = 1, clients: int = 40, ways: tuple[str, ...] = ("fine_tuning", "ewc"), alone: bool = True
) -> Iterator[Event]:
    """A made-up federation of which most clients are worse off than alone, fewer as training goes on, and fewer still when they adapt."""
    rows = min(4, clients)
    recipe = Recipe(num_workers=rows, steps=max(1, looks * 10), clients={"num": clients, "held_out": 0.2})
    yield Started(VERSION, recipe.to_dict(), 10, [10] * rows, 64, None, 1.0, {})
    rng = np.random.default_rng(0)
    own, noise = rng.beta(6, 3, clients), rng.normal(0, 0.1, clients)
    for k in range(looks):
        yield Stepped(10 * (k + 1), [2.0] * rows, 1.0, 0.01)
        accuracy = {way: (own - 0.05 / (k + 1) + 0.06 * i + noise).clip(0, 1) for i, way in enumerate(("none", *ways))}
        both = {way: {"loss": (1.5 - x).tolist(), "accuracy": x.tolist()} for way, x in accuracy.items()}
        local = {"loss": (1.5 - own).tolist(), "accuracy": own.tolist()} if alone else {}
        yield Adapted(10 * (k + 1), 20, 50 * alone, [*range(clients)], both.pop("none"), both, local)
    yield Ended(looks * 10, "done", "")


def masked(rounds: int = 6, every: int = 10, alone: tuple[int, ...] = ()) -> Iterator[Event]:
    """A made-up federation of ten rows with 1,000 weights: clients agree more and more; in the rounds ``alone`` one hands in."""
    yield Started(
        VERSION, Recipe(num_workers=10, steps=max(1, rounds * every)).to_dict(), 10, [10] * 10, 64, None, 1.0, {}
    )
    before = 1000
    for k in range(rounds):
        t = every * (k + 1)
        yield Stepped(t, [2.0] * 10, 1.0, 0.01)
        kept, iou = 100 + 400 // (k + 1), 1 - 0.4 / (k + 1)
        between = {} if k in alone else {"mean": iou, "least": iou - 0.1 / (k + 1)}
        yield Masked(
            t,
            1000,
            1 if k in alone else 10,
            100.0,
            50 // (k + 1),
            before,
            kept,
            between,
            {"mean": iou, "least": iou},
            kept / before,
        )
        before = kept
    yield Ended(rounds * every, "done", "")


def iterated(looks: int = 6, every: int = 10) -> Iterator[Event]:
    """A made-up model trained with two iterations: its losses fall, more iterations are worse, and its state settles."""
    yield Started(
        VERSION, Recipe(num_workers=4, steps=max(1, looks * every)).to_dict(), 10, [10] * 4, 64, None, 1.0, {}
    )
    for k in range(looks):
        t, loss = every * (k + 1), 2 + 1 / (k + 1)
        yield Stepped(t, [2.0] * 4, 1.0, 0.01)
        losses = [loss + 0.2, loss, loss + 0.1, None if k == looks - 1 else loss + 0.3]
        yield Iterated(
            t, 2, [1, 2, 4, 8], losses, [0.5**i for i in range(8)], [1 - 0.5**i for i in range(1, 8)] + [1.0]
        )
    yield Ended(looks * every, "done", "")


def audited(counts: tuple[int, ...] = (0, 5, 25, 200), federated: bool = True) -> Iterator[Event]:
    """A made-up audit of three authors: imitation passes more often with more messages, by a signature never."""
    verifiers, step = {"people only": 1.0, "with imitations": 0.5, "signature": 0.0}, 1
    yield CellDone(step, "base", 1.0)
    for author in range(3):
        step += 1
        yield Defended(step, author, dict.fromkeys(verifiers, 0.9), dict.fromkeys(verifiers, 0.05), 0.3, 2.0)
        yield CellDone(step, f"defences of author {author}", 1.0)

    def imitated(author: int, num: int, way: str, share: float, federation: str = "", rank: int = 0) -> Imitated:
        texts = {v: [int(i < round(20 * share * w)) for i in range(20)] for v, w in verifiers.items()}
        detected = {"log-likelihood": [0.9 - 0.4 * share, 0.3], "watermark, at the service": [0.8, 0.2]}
        similar = {"bleu": share / 2, "chrf": share, "divergence": 0.3 - share / 4, "copied": share / 3}
        alone = not federation
        return Imitated(
            step, author, num, way, 0, texts, detected if alone else {}, similar if alone else {}, 1.5, federation, rank,
            None if way == "masked" else 0.5,
        )  # fmt: skip

    for num in counts:
        for way in ("lora", "full") if num else ("base",):
            for author in range(3):
                step += 1
                yield imitated(author, num, way, min(1.0, 0.05 + num / 50 + 0.05 * author))
                yield CellDone(step, f"author {author}, {num} messages, {way}", 1.0)
    for way, rank, share in (
        (("shared", 2, 0.4), ("shared", 4, 0.5), ("own", 0, 0.9), ("masked", 0, 0.0)) if federated else ()
    ):
        for author in range(3):
            yield imitated(author, 200, way, share, "prelort, plain", rank)
    if federated:
        yield CellDone(step + 1, "federation: prelort, plain", 1.0)


def weighed(looks: int = 6, every: int = 10, scored: bool = True) -> Iterator[Event]:
    """A made-up run by likeness: the target comes to count more, noise less; without scores: by loss, say."""
    yield Started(
        VERSION, Recipe(num_workers=4, steps=max(1, looks * every)).to_dict(), 10, [10] * 4, 64, None, 1.0, {}
    )
    for k in range(looks):
        t, far = every * (k + 1), 1 - 1 / (k + 1)
        yield Stepped(t, [2.0] * 4, 1.0, 0.01)
        counts = [1 + (i + k) % 7 for i in range(20)]
        yield Weighted(
            t,
            "adapt" if scored else "lin_upper",
            ["noise", "target", "away"],
            sum(counts),
            [sum(counts) - 3, 3, 0],
            [0.5 - 0.4 * far, 0.5 + 0.4 * far, None],
            [-0.1, 0.8, None] if scored else [None] * 3,
            0.5 - 0.3 * far,
            1 - 0.6 * far,
            0.1 if scored else None,
            0.2 if scored else None,
            {"ends": [-1.0, 1.0], "num": counts} if scored else {},
            {"ends": [0.1, 0.9], "num": counts[::-1]},
        )
    yield Ended(looks * every, "done", "")


def orchestrated(updates: int = 6, agents: tuple[int, ...] = (5, 10)) -> Iterator[Event]:
    """A made-up policy that learns to leave edges out, and three plans that answer what is held out."""

    def event(step: int, plan: str, num: int, learning: bool, p: float) -> Orchestrated:
        most, heard = num * (num - 1) // 2, round(32 * p * num * (num - 1) / 2)
        return Orchestrated(
            step,
            plan,
            learning,
            num,
            questions=32,
            right=20 + num // 5,
            right_drafts=18,
            calls=32 * num + heard,
            tokens_in=100 * (32 * num + heard),
            tokens_out=50 * (32 * num + heard),
            edges=heard,
            empty=int(heard < most),
            answers=32 * num,
            right_before=12 * num,
            rescued=round(5 * num * p),
            harmed=num // 5,
            probability_RR=[[p / (j - k) if j > k else 0.0 for j in range(num)] for k in range(num)],
            reward=0.5 if learning else None,
        )

    for u in range(1, updates + 1):
        yield event(u, "nexa", 10, True, 0.2 + 0.7 / u)
        if u % 10 == 0 or u == updates:
            yield CellDone(u, f"updates to {u}", 0.1)
    for plan, p in (("nexa", 0.3), ("parallel", 0.0), ("full", 1.0)) if updates else ():
        for num in agents:
            yield event(updates, plan, num, False, p)
            yield CellDone(updates, f"{plan} with {num}", 0.1)
    yield Ended(updates, "done", "")


def levelled(
    level: str, seed: int = 0, looks: int = 4, *, groups: bool = False, epsilon: float | None = None
) -> Iterator[Event]:
    """A made-up run at a level of privacy: all data in one place (empty), or a split; with models of groups, or with noise."""
    clients = 12 if level else 1
    fields = {
        "num_workers": clients,
        "split": level or "iid",
        "seed": seed,
        "steps": max(1, looks * 10),
        "data": "sensors",
    }
    recipe = Recipe.of(fields | {"model": "conv1d"})
    yield Started(VERSION, recipe.to_dict(), 10, [10] * clients, 64, None, 1.0, {})
    for k in range(looks):
        t, right = 10 * (k + 1), 0.9 - 0.05 * level.count("+") - 0.5 / (k + 1) ** 2 + 0.01 * seed
        yield Stepped(t, [2.0] * clients, 1.0, 0.01)
        if epsilon is not None:
            yield Clipped(t, k + 1, clients, 0.5, [0.1, 0.2, 0.3, 0.4, 0.5], 0.1, epsilon * (k + 1), 1e-5)
        yield Evaluated(t, 1 - right, 0.0, {"accuracy": right})
        if groups:
            full = {"general": {"accuracy": right}, "ensemble": {"accuracy": right + 0.03}}
            native = {
                f"sensor-{m}": {"general": {"accuracy": right - 0.2}, "group": {"accuracy": right - 0.1 * m}}
                for m in (0, 1)
            }
            yield GroupsScored(t, {"sensor-0": [0], "sensor-1": [1]}, full, native)
    yield Ended(looks * 10, "done", "")


def branched(looks: int = 6, *, key: bool = True, held_out: bool = True) -> Iterator[Event]:
    """A made-up tree: two federations of two workers each; losses fall, and attention moves away from one's own key layers."""
    yield Started(VERSION, Recipe(num_workers=4, steps=max(1, looks * 10)).to_dict(), 10, [10] * 4, 64, None, 1.0, {})
    for k in range(looks):
        t = 10 * (k + 1)
        yield Stepped(t, [2.0] * 4, 1.0, 0.01)
        yield Sent(t, "reduce", "params", (0, 1), {"mlp": 1000})
        yield Sent(t, "gather", "params", (0, 2), {"mlp": 1000}, 1)
        own = 0.9 - 0.5 * k / looks
        rest = {"parent": (1 - own) / 2, "0": (1 - own) / 4, "1": (1 - own) / 4}
        node = {"blocks.1": {"own": own} | rest}
        yield Branched(
            t,
            ["root", "A", "B"],
            ["", "root", "root"],
            ["A", "A", "B", "B"],
            [2.0 - 0.1 * k, 1.5, 1.75] if held_out else [None] * 3,
            [1.0, 1.25, 1.5, 1.75 - 0.1 * k] if held_out else [None] * 4,
            {"A": node, "B": node} if key else {},
            [{"blocks.1": [own, 1 - own, 0.0]} if key else {} for _ in range(4)],
            {"A": {"blocks.1": [["B", "2"]]}, "B": {"blocks.1": []}} if key else {},
        )
    yield Ended(looks * 10, "done", "")


def endless(steps: int, num_workers: int = 4) -> Iterator[Event]:
    """A run that sends in every step, made up."""
    rng = np.random.default_rng(0)
    recipe = Recipe.of("ddp", [f"steps={steps}", f"num_workers={num_workers}", "schedule.warmup=0"]).to_dict()
    yield Started(1, recipe, 10, [10] * num_workers, 64, None, 1.0, {"threads": 2})
    noise = rng.normal(0, 0.1, (steps, num_workers))
    for t in range(1, steps + 1):
        yield Stepped(t, (2 + 3 / (1 + t / 1000) + noise[t - 1]).tolist(), 1.0, 0.01)
        yield Sent(t, "all_reduce", "grads", tuple(range(num_workers)), {"mlp": 1000})
        if t % 10 == 0:
            yield Drifted(t, [0.1] * num_workers, [None] * num_workers)
        if t % 100 == 0:
            yield Evaluated(t, 2 + 3 / (1 + t / 1000), 0.0)
    yield Ended(steps, "done", "")


def check_well_formed(picture: Picture) -> None:
    """Plotly's own validation takes the figure, the SVG is XML, all bear the titles, and all of it is strict JSON."""
    forms = bundle(picture)
    drawn = go.Figure(picture.plotly())
    words = [e.text for e in ET.fromstring(forms["image/svg+xml"]).iter() if e.text]
    spec = picture.spec()
    json.dumps([forms, spec], allow_nan=False)
    said = [spec["title"], *(panel["title"] for panel in spec.get("panels", []))]
    assert said[0] == picture.title == drawn.layout.title.text
    for title in [picture.title, *(p.title for p in panels(picture))]:
        assert title in words
        assert title in said
        assert title in forms["text/plain"]


def _around(there: list[Any], back: list[Any], known: list[int]) -> list[float]:
    """Of each run of known places: one line forwards and the other backwards."""
    out: list[float] = []
    for piece in np.split(known, 1 + np.flatnonzero(np.diff(known) > 1)):
        out += [there[k] for k in piece] + [back[k] for k in piece[::-1]]
    return out


def check_forms_agree(picture: Picture) -> None:
    """Canvas, plotly and SVG have the same scales, ticks, legends, lines and cells."""
    for p in panels(picture):
        spec, figure = p.spec(), p.plotly(306)
        words = [e.text for e in ET.fromstring(p.svg(306)).iter() if e.text]
        if spec["kind"] == "lines":
            for axis in ("x", "y"):
                assert figure["layout"][f"{axis}axis"]["range"] == [spec[axis]["low"], spec[axis]["high"]]
                assert figure["layout"][f"{axis}axis"]["title"]["text"] == spec[axis]["label"]
                assert {label for _, label in spec[axis]["ticks"]} <= set(words)
                if spec[axis]["unit"]:
                    assert figure["layout"][f"{axis}axis"]["ticktext"] == [label for _, label in spec[axis]["ticks"]]
                    assert all(label.endswith("B") for _, label in spec[axis]["ticks"])
            bands, lines = figure["data"][: len(spec["bands"])], figure["data"][len(spec["bands"]) :]
            assert [t["y"] for t in lines] == [s["y"] for s in spec["series"]]
            for trace, band in zip(bands, spec["bands"], strict=True):
                assert trace["line"]["color"] == band["colour"]
                assert trace["fillcolor"] == through(band["colour"], band["strength"])
                known = [k for k, both in enumerate(zip(band["low"], band["high"], strict=True)) if None not in both]
                assert [v for v in trace["x"] if v is not None] == pytest.approx(
                    _around(band["x"], band["x"], known), rel=1e-4
                )
                assert [v for v in trace["y"] if v is not None] == pytest.approx(
                    _around(band["low"], band["high"], known), rel=1e-4
                )
                assert f'fill="{band["colour"]}" fill-opacity="{band["strength"]:g}"' in p.svg(306) or not known
            assert [t["name"] for t in figure["data"] if t["showlegend"]] == [
                s["name"] for s in spec["series"] if not s["faint"]
            ]
            drawn = [s for s in spec["series"] if any(y is not None and y > 0 for y in s["y"]) or not spec["y"]["log"]]
            drawn = [s for s in drawn if any(y is not None for y in s["y"])]
            assert p.svg(306).count("l0 0") >= len(drawn)
            assert all(len(s["x"]) == len(s["y"]) <= MAX_POINTS for s in spec["series"])
        if spec["kind"] == "cells":
            (trace,) = figure["data"]
            assert (trace["z"], trace["y"], trace["x"]) == (spec["values"], spec["rows"], spec["columns"])
            assert (trace["zmin"], trace["zmax"]) == (spec["scale"]["low"], spec["scale"]["high"])
            assert [c for _, c in trace["colorscale"]] == spec["colours"]
            known = sum(v is not None for row in spec["values"] for v in row)
            strokes = "".join(re.findall(r'<path stroke="[^"]+" d="([^"]+)"/>', p.svg(306)))
            assert round(sum(float(n) for n in re.findall(r"h([\d.]+)", strokes)), 6) == pytest.approx(known, rel=0.2)
            assert {name for _, name in [*spec["row_ticks"], *spec["column_ticks"]]} <= set(words)
            assert figure["layout"]["yaxis"]["ticktext"] == [name for _, name in spec["row_ticks"]]
        if spec["kind"] == "graph":
            check_graph(spec, figure, p.svg(306), words)


def check_graph(spec: dict[str, Any], figure: dict[str, Any], svg: str, words: list[str]) -> None:
    """The same links, dots, labels and legend in three forms."""
    lines = [t for t in figure["data"] if t["mode"] == "lines"]
    of_links = [[*(x for x, _ in link["points"]), None] for link in spec["links"]]
    assert sorted(len(x) for x in of_links) == sorted(
        len(part) + 1 for t in lines for part in "".join("|" if x is None else "." for x in t["x"]).split("|")[:-1]
    )
    assert sorted(v for x in of_links for v in x if v is not None) == sorted(
        v for t in lines for v in t["x"] if v is not None
    )
    assert {(link["colour"], link["width"]) for link in spec["links"]} == {
        (t["line"]["color"], t["line"]["width"]) for t in lines
    }
    assert svg.count('class="link"') == len(spec["links"])
    assert sorted(t["name"] for t in lines if t["showlegend"]) == sorted(entry["name"] for entry in spec["legend"])
    dots = [t for t in figure["data"] if t["mode"] != "lines"]
    labelled = [each for t in dots for each in zip(t["x"], t["y"], map(html.unescape, t["text"]), strict=True)]
    assert sorted(labelled) == sorted((d["x"], d["y"], "<br>".join(d["label"])) for d in spec["dots"])
    assert svg.count("<circle") == len(spec["dots"])
    drawn = {part for d in spec["dots"] for part in d["label"]} | {entry["name"] for entry in spec["legend"]}
    assert drawn - {""} <= set(words)
    assert spec["x"] in " ".join(words)
    assert re.findall(r'<circle [^>]*fill="([^"]+)"', svg) == [d["colour"] for d in spec["dots"]]


def pseudo_labelled(looks: int = 6, every: int = 8, latents: bool = True) -> Iterator[Event]:
    """A made-up federation without labels: more and more are right, two of five examples get none at first, and latents lie on a circle."""
    yield Started(
        VERSION, Recipe(num_workers=4, steps=max(1, looks * every)).to_dict(), 10, [10] * 4, 64, None, 1.0, {}
    )
    for k in range(looks):
        t = every * k or 1
        yield Stepped(t, [2.0] * 4, 1.0, 0.01)
        around = [(round(math.cos(i), 3), round(math.sin(i), 3)) for i in range(40)]
        points = [[x, y, -1 if i % 5 > 2 + k else i % 3, (i + (i > 35)) % 3] for i, (x, y) in enumerate(around)]
        anchors = [[*around[i], i % 3] for i in range(0, 40, 5)]
        labelled = min(100, 60 + 20 * k)
        yield PseudoLabelled(
            t,
            100,
            labelled,
            labelled - 10,
            60 + 5 * k,
            1 / (k + 1),
            points if latents else [],
            anchors if latents else [],
            0.75 if latents else 0.0,
        )
    yield Ended(looks * every, "done", "")


def unlearned(
    seeds: int = 2, parts: Sequence[str] = ("lunar", "rival", "attack", "sequence", "federation")
) -> Iterator[Event]:
    """A made-up study of unlearning: LUNAR forgets, rivals forget more than they should, learning again brings some of it back."""
    names = {
        "lunar": ["closed form", "AdamW"],
        "rival": ["gradient_ascent", "refusal"],
        "attack": ["skip the block", "5 learned again"],
        "sequence": ["1", "2", "3"],
        "federation": ["average", "exact"],
    }
    for seed in range(seeds):
        yield Unlearned(
            0, seed, "before", "before", None, {"recall_forget": 1.0, "recall_retain": 0.99, "deviation": 100.0}
        )
        yield Steered(1, seed, [0.2, 0.9, 0.8], [0.1, 0.05, 0.1 * seed], 1)
        for part in parts:
            for k, name in enumerate(names[part]):
                forget, retain = 0.1 * k + 0.02 * seed, 0.98 - 0.3 * k
                deviation = 100 * math.hypot(forget, 1 - retain)
                scores = {
                    "recall_forget": forget,
                    "recall_retain": retain,
                    "deviation": deviation,
                    "bytes_up": 1e5 * (k + 1),
                }
                yield Unlearned(k, seed, part, name, 1, scores)
        sets = {
            name: [[place + math.cos(i), math.sin(i) - place] for i in range(9)]
            for place, name in enumerate(("forget", "retain", "reference"))
        }
        yield Redirected(2, seed, 1, sets, sets | {"forget": sets["reference"]})


def every_view() -> list[widgets.View]:
    """One of each view of the lab, at rest, with enough in it to be looked at."""
    w, turned = widgets, list(RunFolder(ROOT / "notebooks/stored/turned").events())
    over_steps = (w.Losses, w.CommunicationBudget, w.SyncCalendar, w.Drift, w.Workers, w.Knobs)
    views: list[widgets.View] = [view.of(turned) for view in over_steps]
    views += [w.RoutingStability.of(routing()), w.RankSegments.of(federation()), w.Fairness.of(by_client())]
    views += [w.MaskAgreement.of(masked()), w.Underperformers.of(compared()), w.Iterations.of(iterated())]
    views += [w.SampleWeights.of(weighed()), w.AgentGraph.of(orchestrated()), w.Unlearning.of(unlearned())]
    views += [w.StyleLeak.of(audited()), w.PseudoLabels.of(pseudo_labelled()), w.FederationTree.of(branched())]
    views += [w.PrivacyLevels.of(levelled("by:person+sensor", groups=True))]
    known = (it for name in w.__all__ if isinstance(it := getattr(w, name), type) and issubclass(it, w.View))
    assert {*known} - {w.View} == {*map(type, views)}
    return views
