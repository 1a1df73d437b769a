"""Who sits in which row of the fleet: the clients of a round, and what each of them brings and takes home."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.costs.network import Turn
from lab.data.shards import total
from lab.engine.checkpoint import Json, Part, Piece, Rows
from lab.engine.optim import FRESH, counts_of, set_counts_, states
from lab.errors import Damaged
from lab.events import Seated
from lab.methods import declared
from lab.methods.registry import round_steps
from lab.probes.probe import Setup
from lab.recipes.selection import Selection, pace_W
from lab.runs.client_store import ClientStore
from lab.runs.data import sizes_unread

KEPT_CHECKPOINTS = 2  # a run can be taken up at any of them


class Seating(Part):
    """The clients of every round (`lab.recipes.clients.Clients`); made where a recipe has more clients than workers.

    What a client keeps is written when its turn ends and read when its next one begins: personal parameters, the inner states that
    nobody averages, those that its method keeps for it, and what error feedback owes. The first process has the store.
    """

    def __init__(self, setup: Setup):
        self.setup, self.recipe = setup, setup.recipe
        self.period = round_steps(setup.recipe.method)
        self.rounds = 0  # that have begun
        self.store = ClientStore()
        self.first: dict[str, Tensor] = {}  # what a client has before its first turn, by key, ``[P]``
        self._files: list[int] = []  # rounds of which the store has something, by the checkpoint that was taken up
        self._saved: deque[int] = deque(maxlen=KEPT_CHECKPOINTS)  # rounds that were over when checkpoints were written
        recipe, data = setup.recipe, setup.data
        sizes = data.samples_W if data is not None else sizes_unread(recipe)
        self.selection = Selection(recipe.clients, recipe.num_workers, recipe.seed, sizes)
        self.now = self.selection.of_round(0)
        setup.state.clients_W = self.now.clients
        setup.state.num_clients = recipe.clients.num
        setup.state.num_samples = total(data.samples_W) if data is not None else 0

    def counted_TW(self, up_TW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of those that are up in each local step, bool ``[steps, workers]``: who counts in its round, and who is asked in it."""
        up_TW, asked_TW = up_TW.copy(), up_TW.copy()
        for number, first in enumerate(range(0, len(up_TW), self.period)):
            selected, here = self.selection.of_round(number), slice(first, first + self.period)
            asked_TW[here, len(selected.clients) :] = False
            up_TW[here] &= asked_TW[here]
            up_TW[here, selected.late] = False
        return up_TW, asked_TW

    @property
    def turns(self) -> list[Turn]:
        """How fast the rows are in each round of the run."""
        clients, recipe = self.recipe.clients, self.recipe
        if not clients.sets_the_pace:
            return []
        found = list[Turn]()
        for number, first in enumerate(range(1, recipe.steps + 1, self.period)):
            selected = self.selection.of_round(number)
            found.append((first, pace_W(clients, selected.clients, selected.late, recipe.num_workers, recipe.seed)))
        return found

    def begins(self, t: Any) -> bool:
        """Whether a round begins with local step ``t``."""
        return bool((t - 1) % self.period == 0)

    def open(self, folder: Path | None) -> None:
        """Keep what clients keep in this folder, as it was when the round that is on began. Raises Damaged, at all processes."""
        problem = None
        if folder is not None:
            self.store = ClientStore(folder)
            try:
                self.store.open(self._files, max(0, self.rounds - 1))
            except Damaged as error:
                problem = str(error)
        problem = self.setup.world.all_gather_json(problem)[0]
        if problem is not None:
            raise Damaged(problem)

    def leave(self) -> None:
        """A round is over: those who sit there take home what they keep, also who is down at that moment."""
        setup, rows = self.setup, self._rows()
        if not self.rounds:
            self.first = {key: x[0].clone() for key, x in rows.items()}
            return
        clients, late = setup.state.clients_W, self.now.late
        there = [w for w in range(min(len(clients), setup.fleet.num_workers)) if w not in late]
        here = {w: self._row(rows, w) for w in there if w in setup.fleet.mine}
        everywhere = setup.world.all_gather_json(sorted({key for row in here.values() for key in row}))
        keys = sorted({key for keys in everywhere for key in keys})
        if not keys:
            return
        shapes = self._shapes(keys)  # of a row elsewhere; what a row here lacks, it has not begun to count
        handed = setup.world.gather_to_server(
            {
                w: {k: here[w].get(k, torch.zeros_like(x, device="cpu")) for k, x in shapes.items()}
                if w in here
                else shapes
                for w in there
            }
        )
        if setup.world.first:
            self.store.put(self.rounds - 1, {clients[w]: {k: x.cpu() for k, x in handed[w].items()} for w in there})
            self.store.tidy(self._saved[0] if len(self._saved) == KEPT_CHECKPOINTS else 0)

    def sit_down(self, t: int) -> Seated:
        """The clients of the round that begins with local step ``t`` take their rows."""
        self.rounds = (t - 1) // self.period + 1
        self._take_seats()
        return Seated(t, self.now.clients, self.now.late)

    def _take_seats(self) -> None:
        state, data = self.setup.state, self.setup.data
        self.now = self.selection.of_round(self.rounds - 1)
        state.clients_W = self.now.clients
        if data is not None:
            empty = self.recipe.num_workers - len(self.now.clients)
            state.samples_W = [*(data.samples_W[c] for c in self.now.clients), *[0] * empty]

    def arrive(self) -> None:
        """Those who sit there now bring what they kept, when they have received what is agreed."""
        setup, clients = self.setup, self.setup.state.clients_W
        self._start_afresh()
        found = self.store.get(clients) if setup.world.first else {}
        keys = {c: sorted(kept) for c, kept in found.items()}
        known = {int(c): keys for c, keys in setup.world.all_gather_json([*keys.items()])[0]}
        sent = {w: found[c] if c in found else self._shapes(known[c]) for w, c in enumerate(clients) if c in known}
        device = setup.fleet.device
        got = setup.world.scatter_from_server(
            {w: {k: x if x.is_meta else x.to(device) for k, x in named.items()} for w, named in sent.items()}
        )
        for w in setup.fleet.mine:
            if w < len(clients):
                self._take_row(w, got[w] if clients[w] in known else self.first)

    def personal(self, clients: Sequence[int]) -> dict[int, dict[int, Tensor]]:
        """What these clients keep of the blocks of ``params`` that are personal, as of their last turn that is over, by block."""
        kept = self.store.get(clients, begins="params/")
        return {c: {int(key.split("/")[1]): x for key, x in named.items()} for c, named in kept.items()}

    # rows

    def _stacks(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of which a client keeps its row, ``[W, P]``, by key."""
        state, own = self.setup.state, declared(self.recipe.method).keeps
        inner = states(state.optimizers["inner"], state.local["params"]) if "inner" in state.optimizers else {}
        kept = [
            name
            for name in inner
            if self.recipe.clients.inner_states == "kept" and name not in self.recipe.method.averages
        ]
        for i, block in enumerate(state.local["params"].layout.blocks):
            if block.personal:
                yield f"params/{i}", state.local["params"].blocks[i]
        for name in [*kept, *own]:
            for i, x in enumerate(state.local[name].blocks):
                yield f"{name}/{i}", x
        for name, stack in self.setup.comm.residuals.items():
            for i, x in enumerate(stack.blocks):
                yield f"residual.{name}/{i}", x

    def _rows(self) -> dict[str, Tensor]:
        return {} if self.setup.dry else dict(self._stacks())

    def _row(self, rows: Mapping[str, Tensor], worker: int) -> dict[str, Tensor]:
        row = self.setup.fleet.mine.index(worker)
        return {key: x[row] for key, x in rows.items()} | self._counts(worker)

    def _counts(self, worker: int) -> dict[str, Tensor]:
        """What the inner optimizer counts of a row, float64 ``[blocks]`` by name."""
        state = self.setup.state
        if self.recipe.clients.inner_states != "kept":
            return {}
        of_blocks = counts_of(state.optimizers["inner"], state.local["params"], [worker])[worker]
        names = {name for counts in of_blocks for name in counts}
        return {f"count.{n}": torch.tensor([c[n] for c in of_blocks], dtype=torch.float64) for n in sorted(names)}

    def _shapes(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """What is under these keys, without numbers."""
        fleet = self.setup.fleet
        blocks = fleet.layout.blocks
        found = {}
        for key in keys:
            num, dtype = (
                (len(blocks), torch.float64)
                if key.startswith("count.")
                else (blocks[int(key.split("/")[1])].numel, fleet.dtype)
            )
            found[key] = torch.empty(num, dtype=dtype, device="meta")
        return found

    @torch.no_grad()
    def _take_row(self, worker: int, kept: Mapping[str, Tensor]) -> None:
        """A client's own values into its row; of what it has none, zeros."""
        state, row = self.setup.state, self.setup.fleet.mine.index(worker)
        for key, x in self._stacks():
            x[row] = kept.get(key, 0.0)
        counts = {key.removeprefix("count."): x.tolist() for key, x in kept.items() if key.startswith("count.")}
        if counts:
            num = len(state.local["params"].blocks)
            of_blocks = [{name: of_all[i] for name, of_all in counts.items()} for i in range(num)]
            set_counts_(state.optimizers["inner"], state.local["params"], {worker: of_blocks})

    def _start_afresh(self) -> None:
        """Rows begin with a new inner optimizer, but for the states that they have received."""
        state, received = self.setup.state, self.recipe.method.averages
        inner = state.optimizers["inner"]
        own = {name: x for name, x in states(inner, state.local["params"]).items() if name not in received}
        if len(own) < len(states(inner, state.local["params"])):
            return  # some of its states are agreed: they keep their counts
        for stack in own.values():
            stack.zero_()
        anew = [{FRESH: 1.0, "step": 0.0} for _ in state.local["params"].blocks]
        set_counts_(inner, state.local["params"], dict.fromkeys(self.setup.fleet.mine, anew))

    # checkpoints

    def json(self) -> Json:
        self._saved.append(self.rounds - 1)
        return {"clients": [self.rounds, list(self._saved), self.store.rounds()]}

    def load_json(self, values: Json, step: int) -> None:
        self.rounds, saved, self._files = values["clients"]
        self._saved = deque(saved, KEPT_CHECKPOINTS)
        self._take_seats()

    def tensors(self) -> Iterator[Piece]:
        for key, x in self.first.items() if self.setup.world.first else ():
            yield Piece(f"client/{key}", x)

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        return {key: None for key in keys if key.startswith("client/")}

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        device = self.setup.fleet.device
        self.first = {
            key.removeprefix("client/"): x.to(device) for key, x in tensors.items() if key.startswith("client/")
        }
