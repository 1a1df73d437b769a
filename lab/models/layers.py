"""What the small models share: first values of torch's own layers from a generator of their own, and which data they are for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.models.shape import Shape

Norm = Literal["batch", "group", "none"]
# By the number of axes of an example.
FITTING = {1: "mlp, conv1d or sensor_transformer", 2: "conv1d, sensor_transformer or mlp", 3: "cnn, resnet18 or mlp"}


def made(build: Callable[[], nn.Module], seed: int, draw_: Callable[[nn.Module, torch.Generator], None]) -> nn.Module:
    """What ``build`` makes, in float32, with first values from ``seed``; under the meta device only shapes.

    It is built on ``meta`` in any case, where the values that torch's layers give themselves cost nothing and draw from no
    generator.

    Parameters
    ----------
    draw_
        gives one part, without those inside it, its first values; called for all of them in their order.
    """
    with torch.device("meta"):
        module = build().float()
    if torch.empty(0).is_meta:
        return module
    module.to_empty(device="cpu")
    g = generator(seed, "init")
    for part in module.modules():
        draw_(part, g)
    return module


@torch.no_grad()
def draw_(part: nn.Module, g: torch.Generator) -> None:
    """As torch's own layers begin: linear maps and convolutions uniform within ±1/√fan-in, norms at one.

    (That is Kaiming-uniform with a = √5, He et al. 2015, for the weight, and the same bound for the bias.)
    """
    if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
        bound = 1 / math.sqrt(part.weight[0].numel())
        for p in (part.weight, part.bias):
            if p is not None:
                p.uniform_(-bound, bound, generator=g)
    elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
        part.reset_parameters()  # ones and zeros, running statistics too: nothing is drawn
    elif [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
        raise TypeError(f"{type(part).__name__} has values of its own: say what they are at first")


def norm_of(kind: Norm, channels: int, axes: int) -> nn.Module:
    """A normalisation of so many channels over ``axes`` axes in space or time, 1 or 2.

    ``group``: 32 groups (Wu & He 2018, arXiv 1803.08494), or as many as divide the channels; it has no buffers.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels) if axes == 2 else nn.BatchNorm1d(channels)
    return nn.GroupNorm(math.gcd(32, channels), channels) if kind == "group" else nn.Identity()


def refuse(model: str, what: str, shape: Shape) -> RecipeError:
    """The error for data that a model is not for; ``what`` it is for, in words."""
    if not shape.input:
        return RecipeError(
            f"model {model} is for {what}, and the data is text: use the name of a size (nano, micro, …) or hf:<name or folder>"
        )
    fitting = FITTING.get(len(shape.input), "mlp")
    return RecipeError(
        f"model {model} is for {what}, and the data has examples of shape {list(shape.input)}: use {fitting}"
    )


def check_kernel(kernel: int) -> None:
    """Raises RecipeError for a kernel that would shift what it is laid over."""
    if kernel % 2 == 0:
        raise RecipeError(f"model.kernel = {kernel} is even and has no middle: use {kernel - 1} or {kernel + 1}")


def check_halved(model: str, lengths: Sequence[int], times: int) -> None:
    """Raises RecipeError where an axis of the data is too short to be halved so often."""
    most = min(lengths).bit_length() - 1
    if times > most:
        raise RecipeError(
            f"model {model} halves its data once for each of its {times} model.channels, and {' × '.join(map(str, lengths))} is too small "
            f"for that: use {f'at most {most}' if most > 0 else 'mlp'}"
        )
