"""Models for windows of sensor readings, ``[channels, time]``; of one channel also ``[time]``.

Legend: B windows, C channels, T readings in time, P patches, D width, N heads, K outputs.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, RecipeView, config
from lab.ground.errors import RecipeError
from lab.models import layers
from lab.models.layers import Norm, check_halved, check_kernel, made, norm_of, refuse
from lab.models.registry import model
from lab.models.shape import Shape


@model("conv1d")
@config
class Conv1D:
    """Convolutions over time, each with ReLU and max-pooling of two behind it, then the mean over time and a linear map.

    First values are those of torch's own layers (`lab.models.layers.draw_`).

    channels
        of each convolution; each halves the time axis.
    kernel
        readings it looks at, an odd number.
    norm
        after each convolution: ``group``, none, or ``batch``, whose running statistics are buffers.
    dropout
        share of what the last layer looks at that is dropped in training.
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 64)
    kernel: Count = 5
    norm: Norm = "group"
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
        """``forward(windows [B, C, T] or [B, T]) -> [B, outputs]``; the protocol is `lab.models.shape.Model`."""
        channels, time = window("conv1d", shape)
        check_halved("conv1d", [time], len(self.channels))
        return made(lambda: Conv1DModule(self, channels, shape.outputs), seed, layers.draw_)


class Conv1DModule(nn.Module):
    def __init__(self, c: Conv1D, channels: int, num_out: int):
        super().__init__()
        pairs = zip([channels, *c.channels], c.channels, strict=False)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, c.kernel, padding=c.kernel // 2) for a, b in pairs)
        self.norms = nn.ModuleList(norm_of(c.norm, b, 1) for b in c.channels)
        self.dropout = nn.Dropout(c.dropout) if c.dropout else nn.Identity()
        self.head = nn.Linear(c.channels[-1], num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = with_channels(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool1d(F.relu(norm(conv(x))), 2)  # B C T/2
        return self.head(self.dropout(x.mean(2)))  # type: ignore[no-any-return]  # B K

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        return {"convs": "conv", "norms": "norm"}.get(part := name.partition(".")[0], part)


@model("sensor_transformer")
@config
class SensorTransformer:
    """A transformer encoder over patches in time, as ViT (arXiv 2010.11929) has them in space; its answer is the mean of all patches.

    Blocks are pre-norm, with attention to all patches and learned positions. First values are those of torch's own layers
    (`lab.models.layers.draw_`), positions Normal(0, 0.02).

    patch
        readings in time that become one vector; what is missing to the last one is zero.
    dim, num_heads
        width of the vectors, a multiple of the number of heads. The hidden layers are ``mlp_ratio`` times as wide.
    """

    patch: Count = 8
    dim: Count = 64
    num_layers: Annotated[int, Field(ge=1, le=256)] = 2
    num_heads: Count = 4
    mlp_ratio: Count = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    name: ClassVar[str]
    vocab_size: ClassVar[None] = None
    layers_and_experts: ClassVar[tuple[int, int]] = (0, 0)

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise RecipeError(
                f"model.num_heads = {self.num_heads} does not fit model.dim = {self.dim}: dim must be a multiple of num_heads"
            )

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with this model."""
        if self.dropout > 0:
            recipe.compute.one_by_one("dropout")

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """``forward(windows [B, C, T] or [B, T]) -> [B, outputs]``; the protocol is `lab.models.shape.Model`."""
        channels, time = window("sensor_transformer", shape)
        return made(lambda: SensorTransformerModule(self, channels, time, shape.outputs), seed, draw_)


@torch.no_grad()
def draw_(part: nn.Module, g: torch.Generator) -> None:
    if isinstance(part, SensorTransformerModule):
        nn.init.normal_(part.positions, std=0.02, generator=g)
    else:
        layers.draw_(part, g)


class Attention(nn.Module):
    def __init__(self, c: SensorTransformer):
        super().__init__()
        self.num_heads = c.num_heads
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.out = nn.Linear(c.dim, c.dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each B N P D/N
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    def __init__(self, c: SensorTransformer):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(c.dim), Attention(c)
        self.mlp_norm = nn.LayerNorm(c.dim)
        self.mlp = nn.Sequential(
            nn.Linear(c.dim, c.mlp_ratio * c.dim), nn.GELU(), nn.Linear(c.mlp_ratio * c.dim, c.dim)
        )
        self.dropout = nn.Dropout(c.dropout) if c.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class SensorTransformerModule(nn.Module):
    def __init__(self, c: SensorTransformer, channels: int, time: int, num_out: int):
        super().__init__()
        self.missing = -time % c.patch
        self.patches = nn.Conv1d(channels, c.dim, c.patch, c.patch)
        self.positions = nn.Parameter(torch.empty((time + self.missing) // c.patch, c.dim))
        self.blocks = nn.ModuleList(EncoderBlock(c) for _ in range(c.num_layers))
        self.norm = nn.LayerNorm(c.dim)
        self.head = nn.Linear(c.dim, num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(F.pad(with_channels(x), (0, self.missing))).transpose(1, 2) + self.positions  # B P D
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]  # B K

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        if "norm" in name:
            return "norm"
        return next((part for part in ("attention", "mlp", "head") if part in name), "embedding")


def window(model: str, shape: Shape) -> tuple[int, int]:
    """Channels and readings of a window. Raises RecipeError for data of another shape."""
    if len(shape.input) not in (1, 2):
        raise refuse(model, "windows [channels, time]", shape)
    channels, time = (1, *shape.input)[-2:]
    return channels, time


def with_channels(x: Tensor) -> Tensor:
    """Windows as ``[B, C, T]``."""
    return x[:, None] if x.dim() == 2 else x
