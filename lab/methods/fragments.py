"""Fragments: whole layers that travel together, each fragment at a time of its own, while training goes on.

What methods share that send them: which tensors they are, which times are allowed, and what a worker does when one arrives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import torch

from lab.engine.optim import states
from lab.engine.outer import descend_
from lab.engine.stack import Stack
from lab.engine.state import State
from lab.ground.errors import RecipeError

Pattern = Literal["strided", "contiguous"]


def fragments(
    names: Iterable[str], num: int, pattern: Pattern = "strided", outside: Literal["own", "first"] = "own"
) -> list[list[str]]:
    """Tensors by fragment: whole layers (``….3.…`` is layer 3), in the order of the model.

    Parameters
    ----------
    pattern
        ``strided``: layer i in fragment i mod P; ``contiguous``: neighbours together.
    outside
        what is in no layer (embeddings, a last norm) is a layer of its ``own``, or lies in the ``first`` fragment (unless there are fewer layers
        than fragments: then it is a layer of its own as well).

    Raises
    ------
    RecipeError
        if there are fewer layers than fragments.
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        inside = re.match(r"(.*?\.\d+)\.", name)
        layers.setdefault(inside[1] if inside else name, []).append(name)
    if num > len(layers):
        raise RecipeError(
            f"num_fragments = {num} is more than the {len(layers)} layers and single tensors of the model"
        )
    apart = [name for name, layer in layers.items() if layer == [name]]
    first = apart if outside == "first" and len(layers) - len(apart) >= num else []
    inner = [layer for name, layer in layers.items() if name not in first]
    out: list[list[str]] = [[] for _ in range(num)]
    out[0] += first
    for i, layer in enumerate(inner):
        out[i % num if pattern == "strided" else i * num // len(inner)] += layer
    return out


def check_times(num_fragments: int, overlap: int, period: int, option: str = "sync_every") -> None:
    """Raises RecipeError where fragments cannot all be sent, and arrive ``overlap`` steps later, within a period (the value of ``option``)."""
    if overlap >= period:
        raise RecipeError(
            f"overlap = {overlap} must be less than {option} = {period}: a fragment has to arrive before it is sent again"
        )
    if num_fragments > period:
        raise RecipeError(
            f"num_fragments = {num_fragments} is more than the {option} = {period} steps there are to send them in"
        )


def why_fixed(method: str, overlap: int) -> str | None:
    """Why periods cannot be turned while a run goes on; None where they can."""
    if not overlap:
        return None
    return (
        f"the periods of {method} with overlap = {overlap} are fixed: what is on its way would never arrive; "
        "use method.overlap=0"
    )


def outer_step_(s: State, p: int, moved: Stack) -> Stack:
    """The outer step of fragment ``p`` of the parameters; ``moved`` is E[local − shared] and is used up. Returns what is shared now."""
    shared, optimizer = s.shared[f"params.{p}"], s.optimizers[f"outer.{p}"]
    descend_(optimizer, moved, s.fleet.up)
    s.shared.update({f"{name}.{p}": stack for name, stack in states(optimizer, shared).items()})
    return shared


@torch.no_grad()
def mix_(s: State, state: str, agreed: Stack, keep: float) -> None:
    """Every worker that is up takes what is agreed of some tensors of a state, and keeps a part of its own."""
    mine = s.local[state].select(agreed.names())
    s.local[state].put_(mine.map(lambda x, y: y + keep * (x - y), agreed), s.fleet.up)
