"""Checkpoints: each part of a run saves its tensors and JSON values, and restores them.

::

    optimizer/<name>/<leaf>/<state>   of an optimizer, for each of its parameters
    local/<state>/<block>             ``[H, P]``, that no optimizer owns
    shared/<state>/<block>            ``[1, P]``, likewise
    residual/<state>/<block>          what error feedback still owes
    measured/<what>/<block>           what the next look compares with
    watch/…                           what a probe has seen
    buffer/<worker>/<name>            those that training has moved

Several processes write the same file as one: each part says which rows of which tensor of the file are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lab.engine.optim import joined_counts
from lab.engine.stack import Block, Layout, Stack
from lab.engine.world import World

Json = dict[str, Any]
Rows = Sequence[int] | None  # of a tensor in the file; None: all of it


@dataclass(frozen=True)
class Checkpoint:
    step: int
    events_bytes: int  # length of events.jsonl when it was written
    tensors: dict[str, Tensor]
    extra: Json  # small JSON values
    own: bool = False  # of one process alone: its rows, and its copies of what is agreed


@dataclass(frozen=True)
class Piece:
    """What this process has of one tensor of a checkpoint: ``rows`` of the ``num`` that it has in the file, or all of it.

    A tensor with less than two dimensions is a number of each row, and is written as a single one where all agree.
    """

    key: str
    tensor: Tensor
    rows: Rows = None
    num: int = 0


class Part(Protocol):
    """An object with state that goes into checkpoints. A part overrides the methods that it needs; the defaults save nothing."""

    def json(self) -> Json:
        """Return small JSON values to save; they are the same in all processes."""
        return {}

    def load_json(self, values: Json, step: int) -> None:
        """Restore the JSON values, of all parts together, as of local step ``step``; called before `load_tensors`."""
        return None

    def tensors(self) -> Iterable[Piece]:
        return ()

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        """Return which tensors of a file this process needs, and which of their rows (None: all)."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore from ``tensors``: those that this part `wanted`, and possibly those of other parts."""
        return None


def snapshot(parts: Iterable[Part], world: World, device: torch.device) -> tuple[dict[str, Tensor], Json]:
    """Return the whole state of a run: tensors by name (at the first process only) and small JSON values."""
    values: Json = {}
    pieces: list[Piece] = []
    for part in parts:
        values |= part.json()
        pieces += part.tensors()
    return _gathered(pieces, world, device), values


@torch.no_grad()
def restore_(parts: Sequence[Part], checkpoint: Checkpoint, world: World, device: torch.device) -> None:
    """Restore all parts to their state after the checkpoint's step; the first process has the tensors and scatters them."""
    for part in parts:
        part.load_json(checkpoint.extra, checkpoint.step)
    tensors: Mapping[str, Tensor] = checkpoint.tensors
    if not checkpoint.own:
        keys: list[str] = world.all_gather_json(list(tensors))[0]
        wanted: dict[str, Rows] = {}
        for part in parts:
            wanted |= part.wanted(keys)
        tensors = _scattered(checkpoint.tensors, wanted, world, device)
    for part in parts:
        part.load_tensors(tensors, checkpoint.step)


def _gathered(pieces: Sequence[Piece], world: World, device: torch.device) -> dict[str, Tensor]:
    """Gather the tensors of the file at the first process. Processes are identified by their first worker."""
    own = 0 if world.mine is None else world.mine[0]
    gathered = world.all_gather_json(
        [own, [[p.key, p.rows and list(p.rows), p.num, *_shape(p.tensor)] for p in pieces]]
    )
    heads = dict(gathered)
    tensors = {w: {i: _empty(*head[3:]) for i, head in enumerate(of_w)} for w, of_w in heads.items()}
    tensors[own] = {i: p.tensor if world.num == 1 else p.tensor.to(device) for i, p in enumerate(pieces)}
    handed = world.gather_to_server(tensors)
    return joined(
        Piece(key, x.cpu(), rows, num)
        for w, of_w in (handed.items() if world.first else ())
        for (key, rows, num, *_), x in zip(heads[w], of_w.values(), strict=True)
    )


def joined(pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """The tensors of the file, from the pieces of all processes."""
    whole: dict[str, list[Piece]] = {}
    for piece in pieces:
        whole.setdefault(piece.key, []).append(piece)
    found = {key: _joined(of_key) for key, of_key in whole.items()}
    return {key: x for key, x in found.items() if x is not None}


def _joined(pieces: Sequence[Piece]) -> Tensor | None:
    """Join the pieces of all processes into the tensor that the file has."""
    one = pieces[0]
    if one.rows is None or (len(pieces) == 1 and len(one.rows) == one.num):
        return one.tensor
    if max(p.tensor.dim() for p in pieces) < 2:
        numbers = [one.tensor.new_zeros(())] * one.num
        for p in pieces:
            for row, x in zip(p.rows or (), p.tensor.expand(len(p.rows or ())), strict=True):
                numbers[row] = x
        return joined_counts(one.key.rpartition("/")[2], numbers)
    out = one.tensor.new_empty(one.num, *one.tensor.shape[1:])
    for p in pieces:
        out[list(p.rows or ())] = p.tensor
    return out


def _scattered(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Rows], world: World, device: torch.device
) -> Mapping[str, Tensor]:
    """Send each process the tensors, or the rows of them, that it asked for; the first process has them all."""
    own = 0 if world.mine is None else world.mine[0]
    asked = dict(world.all_gather_json([own, {k: rows if rows is None else list(rows) for k, rows in wanted.items()}]))
    cut = {w: {k: _cut(tensors[k], rows) for k, rows in of_w.items()} for w, of_w in asked.items()} if tensors else {}
    if world.num == 1:
        return cut.get(own, {})
    shapes = world.all_gather_json([[w, [_shape(x) for x in of_w.values()]] for w, of_w in cut.items()])[0]
    like = {w: {k: _empty(*x) for k, x in zip(asked[w], of_w, strict=True)} for w, of_w in shapes}
    sent = {w: {k: x.to(device) for k, x in of_w.items()} for w, of_w in cut.items()} if world.first else like
    got = world.scatter_from_server(sent).get(own, {})
    return {k: x.cpu() for k, x in got.items()}


def _cut(x: Tensor, rows: Rows) -> Tensor:
    """Take ``rows`` of a tensor of the file; a single number holds for every row."""
    return x if rows is None or not x.dim() or list(rows) == list(range(len(x))) else x[list(rows)]


def _shape(x: Tensor) -> list[Any]:
    return [str(x.dtype).removeprefix("torch."), *x.shape]


def _empty(dtype: str, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")


# --- stacks --------------------------------------------------------------------------------------------------------


def places(block: Block) -> list[int]:
    """Return the positions of this process's rows of a block among the rows of all processes."""
    return [k for k, w in enumerate(block.everywhere) if w in block.holders]


def pieces_of(prefix: str, stack: Stack) -> Iterator[Piece]:
    for i, (block, x) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
        if len(x):
            yield Piece(f"{prefix}/{i}", x, places(block), len(block.everywhere))


def stack_of(prefix: str, layout: Layout, tensors: Mapping[str, Tensor], device: torch.device) -> Stack:
    like = next(x for key, x in tensors.items() if key.startswith(f"{prefix}/"))
    missing = {f"{prefix}/{i}": like.new_empty(0, b.numel) for i, b in enumerate(layout.blocks) if not b.holders}
    found = missing | dict(tensors)
    return Stack(layout, [found[f"{prefix}/{i}"].to(device) for i in range(len(layout.blocks))])
