"""Parts as users bring them: a model, data and a method of one's own."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lab.data.tasks.tensors import Classification
from lab.methods import METHODS


def blobs(num: int = 96, width: int = 3, seed: int = 0) -> Classification:
    """Points of three classes, each around a corner of its own."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num + 32,), generator=g)
    points = torch.randn(num + 32, width, generator=g) + torch.eye(3, width)[labels] * 3
    return Classification((points[:num], labels[:num]), (points[num:], labels[num:]), num_classes=3)


def pictures(num: int = 96, side: int = 4, channels: int = 1, seed: int = 0) -> Classification:
    """Noise with a bright spot, in one of three columns."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num + 32,), generator=g)
    images = torch.randn(num + 32, channels, side, side, generator=g)
    images[torch.arange(num + 32), :, 1, labels] += 3
    return Classification((images[:num], labels[:num]), (images[num:], labels[num:]), num_classes=3)


def net(input_shape: tuple[int, ...], num_outputs: int, width: int = 8) -> nn.Module:
    """A net that asks the data for its sizes."""
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, num_outputs))


@contextlib.contextmanager
def with_own_method() -> Iterator[Any]:
    """The class of the method in `tests.support.own_method`, known by its name inside and forgotten afterwards: others count methods."""
    before = dict(METHODS)
    found: Any = importlib.import_module("tests.support.own_method").OwnAverage
    METHODS["own_average"] = found
    try:
        yield found
    finally:
        METHODS.clear()
        METHODS.update(before)
        METHODS.pop("own_average", None)


class Bigrams(nn.Module):
    """Text by the token before alone, which gives its last hidden states."""

    def __init__(self, vocab_size: int, width: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.head = nn.Linear(width, vocab_size)

    def with_hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embedding(ids)
        return hidden, self.head(hidden)

    def forward(self, ids: Tensor) -> Tensor:
        return self.with_hidden(ids)[1]


def silent(vocab_size: int) -> nn.Module:
    """The same, without a word on its states."""
    return nn.Sequential(nn.Embedding(vocab_size, 4), nn.Linear(4, vocab_size))
