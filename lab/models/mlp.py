"""A multilayer perceptron, for examples of any shape.

Legend: B examples, I numbers of an example, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, RecipeView, config
from lab.models.layers import draw_, made, refuse
from lab.models.registry import model
from lab.models.shape import Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": F.tanh}


@model("mlp")
@config
class MLP:
    """Linear maps with an activation between them; examples that have several axes (images, windows) are flattened.

    The default is the "2NN" of FedAvg (McMahan et al. 2017, arXiv 1602.05629): 199,210 parameters for 28 × 28 pixels and 10
    classes. First values are those of torch's own layers (`lab.models.layers.draw_`).

    hidden
        widths of the hidden layers; ``[]``: a linear model.
    dropout
        share of the hidden activations that are dropped in training.
    """

    hidden: tuple[Count, ...] = (200, 200)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    name: ClassVar[str]
    vocab_size: ClassVar[None] = None
    layers_and_experts: ClassVar[tuple[int, int]] = (0, 0)

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with this model."""
        if self.dropout > 0:
            recipe.compute.one_by_one("dropout")

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """``forward(inputs [B, *input]) -> [B, outputs]``; the protocol is `lab.models.shape.Model`."""
        if not shape.input:
            raise refuse("mlp", "examples of a fixed shape", shape)
        return made(lambda: MLPModule(self, math.prod(shape.input), shape.outputs), seed, draw_)


class MLPModule(nn.Module):
    def __init__(self, c: MLP, num_in: int, num_out: int):
        super().__init__()
        widths = [num_in, *c.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, c.hidden, strict=False))
        self.head = nn.Linear(widths[-1], num_out)
        self.dropout = nn.Dropout(c.dropout) if c.dropout else nn.Identity()
        self.activation = ACTIVATIONS[c.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # B I
        for layer in self.hidden:
            x = self.dropout(self.activation(layer(x)))
        return self.head(x)  # type: ignore[no-any-return]  # B K

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        return name.partition(".")[0]
