"""Fragments: whole layers that travel together, each fragment at a time of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from lab.errors import RecipeError

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
