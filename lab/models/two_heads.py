"""A second head on a model's encoder: next to the classes of an example, where it lies in a space of few dimensions.

The encoder is all of the model that lies before its head. The model itself still gives classes, whoever runs it; latents are there for
those who ask (`latents`).

Legend: B examples, m what the head is given of each, p dimensions of a latent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.models.layers import draw_

NAME = "anchor_head"  # of the second head, as a part of the first
_ASKED = threading.local()  # workers run side by side, and each has a module of its own or shares one


def add_head_(module: nn.Module, num: int, seed: int, values: bool, path: str = "") -> None:
    """Give a model a linear map from what its head is given to ``num`` dimensions: a part of the head, ``head.anchor_head``.

    (A part of the model itself would be called with all others where those are a sequence.) In a ledger it is a group of its own.

    Parameters
    ----------
    seed, values
        what its first values are drawn from, as those of torch's own layers; and whether it has any.
    path
        of the head that gives the classes, a linear map; left out: ``head``, or else the last linear map.

    Raises
    ------
    RecipeError
        where there is none.
    """
    head = head_of(module, path)
    with torch.device("meta"):  # where the values that it gives itself are drawn from no generator
        second = nn.Linear(head.in_features, num, dtype=head.weight.dtype)
    if not head.weight.is_meta:
        second.to_empty(device=head.weight.device)
    if values:
        draw_(second, generator(seed, NAME))
    head.add_module(NAME, second)
    group: Callable[[str], str] = getattr(module, "tensor_group", lambda name: "all")
    module.tensor_group = lambda name: NAME if f"{NAME}." in name else group(name)  # type: ignore[assignment]

    def seen(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found: list[Tensor] | None = getattr(_ASKED, "found", None)
        if found is not None:
            found.append(part.get_submodule(NAME)(inputs[0]))  # B p

    head.register_forward_pre_hook(seen)


def head_of(module: nn.Module, path: str = "") -> nn.Linear:
    """The linear map that gives the classes. Raises RecipeError."""
    maps = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    found = maps.get(path or ("head" if "head" in maps else next(reversed(maps), "")))
    if found is None:
        raise RecipeError(
            f"method.head = {path!r} is no linear map of this model: use one of {', '.join(maps) or 'another model, which has one'}"
        )
    return found


@contextmanager
def latents() -> Iterator[list[Tensor]]:
    """Inside, the latents ``[B, p]`` of every batch that a model with two heads is given in this thread, in order."""
    _ASKED.found = []
    try:
        yield _ASKED.found
    finally:
        _ASKED.found = None
