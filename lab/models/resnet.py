"""ResNet-18 for small images (He et al. 2016, arXiv 1512.03385).

Legend: B images, C channels, H × W pixels, K outputs.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lab.ground.config import Count, RecipeView, config
from lab.models import layers
from lab.models.layers import made, norm_of, refuse
from lab.models.registry import model
from lab.models.shape import Shape


@model("resnet18")
@config
class ResNet18:
    """Eight blocks of two 3 × 3 convolutions, with a 3 × 3 stem and no pooling before them, as for images of 32 × 32 pixels.

    Names and shapes of all parameters are those of torchvision's ``resnet18`` (its stem is 7 × 7): 11,173,962 for three
    channels and 10 classes. First values are torchvision's as well: convolutions Normal(0, √(2 / fan-out)), norms at one,
    the last layer as torch's own.

    norm
        ``batch``, whose running statistics are buffers, or ``group``, which has none and does not
        hang on who else is in a batch: usual where clients differ (Hsieh et al. 2020, arXiv 1910.00189).
    width
        channels of the stem and of the first stage; the others have two, four and eight times as many.
    """

    norm: Literal["batch", "group"] = "batch"
    width: Count = 64

    name: ClassVar[str]
    vocab_size: ClassVar[None] = None
    layers_and_experts: ClassVar[tuple[int, int]] = (0, 0)

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with this model."""
        if self.norm == "batch":
            recipe.compute.one_by_one("BatchNorm")

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """``forward(images [B, C, H, W]) -> [B, outputs]``; the protocol is `lab.models.shape.Model`."""
        if len(shape.input) != 3:
            raise refuse("resnet18", "images [channels, height, width]", shape)
        return made(lambda: ResNet(self, shape.input[0], shape.outputs), seed, draw_)


def draw_(part: nn.Module, g: Generator) -> None:
    if isinstance(part, nn.Conv2d):
        nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=g)
    else:
        layers.draw_(part, g)


def conv(num_in: int, num_out: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """``relu(x + bn2(conv2(relu(bn1(conv1(x))))))``; where the shape changes, x goes through a 1 × 1 convolution."""

    def __init__(self, c: ResNet18, num_in: int, num_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(num_in, num_out, 3, stride), norm_of(c.norm, num_out, 2)
        self.conv2, self.bn2 = conv(num_out, num_out, 3, 1), norm_of(c.norm, num_out, 2)
        changes = stride > 1 or num_in != num_out
        shorter = [conv(num_in, num_out, 1, stride), norm_of(c.norm, num_out, 2)] if changes else []
        self.downsample = nn.Sequential(*shorter)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.downsample(x) + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    def __init__(self, c: ResNet18, channels: int, num_out: int):
        super().__init__()
        w = c.width
        self.conv1, self.bn1 = conv(channels, w, 3, 1), norm_of(c.norm, w, 2)
        self.layer1 = nn.Sequential(Block(c, w, w, 1), Block(c, w, w, 1))
        self.layer2 = nn.Sequential(Block(c, w, 2 * w, 2), Block(c, 2 * w, 2 * w, 1))
        self.layer3 = nn.Sequential(Block(c, 2 * w, 4 * w, 2), Block(c, 4 * w, 4 * w, 1))
        self.layer4 = nn.Sequential(Block(c, 4 * w, 8 * w, 2), Block(c, 8 * w, 8 * w, 1))
        self.fc = nn.Linear(8 * w, num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # B w H W
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # B 8w H/8 W/8
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # B K

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        if "bn" in name or "downsample.1" in name:
            return "norm"
        return "head" if name.startswith("fc.") else "conv"
