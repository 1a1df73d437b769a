"""The state of a run that checkpoints save: holders, optimizer and method states, error feedback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lab.engine import buffers
from lab.engine.checkpoint import Json, Part, Piece, Rows, pieces_of, places, stack_of
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import joined_counts, rows_apart, states
from lab.engine.stack import Block, Layout, Stack
from lab.engine.state import State
from lab.optimizers import ADOPT
from lab.recipes.placement import Experts


class Holders(Part):
    """Which worker holds which tensor, where that changes, and the buffers of every worker."""

    def __init__(self, fleet: Fleet, experts: Experts | None):
        self.fleet, self.experts = fleet, experts

    def json(self) -> Json:
        units = [(i, b) for i, b in enumerate(self.fleet.layout.blocks) if b.unit is not None]
        if self.experts is None or not self.experts.movable:
            return {}
        return {"draw": self.experts.draw, "labels": [[i, b.everywhere, b.since] for i, b in units]}

    def load_json(self, values: Json, step: int) -> None:
        if "labels" in values and self.experts is not None:
            self.experts.take_(values["draw"])
            self.fleet.relabel_({i: (tuple(holders), tuple(since)) for i, holders, since in values["labels"]})

    def tensors(self) -> Iterable[Piece]:
        return [Piece(f"buffer/{w}/{n}", x) for w, named in buffers.moved(self.fleet).items() for n, x in named.items()]

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        return {key: None for key in keys if key.startswith("buffer/") and int(key.split("/")[1]) in self.fleet.mine}

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        for key in self.wanted([*tensors]):
            _, worker, name = key.split("/")
            self.fleet.modules[int(worker)].get_buffer(name).copy_(tensors[key])


class States(Part):
    """Optimizers, the states that none of them owns, what error feedback owes, and what a method notes down."""

    def __init__(self, state: State, comm: Communicator):
        self.state, self.comm = state, comm
        self.order: list[
            str
        ] = []  # in which shared states of several outer optimizers came about, and are sent to who is back

    def json(self) -> Json:
        found: Json = {"shared": [*self.state.shared]} if len(self.state.optimizers) > 2 else {}
        return found | ({"facts": self.state.facts} if self.state.facts else {})

    def load_json(self, values: Json, step: int) -> None:
        self.state.facts = values.get("facts", self.state.facts)
        self.order = values.get("shared", [])

    def tensors(self) -> Iterator[Piece]:
        s = self.state
        for name, optimizer in s.optimizers.items():
            saved_here = None if name == "inner" else self._blocks_saved_here(self._moved_by(name).layout)
            for number, rows, num, leaf in self._leaves(name):
                for key, value in optimizer.state.get(leaf, {}).items():
                    if isinstance(value, Tensor) and (rows if saved_here is None else number in saved_here):
                        yield Piece(f"optimizer/{name}/{number}/{key}", value, rows, num)
        inner, outer = self._owned()
        for name, stack in s.local.items():
            yield from pieces_of(f"local/{name}", stack) if name not in inner else ()
        for name, stack in s.shared.items():
            for i in [] if name in outer else self._blocks_saved_here(stack.layout):
                yield Piece(f"shared/{name}/{i}", stack.blocks[i])
        for name, stack in self.comm.residuals.items():
            yield from pieces_of(f"residual/{name}", stack)

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        found: dict[str, Rows] = {}
        s, of_all = self.state, leaves_of_all(self.state.fleet.layout)
        for key in keys:
            kind, name, *rest = key.split("/")
            block: Block | None = None
            match kind:
                case "optimizer" if name == "inner":
                    i, row = of_all[int(rest[0])]
                    block = s.fleet.layout.blocks[i]
                    if row is None:
                        found[key] = places(block)
                    elif block.everywhere[row] in block.holders:
                        found[key] = [0]
                case "optimizer" | "shared":
                    stack = self._moved_by(name) if kind == "optimizer" else s.shared.get(name, s.fleet.params)
                    block = stack.layout.blocks[int(rest[0])]
                    found[key] = [0] if block.holders or s.served else []
                case "local" | "residual":
                    layout = s.local.get(name, s.fleet.params).layout if kind == "local" else s.fleet.layout
                    found[key] = places(layout.blocks[int(rest[0])])
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        s, device = self.state, self.state.fleet.device
        leaves = {name: {str(number): leaf for number, *_, leaf in self._leaves(name)} for name in s.optimizers}
        for key, value in tensors.items():
            kind, name, *rest = key.split("/")
            match kind:
                case "optimizer":
                    self._load_of_leaf(s.optimizers[name], leaves[name].get(rest[0]), rest[1], value)
                case "residual":
                    self.comm.residuals[name] = stack_of(f"{kind}/{name}", s.fleet.layout, tensors, device)
                case "local" | "shared":
                    place = s.local if kind == "local" else s.shared
                    if name not in place:  # made by a later step: there is nothing yet to copy into
                        place[name] = stack_of(f"{kind}/{name}", s.fleet.layout, tensors, device)
                    place[name].blocks[int(rest[0])].copy_(value)
        for optimizer in s.optimizers.values():
            count_as_before_(optimizer, step)
        inner, outer = self._owned()
        s.local.update(inner)
        s.shared.update(outer)
        s.shared.update({name: s.shared.pop(name) for name in self.order if name in s.shared})

    def _load_of_leaf(self, optimizer: torch.optim.Optimizer, leaf: Tensor | None, key: str, value: Tensor) -> None:
        if value.dim() == 1:
            value = joined_counts(key, list(value)) if len(value) else None  # type: ignore[assignment]
        if leaf is None or value is None:
            return
        # Step counts stay on the CPU, as torch has them.
        counts = value.dim() < 2 and not optimizer.param_groups[0].get("fused")
        optimizer.state[leaf][key] = value if counts else value.to(leaf.device)

    def _moved_by(self, optimizer: str) -> Stack:
        """Return the stack that an optimizer updates: for ``outer.3`` the shared ``params.3``."""
        if optimizer == "inner":
            return self.state.fleet.params
        return self.state.shared["params" + optimizer.removeprefix("outer")]

    def _leaves(self, name: str) -> list[tuple[int, Rows, int, Tensor]]:
        """Return (number in the file, rows there, of how many, leaf) for each parameter of an optimizer in this process."""
        params, leaves = self._moved_by(name), self.state.optimizers[name].param_groups[0]["params"]
        if name == "inner":
            return [(*at, leaf) for at, leaf in zip(leaves_here(params.layout), leaves, strict=True)]
        return [(i, None, 0, leaves[i]) for i in range(len(leaves))]

    def _blocks_saved_here(self, layout: Layout) -> list[int]:
        """Return the blocks whose agreed values this process saves."""
        return [i for i, b in enumerate(layout.blocks) if self.comm.world.owners(b)[0] in self.state.fleet.mine]

    def _owned(self) -> tuple[dict[str, Stack], dict[str, Stack]]:
        """States of optimizers, local and shared. ``outer.3`` moves the shared ``params.3`` and owns ``momentum_buffer.3``."""
        inner: dict[str, Stack] = {}
        outer: dict[str, Stack] = {}
        for name, optimizer in self.state.optimizers.items():
            part = name[len("outer") :] if name != "inner" else ""
            found = states(optimizer, self._moved_by(name))
            (inner if name == "inner" else outer).update({k + part: v for k, v in found.items()})
        return inner, outer


def count_as_before_(optimizer: torch.optim.Optimizer, t: int) -> None:
    """After a checkpoint of step ``t`` without counts for ADOPT (earlier versions): count as if no worker had been down."""
    for state in optimizer.state.values() if isinstance(optimizer, ADOPT) else ():
        if state:
            state.setdefault("step", torch.tensor(t - 1.0, dtype=torch.float32, device="cpu"))


def leaves_of_all(layout: Layout) -> list[tuple[int, int | None]]:
    """Parameters of the inner optimizer where all workers are in one process: (block, None), or (block, place among its holders)."""
    apart = [rows_apart(b, b.everywhere) for b in layout.blocks]
    return [(i, k) for i, b in enumerate(layout.blocks) for k in (range(len(b.everywhere)) if apart[i] else (None,))]


def leaves_here(layout: Layout) -> list[tuple[int, list[int], int]]:
    """Return (number in the file, rows there, of how many) for each parameter of this process's inner optimizer.

    Number −1: a unit that no worker here holds.
    """
    numbers = {leaf: number for number, leaf in enumerate(leaves_of_all(layout))}
    found: list[tuple[int, list[int], int]] = []
    for i, block in enumerate(layout.blocks):
        held = places(block)
        if (i, None) in numbers:
            found.append((numbers[i, None], held, len(block.everywhere)))
        else:
            found += [(numbers[i, k], [0], 1) for k in held] or [(-1, [], 1)]
    return found
