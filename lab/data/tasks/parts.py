"""What inputs consist of, such as the channels of each of several sensors; inputs of which only some parts are there.

Where somebody has only some of the parts, the rest of an input is zero. What is there stays in its own place (``concatenated``: each part
has channels of its own), or moves to the beginning (``shared``: the same channels are now of one part, now of another). The federation of
Iacob et al. 2023 (arXiv 2305.12134) has both.

Legend: E examples, C channels of all parts together, M parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from lab.ground.errors import RecipeError

Padding = Literal["concatenated", "shared"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Of what the inputs of `lab.data.tasks.task.Examples` consist, along their first axis.

    name
        what a part is, as a split calls it: ``sensor`` for ``split=by:person+sensor``.
    sizes
        channels of each part, in order.
    present
        bool ``[E, M]``: which parts an example has; None: all. The others are zero in its input.
    padding
        where parts are in an input of which not all are there.
    """

    name: str
    sizes: tuple[int, ...]
    present: Tensor | None = None
    padding: Padding = "concatenated"


def padded(some: Mapping[int, Tensor], sizes: Sequence[int], padding: Padding = "concatenated") -> Tensor:
    """Some parts by number, ``[E, size, …]`` each, as inputs ``[E, C, …]`` in which all others are zero.

    With ``shared`` they stand at the beginning, in the order of their numbers, and the zeros behind them.

    Raises
    ------
    RecipeError
        for no part at all, for a number or a size that does not fit, and for a padding that there is not.
    """
    if padding not in ("concatenated", "shared"):
        raise RecipeError(f"padding = {padding!r} is not allowed: use concatenated or shared")
    if not some:
        raise RecipeError("there is no part to be padded: give at least one")
    for m, x in some.items():
        if not 0 <= m < len(sizes) or x.dim() < 2 or x.shape[1] != sizes[m]:
            raise RecipeError(
                f"part {m} has shape {list(x.shape)}: parts are numbered 0 to {len(sizes) - 1}, and have {list(sizes)} channels"
            )
    first = next(iter(some.values()))
    ends = list(accumulate(sizes))
    found, at = first.new_zeros(len(first), ends[-1], *first.shape[2:]), 0
    for m in sorted(some):
        start = ends[m] - sizes[m] if padding == "concatenated" else at
        found[:, start : start + sizes[m]] = some[m]
        at += sizes[m]
    return found


def apart(inputs: Tensor, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Every part of every example by itself, padded: inputs ``[E′, C, …]``, of which example each is, and which part it is, ``[E′]``.

    All of part 0 come first, then those of part 1. What an example does not have is left out.

    Raises
    ------
    RecipeError
        where parts do not make up the inputs.
    """
    check_parts(inputs, parts)
    here = torch.ones(len(inputs), len(parts.sizes), dtype=torch.bool) if parts.present is None else parts.present.cpu()
    sizes = torch.tensor(parts.sizes)
    counted = here if parts.padding == "shared" else torch.ones_like(here)  # what stands before a part in its input
    starts = (counted * sizes).cumsum(1) - counted * sizes  # [E, M]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for m, size in enumerate(parts.sizes):
        for start in starts[here[:, m], m].unique().tolist():
            index = (here[:, m] & (starts[:, m] == start)).nonzero()[:, 0]
            alone = inputs[index.to(inputs.device), start : start + size]
            found.append((padded({m: alone}, parts.sizes, parts.padding), index, torch.full_like(index, m)))
    every, of, which = zip(*found, strict=True)
    return torch.cat(every), torch.cat(of), torch.cat(which)


def check_parts(inputs: Tensor, parts: Parts) -> None:
    """Raises RecipeError where parts do not make up the inputs ``[E, C, …]``."""
    if inputs.dim() < 2 or sum(parts.sizes) != inputs.shape[1] or min(parts.sizes, default=0) < 1:
        raise RecipeError(
            f"parts ({parts.name}) of {list(parts.sizes)} channels do not make up inputs of shape {list(inputs.shape)}: "
            "give a number for each part, which sum to the length of axis 1"
        )
    if parts.present is not None:
        if tuple(parts.present.shape) != (len(inputs), len(parts.sizes)) or parts.present.dtype != torch.bool:
            raise RecipeError(
                f"parts ({parts.name}): present has shape {list(parts.present.shape)} for {len(inputs)} examples of "
                f"{len(parts.sizes)} parts: give true or false for each"
            )
        if not bool(parts.present.any()):
            raise RecipeError(f"parts ({parts.name}): no example has any")
