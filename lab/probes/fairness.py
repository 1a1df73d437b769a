"""Who gains, who loses: the agreed model on examples that each client holds out of its own, and with what it keeps for itself.

Legend: C clients that are looked at, E their examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.splits import cut
from lab.data.training_data import HeldOut
from lab.engine.stack import Stack
from lab.events import BINS, PERCENTILES, ClientsScored, lower_is_better
from lab.ground.seeds import numpy_generator
from lab.methods import declared
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Agreed, Probe, Setup

AT_ONCE = 4096  # examples that are gathered together
KEPT_AT_ONCE = 256  # clients whose own parameters are read together
Own = Mapping[int, Mapping[int, Tensor]]  # a row ``[P]`` of each block that is personal, by client
Table = dict[str, np.ndarray]  # by score, ``[C]``; NaN: not known


class OwnExamples:
    """What clients hold out of their own, as far as it is scored: ``most`` of a client's examples; those of ``remembered`` are looked up once."""

    def __init__(self, held_out: HeldOut, most: int, remembered: np.ndarray):
        self.held_out, self.most = held_out, most
        self._remembered = {*remembered.tolist()}
        self._items: dict[int, np.ndarray] = {}

    def of(self, client: int) -> np.ndarray:
        """Indices of a client's examples that are scored, evenly spaced among those that it holds out."""
        found = self._items.get(client)
        if found is None:
            index, most = self.held_out.shards[client], self.most
            found = index if len(index) <= most else index[np.arange(most) * len(index) // most]
            if client in self._remembered:
                self._items[client] = found
        return found

    def scores(self, model: nn.Module, client: int) -> Mapping[str, float]:
        """Those of a model in eval mode on the examples of one client."""
        return self.scores_on(model, self.of(client))

    def scores_on(self, model: nn.Module, index: np.ndarray) -> Mapping[str, float]:
        """The same on any of the examples that are held out."""
        inputs, targets = self.held_out.take(index)
        if self.held_out.by_example is None:
            return self.held_out.scores(model, inputs, targets)
        each = self.held_out.by_example(model, inputs, targets)
        return {name: float(x.nanmean()) for name, x in each.items()}


def present_clients(setup: Setup) -> dict[int, int]:
    """Clients that take part at present, and their workers."""
    clients = setup.state.clients_W or range(setup.fleet.num_workers)
    return {clients[w]: w for w, up in enumerate(setup.fleet.up) if up and w < len(clients)}


def personal_blocks(setup: Setup) -> list[int]:
    """Blocks of which each client has its own values."""
    everything = declared(setup.recipe.method).own_models
    return [i for i, block in enumerate(setup.fleet.layout.blocks) if block.personal or everything]


def rows_of_present(setup: Setup) -> Own:
    """What those that take part keep for themselves, by client, at the first process. All processes call it."""
    fleet, present, personal = setup.fleet, present_clients(setup), personal_blocks(setup)
    if not personal:
        return {}
    blocks = [(str(i), fleet.layout.blocks[i], fleet.params.blocks[i]) for i in personal]
    handed = {
        w: {
            key: x[block.holders.index(w)] if w in block.holders else x.new_empty(block.numel, device="meta")
            for key, block, x in blocks
        }
        for w in present.values()
    }
    there = setup.world.gather_to_server(handed)
    if not setup.world.first:
        return {}
    return {c: {int(key): x for key, x in there[w].items()} for c, w in present.items()}


class FairnessProbe(Probe):
    """Whenever the agreed model is evaluated: its scores by client, and those of what each client has.

    ``kept``: what clients that are away keep of their personal parameters, at the first process. The agreed model is scored on the
    examples of all clients in one pass, that of each client in a pass of its own. Of one client at most ``eval_windows`` examples count.
    """

    def __init__(self, setup: Setup, held_out: HeldOut, kept: Callable[[Sequence[int]], Own]):
        self.setup, self.held_out, self.kept = setup, held_out, kept
        self.evaluator, self.clients = Evaluator(setup), setup.recipe.clients
        self.sample = sample(setup.recipe.num_clients, self.clients.scored, setup.recipe.seed)
        self.own = OwnExamples(held_out, setup.recipe.eval_windows, self.sample)
        self.personal = personal_blocks(setup)

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[ClientsScored]:
        if not self.due(t):
            return
        first, rows = agreed.gather_(), rows_of_present(self.setup)
        found = [self._scored(agreed, rows)] if first else []
        yield ClientsScored(t, **self.setup.world.all_gather_json(found)[0][0])

    @torch.no_grad()
    def _scored(self, agreed: Agreed, rows: Own) -> dict[str, object]:
        """The fields of `ClientsScored`."""
        present = [c for c in present_clients(self.setup) if len(self.own.of(c))]
        who = sorted({*self.sample, *present})
        who = [c for c in who if len(self.own.of(c))]
        with self.evaluator.precision(), self.evaluator.draws("clients"):
            shared = self._of_one(agreed.model(), who)
            own = self._of_each(agreed.whole, who, rows) if self.personal else {}
        in_sample = np.isin(who, self.sample)
        at = np.searchsorted(who, present)
        mine = {name: x[in_sample] for name, x in shared.items()}
        theirs = {name: x[in_sample] for name, x in own.items()}
        gains = {n: (mine[n] - x) if lower_is_better(n) else (x - mine[n]) for n, x in theirs.items()}
        gains = {name: x[np.isfinite(x)] for name, x in gains.items()}
        return {
            "shared": {name: spread(x, lower_is_better(name)) for name, x in mine.items()},
            "own": {name: spread(x, lower_is_better(name)) for name, x in theirs.items()},
            "gain": {name: spread(x, False) | {"share": float((x > 0).mean())} for name, x in gains.items() if len(x)},
            "histogram": {name: histogram(x, theirs.get(name)) for name, x in mine.items()},
            "clients": present,
            "shared_C": {name: listed(x[at]) for name, x in shared.items()},
            "own_C": {name: listed(x[at]) for name, x in own.items()},
        }

    def _of_one(self, model: nn.Module, who: Sequence[int]) -> Table:
        """One model on the examples of all these clients."""
        if not who:
            return {}
        if self.held_out.by_example is None:
            return together([self.own.scores(model, c) for c in who])
        index, owner = (
            np.concatenate([self.own.of(c) for c in who]),
            np.repeat(np.arange(len(who)), [len(self.own.of(c)) for c in who]),
        )
        parts = [self.held_out.by_example(model, *self.held_out.take(part)) for part in cut(index, AT_ONCE)]
        return {name: means(torch.cat([part[name] for part in parts]).numpy(), owner, len(who)) for name in parts[0]}

    def _of_each(self, agreed: Stack, who: Sequence[int], rows: Own) -> Table:
        """What each client has, on its own examples: the agreed model with its personal parameters, if it has had a turn."""
        blocks = [x.clone() if i in self.personal else x for i, x in enumerate(agreed.blocks)]
        model = self.setup.fleet.whole_model(Stack(agreed.layout, blocks))
        found: list[Mapping[str, float]] = []
        for part in cut(np.array(who), KEPT_AT_ONCE):
            kept = {**self.kept([c for c in part.tolist() if c not in rows]), **rows}
            for client in part.tolist():
                for i in self.personal if client in kept else ():
                    blocks[i][0] = kept[client][i]
                found.append(self.own.scores(model, client) if client in kept else {})
        return together(found)


def sample(num_clients: int, most: int, seed: int) -> np.ndarray:
    """Whom a run looks at, sorted: all, or so many of them, drawn once. ``most`` = 0: all."""
    if not most or num_clients <= most:
        return np.arange(num_clients)
    return np.sort(numpy_generator(seed, "scored clients").choice(num_clients, most, replace=False))


def means(values: np.ndarray, owner: np.ndarray, num: int) -> np.ndarray:
    """The mean of each owner's values that are numbers, float64 ``[num]``; NaN where there are none."""
    known = np.isfinite(values)
    count = np.bincount(owner[known], minlength=num)
    total = np.bincount(owner[known], values[known], num)
    return np.where(count, total / count.clip(1), np.nan)


def spread(values: np.ndarray, low_is_good: bool) -> dict[str, float]:
    """A distribution over clients, as `lab.events.ClientsScored` has it; of those that have a value."""
    values = np.sort(values[np.isfinite(values)])
    if not len(values):
        return {"num": 0}
    tenth = math.ceil(len(values) / 10)
    worst = values[-tenth:] if low_is_good else values[:tenth]
    about = {"num": len(values), "mean": values.mean(), "std": values.std(), "worst_tenth": worst.mean()}
    about |= {f"p{p}": x for p, x in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
    return {name: x if name == "num" else float(x) for name, x in about.items()}


def histogram(shared: np.ndarray, own: np.ndarray | None) -> dict[str, list[float]]:
    """How many clients have which score, as `lab.events.ClientsScored` has it."""
    both = {"shared": shared[np.isfinite(shared)]} | ({} if own is None else {"own": own[np.isfinite(own)]})
    together = np.concatenate([*both.values()])
    if not len(together):
        return {}
    ends = float(together.min()), float(together.max())
    ends = ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[1] + 0.5)
    return {"ends": [*ends]} | {name: np.histogram(x, BINS, ends)[0].tolist() for name, x in both.items()}


def listed(values: np.ndarray) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in values.tolist()]


def together(found: Sequence[Mapping[str, float]]) -> Table:
    names = dict.fromkeys(name for one in found for name in one)
    return {name: np.array([one.get(name, math.nan) for one in found]) for name in names}
