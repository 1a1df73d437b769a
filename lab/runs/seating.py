"""Who sits in which row of the fleet: the clients of a round, and what each of them brings and takes home."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.costs.network import Turn
from lab.data.shards import total
from lab.engine.checkpoint import Json, Part, Piece, Rows
from lab.engine.optim import FRESH, counts_of, set_counts_, states
from lab.events import Seated
from lab.ground.errors import Damaged
from lab.methods import declared
from lab.methods.registry import received, round_steps
from lab.probes.probe import Setup
from lab.recipes.selection import Selection, pace_W
from lab.runs.client_store import ClientStore
from lab.runs.data import sizes_unread
from lab.runs.folder import KEEP


class Seating(Part):
    """The clients of every round (`lab.recipes.clients.Clients`); made where a recipe has more clients than workers.

    What is in a row is either received when a round begins (`lab.methods.registry.received`) or its client's own. Of that, personal
    parameters, what the method keeps for clients and what error feedback owes are written when a turn ends and read when the next one
    begins; and all else as well, if inner states are kept, or it begins as it was at the start of the run. The first process has the
    store.
    """

    def __init__(self, setup: Setup):
        self.setup, self.recipe = setup, setup.recipe
        self.period = round_steps(setup.recipe.method)
        self.rounds = 0  # that have begun
        self.store = ClientStore()
        self.first: dict[str, Tensor] = {}  # what a client has before its first turn, by key, ``[P]``
        self._files: list[int] = []  # rounds of which the store has something, by the checkpoint that was taken up
        self._saved: deque[int] = deque(maxlen=KEEP)  # rounds that were over when checkpoints were written
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
        setup = self.setup
        if setup.dry:
            return
        if not self.rounds:
            self.first = {key: x[0].clone() for key, x, _ in self._own() if x[0].any()}
            return
        rows = {key: x for key, x, kept in self._own() if kept}
        if not rows and self.recipe.clients.inner_states != "kept":
            return  # nothing is kept, at any process
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
            self.store.tidy(self._saved[0] if len(self._saved) == KEEP and not self.recipe.keep_every else 0)

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
        self._begin_anew_()
        found = self.store.get(clients) if setup.world.first else {}
        keys = {c: sorted(kept) for c, kept in found.items()}
        known = {int(c): keys for c, keys in setup.world.all_gather_json([*keys.items()])[0]}
        sent = {w: found[c] if c in found else self._shapes(known[c]) for w, c in enumerate(clients) if c in known}
        device = setup.fleet.device
        got = setup.world.scatter_from_server(
            {w: {k: x if x.is_meta else x.to(device) for k, x in named.items()} for w, named in sent.items()}
        )
        for w in setup.fleet.mine:
            if w < len(clients) and clients[w] in known:
                self._take_row_(w, got[w])

    @cached_property
    def receives_counts(self) -> bool:
        """Whether clients receive inner states of others, and so how many steps these have taken."""
        return not {*self.recipe.method.inner.state_names}.isdisjoint(received(self.recipe.method))

    def personal(self, clients: Sequence[int]) -> dict[int, dict[int, Tensor]]:
        """What these clients keep of the blocks of ``params`` that are personal, as of their last turn that is over, by block."""
        kept = self.store.get(clients, begins="params/")
        return {c: {int(key.split("/")[1]): x for key, x in named.items()} for c, named in kept.items()}

    # rows

    def _own(self) -> Iterator[tuple[str, Tensor, bool]]:
        """All that is a client's own: key, tensor of which it has a row ``[W, P]``, and whether it keeps it between its turns."""
        state, method = self.setup.state, self.recipe.method
        gets, keeps = {*received(method)}, declared(method).keeps
        inner = states(state.optimizers["inner"], state.local["params"])
        for name, stack in (state.local | inner).items():
            kept = name == "params" or name in keeps or self.recipe.clients.inner_states == "kept"
            for i, (block, x) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
                if block.personal or name in keeps or name not in gets:
                    yield f"{name}/{i}", x, kept
        for name, stack in self.setup.comm.residuals.items():
            for i, x in enumerate(stack.blocks):
                yield f"residual.{name}/{i}", x, True

    @cached_property
    def _counts_itself(self) -> list[bool]:
        """Of every block, whether it is a client's own how many steps it has taken."""
        return [block.personal or not self.receives_counts for block in self.setup.fleet.layout.blocks]

    def _row(self, rows: Mapping[str, Tensor], worker: int) -> dict[str, Tensor]:
        row = self.setup.fleet.mine.index(worker)
        return {key: x[row] for key, x in rows.items()} | self._counts(worker)

    def _counts(self, worker: int) -> dict[str, Tensor]:
        """What the inner optimizer counts of a row, float64 ``[blocks]`` by name."""
        state = self.setup.state
        if self.recipe.clients.inner_states != "kept" or not any(self._counts_itself):
            return {}
        of_blocks = counts_of(state.optimizers["inner"], state.local["params"], [worker])[worker]
        names = {name for counts in of_blocks for name in counts}
        return {f"count.{n}": torch.tensor([c[n] for c in of_blocks], dtype=torch.float64) for n in sorted(names)}

    def _shapes(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """What is under these keys, without numbers."""
        fleet, local = self.setup.fleet, self.setup.state.local
        found = {}
        for key in keys:
            name, _, i = key.partition("/")
            layout = local[name].layout if name in local else fleet.layout
            num, dtype = (layout.blocks[int(i)].numel, fleet.dtype) if i else (len(layout.blocks), torch.float64)
            found[key] = torch.empty(num, dtype=dtype, device="meta")
        return found

    @torch.no_grad()
    def _begin_anew_(self) -> None:
        """What is a client's own becomes in all rows what it was at the start of the run."""
        state = self.setup.state
        for key, x, _ in self._own():
            x.copy_(self.first.get(key, x.new_zeros(1)))
        own = [{FRESH: 1.0, "step": 0.0} if itself else {} for itself in self._counts_itself]
        set_counts_(state.optimizers["inner"], state.local["params"], dict.fromkeys(self.setup.fleet.mine, own))

    @torch.no_grad()
    def _take_row_(self, worker: int, kept: Mapping[str, Tensor]) -> None:
        """What a client has kept into its row."""
        state, row = self.setup.state, self.setup.fleet.mine.index(worker)
        for key, x, _ in self._own():
            if key in kept:
                x[row] = kept[key]
        counts = {key.removeprefix("count."): x.tolist() for key, x in kept.items() if key.startswith("count.")}
        own = [
            {name: of_all[i] for name, of_all in counts.items()} if itself else {}
            for i, itself in enumerate(self._counts_itself)
        ]
        if counts:
            set_counts_(state.optimizers["inner"], state.local["params"], {worker: own})

    # checkpoints

    def json(self) -> Json:
        self.store.settle()
        self._saved.append(self.rounds - 1)
        return {"clients": [self.rounds, list(self._saved), self.store.needed()]}

    def load_json(self, values: Json, step: int) -> None:
        self.rounds, saved, self._files = values["clients"]
        self._saved = deque(saved, KEEP)
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
