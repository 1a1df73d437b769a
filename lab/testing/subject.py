"""A method on something small: recipes for it, and benches that drive it step by step and say where two of them differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data import Corpus
from lab.data.tasks.task import Examples
from lab.data.training_data import TrainingData
from lab.engine.comm import Communicator
from lab.engine.stack import Stack
from lab.engine.state import State
from lab.engine.world import Named, OneProcess, World
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.methods import Method, declared
from lab.methods.lora_factors import Adapters
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet, communicator
from lab.runs.data import labelled_of, shape_of, training_data
from lab.runs.trainer import Trainer
from lab.study import bench as driver
from lab.testing.report import Broken, NotApplicable

T = TypeVar("T")

# A perceptron with two groups of tensors, 40 numbers, on points in space: a step takes a few thousandths of a second.
SMALL: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [4], "activation": "tanh"},
    "data": "lab.testing.subject:Points",
    "num_workers": 3,
    "batch_size": 4,
    "steps": 6,
    "dtype": "float64",
    "eval_every": 0,
    "eval_windows": 4,
    "checkpoint_every": 0,
    "routing_every": 0,
}
OTHER = 100_000  # steps further on: batches that nobody else sees
MOST_STEPS = 200
Deal = Callable[[int, int], tuple[int, int]]  # of a worker and a local step: whose batch of which step it sees


@dataclass(frozen=True)
class Points:
    """A task: points in four dimensions, with four numbers to predict for each. Its score needs no library that takes long to import."""

    num_outputs: ClassVar[int] = 4

    @property
    def train(self) -> Examples:
        return _points(60)

    @property
    def held_out(self) -> Examples:
        return _points(20)

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(module(inputs), targets)

    def num_targets(self, targets: Tensor) -> int:
        return targets.numel()

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        with torch.no_grad():
            return {"mse": float(self.loss(module, examples.inputs, examples.targets))}


def _points(num: int) -> Examples:
    x = torch.randn(num, 4, generator=generator(0, "points", num), dtype=torch.float64)
    return Examples(x, torch.stack([x[:, 0] * x[:, 1], x.sin().sum(1), x[:, 2], x[:, 3].abs()], 1))


class Heard(Communicator):
    """Only one worker is heard: all that is averaged, gathered or collected is what it handed over.

    It is then as if it were alone; all others get to hear of it, and nobody of them.
    """

    def __init__(self, worker: int, *rest: Any):
        Communicator.__init__(self, *rest)
        self.worker = worker

    def mean(self, stack: Stack, state: str, *, participants: Sequence[bool] | None = None, **rest: Any) -> Stack:
        up = self.fleet.up if participants is None else participants
        if up[self.worker]:
            participants = [w == self.worker for w in range(self.fleet.num_workers)]
        return Communicator.mean(self, stack, state, participants=participants, **rest)

    def gather(self, stack: Stack, state: str) -> Named:
        return self._own(Communicator.gather(self, stack, state))

    def collect(self, tensors: Named, state: str, of: Stack, level: int = 0) -> Named:
        handed = Communicator.collect(self, tensors, state, of, level)
        return {w: named for w, named in handed.items() if w == self.worker} if level else self._own(handed)

    def _own(self, handed: Named) -> Named:
        return {w: named for w, named in handed.items() if w == self.worker} or handed


class Here(ThreadPoolExecutor):
    """No thread at all: what takes less time than to wake one is done where it is asked for."""

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        return map(fn, *iterables)


class Bench(driver.Bench):
    """A method that is driven step by step, with its ledger."""

    @property
    def records(self) -> list[Sent]:
        return self.comm.ledger.records


class Subject:
    """A method, and what it is tried on.

    Parameters
    ----------
    method
        its sync periods are shortened, so that a few steps see several rounds.
    changes
        fields of the recipe that it needs beside, for example ``{"lora": {"ranks": [2]}}``.
    corpus
        one that is there already, where the recipe reads text.
    """

    def __init__(self, method: Method, changes: Mapping[str, Any] | None = None, corpus: Corpus | None = None):
        self.method, self.corpus = shortened(method), corpus
        self.changes = SMALL | dict(changes or {})
        self.num_workers: int = self.changes["num_workers"]
        self.workers = range(self.num_workers)
        self._recipes: dict[int, Recipe] = {}
        periods = _periods(self.method)
        self.round = max(periods, default=1)  # local steps in which each state is synchronised once
        self.steps = min(MOST_STEPS, max(7, 2 * self.round + 1))

    def of(self, num_workers: int) -> Recipe:
        """The recipe for so many workers, made once."""
        if num_workers not in self._recipes:
            self._recipes[num_workers] = self.recipe(num_workers=num_workers)
        return self._recipes[num_workers]

    def recipe(self, **changes: Any) -> Recipe:
        """Of so many workers as it says; adapters get the ranks that were given, again from the first where there are more workers.

        Groups that are listed lose those who are not there, and whoever is in none is in the first.
        """
        fields = self.changes | changes
        lora = fields.get("lora") or {}
        ranks = lora.get("ranks") if isinstance(lora, Mapping) else lora.ranks
        if ranks and len(ranks) not in (1, fields["num_workers"]):
            lora = dict(lora) if isinstance(lora, Mapping) else vars(lora)
            fields["lora"] = lora | {"ranks": [ranks[w % len(ranks)] for w in range(fields["num_workers"])]}
        groups, workers = fields.get("groups"), range(fields["num_workers"])
        if isinstance(groups, list):
            known = [[c for c in some if c in workers] for some in groups]
            known[0] = known[0] + [c for c in workers if not any(c in some for some in groups)]
            fields["groups"] = [some for some in known if some]
        return Recipe.of(fields | {"method": self.method})

    def need_equal_workers(self) -> None:
        """Raises NotApplicable where workers do not all hold the same tensors."""
        bench = self.bench(dry=True)
        if any(len(b.everywhere) < self.num_workers for b in bench.state.fleet.layout.blocks):
            raise NotApplicable("workers hold different tensors")

    def trainer(self, recipe: Recipe) -> Trainer:
        trainer = Trainer(recipe, corpus=self.corpus)
        trainer.fleet._pool = Here()
        return trainer

    @cached_property
    def data(self) -> TrainingData:
        return training_data(self.of(self.num_workers), self.corpus)

    def bench(
        self,
        num_workers: int | None = None,
        *,
        deal: Deal | None = None,
        heard: int | None = None,
        dry: bool = False,
        world: World | None = None,
        schedule: Callable[[int], float] = lambda t: 1.0,
    ) -> Bench:
        """The method on a fresh fleet.

        Parameters
        ----------
        deal
            which worker sees what; None: each its own, where there are as many.
        heard
            the only worker that is heard; None: all.
        world
            the processes, where this is one of several.
        """
        deal = deal or (lambda worker, t: (worker % self.num_workers, t))
        recipe = self.of(num_workers or self.num_workers)
        num, device = recipe.num_workers, torch.device("meta" if dry else "cpu")
        experts, mine = recipe.experts, world.mine if world is not None else None
        fleet = build_fleet(recipe, shape_of(recipe, self.data), device, experts, mine, _no_file, self.data.loss)
        fleet._pool = Here()
        adapters = Adapters.of(recipe.lora, num, list(fleet.layout.place)) if recipe.lora.ranks else None
        samples_W = None if dry else [self.data.samples_W[deal(w, 1)[0]] for w in range(num)]
        served = declared(self.method).server
        state = State.of(fleet, schedule, experts, adapters, samples_W, served)
        state.private = recipe.privacy.of_run(recipe.seed)
        state.labelled = labelled_of(recipe, None if dry else self.data, fleet.device)
        here = world or OneProcess()
        comm = Heard(heard, fleet, {}, world) if heard is not None else communicator(recipe, fleet, {}, here)
        if world is not None:
            world.begin_(served)
        return Bench(self.method, state, batch=lambda w, t: self.data.batches.get(*deal(w, t)), comm=comm)


def _no_file(size: str) -> Any:
    raise RecipeError(f"start = {size!r}: what is tried on something small starts from its seed")


def shortened(method: Method, longest: int = 4, least: int = 8) -> Method:
    """The same method with periods of at most ``longest`` local steps, if one is above ``least``; different ones stay different.

    One that cannot be changed stays as it is.
    """
    periods = method.sync_every
    if max(_periods(method), default=0) <= least:
        return method
    if isinstance(periods, Mapping):
        rank = {p: min(longest, 2 + i) for i, p in enumerate(sorted(set(periods.values())))}
        short: Any = {name: rank[p] for name, p in periods.items()}
    else:
        short = min(3, longest)
    try:
        return dataclasses.replace(method, sync_every=short)  # type: ignore[type-var]
    except (TypeError, ValueError, RecipeError):
        return method


def _periods(method: Method) -> list[int]:
    periods = method.sync_every
    return list(periods.values()) if isinstance(periods, Mapping) else [] if periods is None else [periods]


# --- where two of them differ ------------------------------------------------------------------------------------------


def together(a: Bench, b: Bench, steps: int) -> Iterator[int]:
    """Local step by local step of both; after each of them its number."""
    for t in range(1, steps + 1):
        a.step()
        b.step()
        yield t


def cell(stack: Stack, name: str, worker: int) -> Tensor | None:
    """What a worker holds of a tensor, or what all agreed on; None where it does not hold it."""
    block = stack.layout.blocks[stack.layout.place[name][0]]
    if worker not in block.everywhere:
        return None
    if len(stack[name]) == 1 and len(block.holders) != 1:
        return stack[name][0]
    return stack.cell(name, worker)


def off(a: Tensor, b: Tensor, tolerance: float = 0.0) -> float:
    """How far two tensors are apart at most; 0 if they are equal within a tolerance, where not a number equals itself."""
    if a.shape != b.shape:
        return float("inf")
    if torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
        return 0.0
    return float((a - b).abs().max())


def difference(a: State, b: State, pairs: Iterable[tuple[int, int]], tolerance: float = 0.0, of: str = "both") -> str:
    """What is not the same at worker v of the one and worker w of the other, in words; empty if all is."""
    pairs = list(pairs)
    for kind, mine, theirs in (("local", a.local, b.local), ("shared", a.shared, b.shared)):
        if of not in ("both", kind):
            continue
        if mine.keys() != theirs.keys():
            (odd, *_) = sorted(mine.keys() ^ theirs.keys())
            return f"s.{kind}[{odd!r}] is there in one run and not in the other"
        for state, stack in mine.items():
            for name in stack.names():
                for v, w in pairs:
                    x, y = cell(stack, name, v), cell(theirs[state], name, w)
                    if x is not None and y is not None and (far := off(x, y, tolerance)):
                        return f"s.{kind}[{state!r}], tensor {name}, worker {v}: off by {far:.1e}"
    return ""


def rows(stacks: Mapping[str, Stack], worker: int) -> dict[tuple[str, str], Tensor]:
    """A copy of all that a worker holds, by state and name."""
    found = {}
    for state, stack in stacks.items():
        for name in stack.names():
            x = cell(stack, name, worker)
            if x is not None:
                found[state, name] = x.clone()
    return found


def unchanged(
    before: Mapping[tuple[str, str], Tensor],
    stacks: Mapping[str, Stack],
    worker: int,
    when: str,
    tolerance: float = 0.0,
) -> None:
    """Raises Broken where something of a worker has moved."""
    now = rows(stacks, worker)
    for (state, name), x in before.items():
        if far := off(x, now[state, name], tolerance):
            raise Broken(f"{state!r}, tensor {name} of worker {worker} moves by {far:.1e} {when}")


def same_ledgers(real: Sequence[Sent], other: Sequence[Sent], what: str) -> None:
    """Raises Broken at the first record that is not the same."""
    for one, two in zip(real, other, strict=False):
        if one != two:
            raise Broken(f"{what}: {in_words(one)}, and there {in_words(two)}")
    if len(real) != len(other):
        more = (real if len(real) > len(other) else other)[min(len(real), len(other))]
        raise Broken(f"{what}: {in_words(more)} is in one ledger and not in the other")


def in_words(record: Sent) -> str:
    sizes = sum(record.payload_bytes.values())
    return (
        f"in step {record.step} {record.op} of {record.state} by workers {list(record.workers)}, {sizes:,} bytes each"
    )
