"""Named tensors of several workers, and what is done with them as one.

Tensors with the same holders and the same group lie side by side in one *block* ``[H, P]``, so that an average over workers is one
mean over axis 0 and an elementwise optimizer is one fused call. A *stack* has a tensor for each block of a *layout*; sums,
differences and whatever else is elementwise is done block by block, in one call where torch has one (``torch._foreach_…``).

Legend: H holders of a block in this process, P elements of one copy of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Where tensors with the same holders and the same group lie inside one ``[H, P]`` tensor."""

    group: str  # what the tensors are ("attention", "mlp", …), for reading a ledger
    everywhere: tuple[int, ...]  # the workers that hold it, in all processes
    holders: tuple[int, ...]  # worker of each row: those of them that are in this process
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]  # first element of each tensor in a row
    numel: int  # P
    unit: str | None = None  # what moves between workers as one (an expert); None: stays where it is
    # Of a unit: the local step in which it came to each of ``everywhere``, 0 from the start.
    since: tuple[int, ...] = ()
    personal: bool = False  # each holder's own: never sent, and never made equal

    @cached_property
    def index(self) -> Tensor:
        """The holders as an index into something that has an entry per worker, ``[H]``."""
        return torch.tensor(self.holders, device="cpu", dtype=torch.long)

    def taking_part(self, marked: Sequence[bool]) -> tuple[int, ...]:
        """The marked ones of all its holders; nobody where it is personal, as that is never sent."""
        return () if self.personal else tuple(w for w in self.everywhere if marked[w])

    def came(self, row: int) -> int:
        """Local step in which this row came to its worker, 0 from the start."""
        return self.since[self.everywhere.index(self.holders[row])] if self.since else 0


@dataclass(frozen=True)
class Layout:
    """All blocks, and where to find a name. Blocks keep the order in which the model names its tensors.

    Tensors of a ``unit`` have a block of their own. When a unit moves, only the labels of its rows change, here, for all
    stacks at once (`Fleet.hold_`).
    """

    blocks: list[Block]
    place: dict[str, tuple[int, int]] = field(repr=False)  # name -> (block, position in it)
    mine: Collection[int] | None = None  # the workers of this process; None: all

    @classmethod
    def of(
        cls,
        holders: dict[str, tuple[int, ...]],
        shapes: dict[str, torch.Size],
        group: Callable[[str], str],
        unit: Callable[[str], str | None] = lambda name: None,
        mine: Collection[int] | None = None,
        personal: Callable[[str], bool] = lambda name: False,
    ) -> Layout:
        """``holders`` are the workers that hold each tensor, in all processes."""
        together: dict[tuple[str, tuple[int, ...], str | None, bool], list[str]] = {}
        for name, held_by in holders.items():
            together.setdefault((group(name), held_by, unit(name), personal(name)), []).append(name)
        blocks: list[Block] = []
        place: dict[str, tuple[int, int]] = {}
        for (label, held_by, moves, own), names in together.items():
            offsets, end = [], 0
            for i, name in enumerate(names):
                place[name] = (len(blocks), i)
                offsets.append(end)
                end += shapes[name].numel()
            since = (0,) * len(held_by) if moves is not None else ()
            sizes = tuple(shapes[n] for n in names)
            here = tuple(w for w in held_by if mine is None or w in mine)
            blocks.append(Block(label, held_by, here, tuple(names), sizes, tuple(offsets), end, moves, since, own))
        return cls(blocks, place, mine)

    def warming(self, t: int, warmup: int) -> list[tuple[int, int, float]]:
        """Rows that came to their worker less than ``warmup`` steps before: (block, row, factor of the learning rate)."""
        return [
            (i, row, (t - block.came(row) + 1) / warmup)
            for i, block in enumerate(self.blocks)
            for row in range(len(block.holders) if block.since else 0)
            if block.came(row) and t - block.came(row) + 1 < warmup
        ]


class Stack:
    """Named tensors of several workers: one ``[H, P]`` tensor per block; ``stack[name]`` is the view ``[H, *shape]``.

    Agreed (shared) state has the same layout with one row, ``[1, P]``, so that it broadcasts against the copies.
    """

    def __init__(self, layout: Layout, blocks: Sequence[Tensor]):
        self.layout, self.blocks = layout, list(blocks)

    @classmethod
    def zeros(cls, layout: Layout, device: torch.device, dtype: torch.dtype) -> Stack:
        return cls(layout, [torch.zeros(len(b.holders), b.numel, device=device, dtype=dtype) for b in layout.blocks])

    def flat(self, name: str) -> Tensor:
        """The view ``[H, elements]`` of one tensor."""
        i, k = self.layout.place[name]
        block, start = self.layout.blocks[i], self.layout.blocks[i].offsets[k]
        return self.blocks[i][:, start : start + block.shapes[k].numel()]

    def __getitem__(self, name: str) -> Tensor:
        i, k = self.layout.place[name]
        shape, rows = self.layout.blocks[i].shapes[k], self.flat(name)
        return rows.unflatten(1, shape) if shape else rows.squeeze(1)

    def names(self) -> Iterable[str]:
        return self.layout.place

    def is_personal(self, name: str) -> bool:
        return self.layout.blocks[self.layout.place[name][0]].personal

    def cell(self, name: str, worker: int) -> Tensor:
        """The copy of ``name`` that ``worker`` holds, a view. KeyError where the cell is empty."""
        held_by = self.layout.blocks[self.layout.place[name][0]].holders
        if worker not in held_by:
            raise KeyError(f"worker {worker} does not hold {name}")
        return self[name][held_by.index(worker)]

    def cell_or_shape(self, name: str, worker: int) -> Tensor:
        """As `cell`; for a worker in another process an empty tensor of its shape, on ``meta``."""
        here = worker in self.layout.blocks[self.layout.place[name][0]].holders
        return self.cell(name, worker) if here else self[name].new_empty(self[name].shape[1:], device="meta")

    @property
    def dry(self) -> bool:
        """Whether these are shapes without numbers. Sums, differences and `map` then leave them as they are."""
        return self.blocks[0].is_meta

    def map(self, f: Callable[..., Tensor], *others: Stack) -> Stack:
        """Apply ``f`` to each block and the same block of ``others`` (``[1, P]`` where those are agreed states)."""
        blocks = zip(self.blocks, *(x.blocks for x in others), strict=True)
        return self if self.dry else Stack(self.layout, [f(*of_block) for of_block in blocks])

    def clone(self) -> Stack:
        return Stack(self.layout, [b.clone() for b in self.blocks])

    def zeros_like(self) -> Stack:
        return Stack(self.layout, [torch.zeros_like(b) for b in self.blocks])

    def __add__(self, other: Stack) -> Stack:
        return self if self.dry else Stack(self.layout, list(torch._foreach_add(self.blocks, other.blocks)))

    def __sub__(self, other: Stack) -> Stack:
        return self if self.dry else Stack(self.layout, list(torch._foreach_sub(self.blocks, other.blocks)))

    def select(self, names: Iterable[str]) -> Stack:
        """A copy of some of the tensors as a stack of its own."""
        layout = layout_like(self, names, lambda n: self[n].shape[1:])
        return Stack(layout, [torch.cat([self.flat(n) for n in b.names], 1) for b in layout.blocks])

    def first(self) -> Stack:
        """One agreed copy ``[1, P]`` of every block, taken from its first holder (all equal at the start of a run)."""
        return Stack(self.layout, [b[:1].clone() for b in self.blocks])

    def rows(self, i: int, workers: Sequence[bool]) -> list[int]:
        """Rows of block ``i`` whose worker is marked in ``workers``."""
        return [r for r, w in enumerate(self.layout.blocks[i].holders) if workers[w]]

    @torch.no_grad()
    def copy_(self, agreed: Stack, workers: Sequence[bool]) -> None:
        """Every marked holder takes its own copy of an agreed state that it already knows: nothing travels. What is personal stays."""
        for i, (mine, theirs) in enumerate(zip(self.blocks, agreed.blocks, strict=True)):
            rows = [] if self.dry or self.layout.blocks[i].personal else self.rows(i, workers)
            if len(rows) == len(mine):
                mine.copy_(theirs)
            elif rows:
                mine[rows] = theirs

    @torch.no_grad()
    def put_(self, values: Stack, workers: Sequence[bool]) -> None:
        """Every marked holder takes the values, agreed or its own, of the tensors that ``values`` has."""
        for name in [n for n in values.names() if not (self.dry or self.is_personal(n))]:
            mine, new, rows = self[name], values[name], self.rows(self.layout.place[name][0], workers)
            mine[rows] = new[rows] if len(new) == len(mine) else new

    @torch.no_grad()
    def zero_(self, workers: Sequence[bool] | None = None) -> None:
        """Zero at every marked holder; None: at all, and where the values are agreed."""
        for i, x in enumerate(self.blocks):
            x[slice(None) if workers is None else self.rows(i, workers)] = 0.0


def layout_like(stack: Stack, names: Iterable[str], shape: Callable[[str], Sequence[int]]) -> Layout:
    """A layout of some of the tensors, held by the same workers and in the same groups, with shapes of their own."""
    at = {n: stack.layout.blocks[stack.layout.place[n][0]] for n in names}
    shapes = {n: torch.Size(shape(n)) for n in at}
    holders, mine = {n: b.everywhere for n, b in at.items()}, stack.layout.mine
    return Layout.of(holders, shapes, lambda n: at[n].group, mine=mine, personal=lambda n: at[n].personal)


@contextlib.contextmanager
def frozen(stacks: Iterable[Stack], up: Sequence[bool]) -> Iterator[None]:
    """Inside, workers that are down are protected: their rows are restored on leaving."""
    down = [not u for u in up]
    rows = [(x, r, x[r]) for s in stacks for i, x in enumerate(s.blocks) if (r := s.rows(i, down))] if any(down) else []
    yield
    with torch.no_grad():
        for x, r, old in rows:
            x[r] = old


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for weights, sums and decompositions: at least float32, since narrower dtypes round with a bias.

    Whole numbers stay whole.
    """
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def for_sums(x: Tensor) -> Tensor:
    """In float64, for sums of many numbers; Apple's GPUs have no more than float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


@torch.no_grad()
def clip_(grads: Stack, max_norm: float | None, how: str = "norm") -> None:
    """Clip every worker's gradient by itself, in place.

    ``how="norm"``: scale so that the worker's norm over all its tensors is at most ``max_norm``
    (as ``torch.nn.utils.clip_grad_norm_``); ``how="value"``: clamp each coordinate to ±``max_norm``.
    """
    if max_norm is None or grads.dry:
        return
    if how == "value":
        torch._foreach_clamp_min_(grads.blocks, -max_norm)
        torch._foreach_clamp_max_(grads.blocks, max_norm)
        return
    scale_W = (max_norm / (worker_norms(grads) + 1e-6)).clamp_(max=1.0)
    for block, g in zip(grads.layout.blocks, grads.blocks, strict=True):
        g.mul_(scale_W[block.index.to(g.device), None])


@torch.no_grad()
def worker_norms(stack: Stack) -> Tensor:
    """Euclidean norm over all tensors of each worker, ``[workers]``."""
    num = 1 + max(max(b.everywhere) for b in stack.layout.blocks)
    dtype = at_least_float32(stack.blocks[0].dtype)
    square_W = torch.zeros(num, device=stack.blocks[0].device, dtype=dtype)
    for block, x in zip(stack.layout.blocks, stack.blocks, strict=True):
        square_W.index_add_(0, block.index.to(x.device), torch.linalg.vector_norm(x, dim=1, dtype=dtype).square())
    return square_W.sqrt()
