"""A small convolutional network for images.

Legend: B images, C channels, H × W pixels, K outputs.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, RecipeView, config
from lab.models.layers import Norm, check_halved, check_kernel, draw_, made, norm_of, refuse
from lab.models.registry import model
from lab.models.shape import Shape


@model("cnn")
@config
class CNN:
    """Convolutions, each with ReLU and 2 × 2 max-pooling behind it, then one hidden layer.

    The default is the CNN of FedAvg (McMahan et al. 2017, arXiv 1602.05629): 5 × 5 convolutions with 32 and 64 channels, 512
    hidden units, 1,663,370 parameters for 28 × 28 grey pixels and 10 classes. First values are those of torch's own layers
    (`lab.models.layers.draw_`).

    channels
        of each convolution; each halves the image.
    kernel
        pixels of its side, an odd number.
    hidden
        units of the hidden layer.
    norm
        after each convolution: none, ``batch`` (whose running statistics are buffers) or ``group``.
    dropout
        share of the hidden units that are dropped in training.
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    kernel: Count = 5
    hidden: Count = 512
    norm: Norm = "none"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    name: ClassVar[str]
    vocab_size: ClassVar[None] = None
    layers_and_experts: ClassVar[tuple[int, int]] = (0, 0)

    def __post_init__(self) -> None:
        check_kernel(self.kernel)

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with this model."""
        if self.dropout > 0:
            recipe.compute.one_by_one("dropout")
        if self.norm == "batch":
            recipe.compute.one_by_one("BatchNorm")

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """``forward(images [B, C, H, W]) -> [B, outputs]``; the protocol is `lab.models.shape.Model`."""
        if len(shape.input) != 3:
            raise refuse("cnn", "images [channels, height, width]", shape)
        check_halved("cnn", shape.input[1:], len(self.channels))
        return made(lambda: CNNModule(self, shape.input, shape.outputs), seed, draw_)


class CNNModule(nn.Module):
    def __init__(self, c: CNN, image: tuple[int, ...], num_out: int):
        super().__init__()
        channels, height, width = image
        widths, halved = [channels, *c.channels], 2 ** len(c.channels)
        pairs = zip(widths, c.channels, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, c.kernel, padding=c.kernel // 2) for a, b in pairs)
        self.norms = nn.ModuleList(norm_of(c.norm, b, 2) for b in c.channels)
        self.hidden = nn.Linear(widths[-1] * (height // halved) * (width // halved), c.hidden)
        self.dropout = nn.Dropout(c.dropout) if c.dropout else nn.Identity()
        self.head = nn.Linear(c.hidden, num_out)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)  # B C H/2 W/2
        x = self.dropout(F.relu(self.hidden(x.flatten(1))))
        return self.head(x)  # type: ignore[no-any-return]  # B K

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        return {"convs": "conv", "norms": "norm"}.get(part := name.partition(".")[0], part)
