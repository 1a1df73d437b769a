"""Parts of stacks: some of the tensors, or some of the workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from lab.engine.fleet import Layout, Stack


def layout_like(stack: Stack, names: Iterable[str], shape: Callable[[str], Sequence[int]]) -> Layout:
    """A layout of some of the tensors, held by the same workers and in the same groups, with shapes of their own."""
    at = {n: stack.layout.blocks[stack.layout.place[n][0]] for n in names}
    shapes = {n: torch.Size(shape(n)) for n in at}
    return Layout.of({n: b.everywhere for n, b in at.items()}, shapes, lambda n: at[n].group, mine=stack.layout.mine)


def part(stack: Stack, names: Iterable[str]) -> Stack:
    """A copy of some of the tensors as a stack of its own."""
    layout = layout_like(stack, names, lambda n: stack[n].shape[1:])
    return Stack(layout, [torch.cat([stack[n].reshape(len(stack[n]), -1) for n in b.names], 1) for b in layout.blocks])


@torch.no_grad()
def put_(stack: Stack, values: Stack, workers: Sequence[bool]) -> None:
    """Every marked holder takes the values, agreed or its own, of the tensors that ``values`` has."""
    for name in values.names():
        mine, new = stack[name], values[name]
        rows = stack.rows(stack.layout.place[name][0], workers)
        if not mine.is_meta:
            mine[rows] = new[rows] if len(new) == len(mine) else new


@contextlib.contextmanager
def held(stacks: Iterable[Stack], up: Sequence[bool]) -> Iterator[None]:
    """Whatever happens to the stacks inside, workers that are down keep their rows."""
    down = [not u for u in up]
    rows = [(x, r, x[r]) for s in stacks for i, x in enumerate(s.blocks) if (r := s.rows(i, down))] if any(down) else []
    yield
    with torch.no_grad():
        for x, r, old in rows:
            x[r] = old
