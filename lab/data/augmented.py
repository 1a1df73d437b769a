"""Other views of the same examples: moved, scaled and noisy, for learners that are to say the same of all of them.

Legend: B examples of a batch, C channels, L places along an axis in space or time.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.ground.config import config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator


@config
class Augmentation:
    """What is done to each example of a batch by itself; with zeros throughout, nothing.

    What is drawn follows from a seed, a purpose and the numbers of the batch, not from who has it: equal batches have equal views, in
    whichever row or process they are.

    shift
        by how many places an example moves along each axis in space or time (those behind the channels) at most, as a share of its length;
        what comes in is what stood at the edge. Examples without such an axis do not move.
    scale
        each example is multiplied by one number between 1 − scale and 1 + scale.
    noise
        deviation of normal noise on each number, in deviations of the example's own numbers.
    """

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0

    @torch.no_grad()
    def __call__(self, inputs: Tensor, seed: int, *purpose: str | int) -> Tensor:
        """Of a batch ``[B, *]`` of floats another one. Raises RecipeError for tokens and categories."""
        if not (self.shift or self.scale or self.noise):
            return inputs
        if not inputs.is_floating_point():
            raise RecipeError(
                "examples that are tokens or categories cannot be moved or made noisy: leave augmentation out"
            )
        g = drawn_for(inputs, seed, *purpose)
        x = inputs
        for axis in range(2, inputs.dim()):
            most = int(self.shift * inputs.shape[axis])
            by = torch.randint(-most, most + 1, (len(x),), generator=g, device="cpu")
            x = shifted(x, by.to(x.device), axis) if most else x
        each = (len(x), *[1] * (x.dim() - 1))
        if self.scale:
            x = x * (1 + self.scale * (2 * torch.rand(each, generator=g, dtype=torch.float32, device="cpu") - 1)).to(x)
        if self.noise:
            size = inputs.flatten(1).std(1, correction=0).view(each)
            x = x + self.noise * size * torch.randn(x.shape, generator=g, dtype=torch.float32, device="cpu").to(x)
        return x


def drawn_for(inputs: Tensor, seed: int, *purpose: str | int) -> torch.Generator:
    """A generator of the CPU for one purpose and these very numbers."""
    numbers = inputs.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.blake2b(numbers.tobytes(), digest_size=8).digest()
    return generator(seed, *purpose, int.from_bytes(digest, "little"))


def shifted(x: Tensor, by: Tensor, axis: int) -> Tensor:
    """Each example of ``x`` ``[B, …, L, …]`` moved by ``by`` ``[B]`` places towards the end of one axis; the value at the edge fills up."""
    length = x.shape[axis]
    source = (torch.arange(length, device=x.device) - by[:, None]).clamp(0, length - 1)  # B L
    index = source.view(len(x), *[length if a == axis else 1 for a in range(1, x.dim())]).expand_as(x)
    return x.gather(axis, index)
