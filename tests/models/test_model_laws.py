"""`lab.testing.check_model`: the lab's own models keep all laws, and each law finds a model with one mistake."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lab
from lab.models.registry import MODELS
from lab.testing.model_laws import LAWS, Made
from tests.support.parts import blobs, net, pictures

OWN: dict[str, tuple[Any, Any]] = {
    "mlp": ({"name": "mlp", "hidden": [4], "dropout": 0.2}, blobs),
    "cnn": ({"name": "cnn", "channels": [2], "kernel": 3, "norm": "batch"}, pictures),
    "resnet18": ({"name": "resnet18", "width": 2}, pictures),
    "conv1d": ({"name": "conv1d", "channels": [2], "kernel": 3}, "tests.models.test_model_laws:windows"),
    "sensor_transformer": ({"name": "sensor_transformer"}, "tests.models.test_model_laws:windows"),
    "nano": ("nano", None),
    "moe": ({"dim": 8, "num_layers": 1, "num_heads": 2, "num_experts": 4, "expert_dim": 4, "top_k": 2}, None),
    "abbie": ({"name": "abbie", "dim": 8, "body": 1}, None),
    "own": (partial(net, width=5), partial(blobs, seed=3)),
}


def windows() -> Any:
    """Pictures read as four sensors over four moments."""
    found = pictures(side=4)
    parts = [(part.inputs[:, 0], part.targets) for part in (found.train, found.held_out)]
    return type(found)(*parts, num_classes=3)


@pytest.mark.parametrize("name", OWN)
def test_the_lab_s_own_models_keep_all(name: str) -> None:
    """Of attention that is fused, torch has no second derivative on a CPU; nothing else is left out."""
    report = lab.testing.check_model(*OWN[name])
    report.assert_all()
    fused = name in ("nano", "moe", "sensor_transformer", "abbie")
    assert [f.law for f in report.findings if f.outcome == "not applicable"] == ["second derivatives"] * fused
    assert [f.law for f in report.findings] == LAWS.names()


def test_none_is_left_out() -> None:
    assert set(MODELS) <= set(OWN)


class Map(nn.Module):
    """Nothing is wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)  # type: ignore[no-any-return]


class TooNarrow(Map):
    def forward(self, x: Tensor) -> Tensor:
        return self.map(x[:, :2])  # type: ignore[no-any-return]


class DtypeByDay(Map):
    days: ClassVar[list[int]] = []

    def __init__(self) -> None:
        Map.__init__(self)
        self.days.append(1)
        self.register_buffer("table", torch.zeros(len(self.days)))


class DrawsWithNumpy(Map):
    def __init__(self) -> None:
        Map.__init__(self)
        with torch.no_grad():
            self.map.bias.copy_(torch.from_numpy(np.random.rand(3)))  # noqa: NPY002


class ListOfParameters(Map):
    def __init__(self) -> None:
        Map.__init__(self)
        self.all = [self.map.weight, self.map.bias]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.all)


class CenteredByAll(Map):
    """What it has seen last is in its class, for all workers together."""

    last: ClassVar[dict[str, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        before = self.last.get("x", torch.zeros((), dtype=x.dtype))
        self.last["x"] = x.detach().mean()
        return self.map(x - before)  # type: ignore[no-any-return]


class Remembers(Map):
    def __init__(self) -> None:
        Map.__init__(self)
        self.before = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        y = self.map(x) * (1 + self.before)
        self.before = y.detach().mean()
        return y  # type: ignore[no-any-return]


class AlwaysDrops(Map):
    def forward(self, x: Tensor) -> Tensor:
        return self.map(F.dropout(x, 0.5))  # type: ignore[no-any-return]


class LooksAtTheBatch(Map):
    def forward(self, x: Tensor) -> Tensor:
        return self.map(x - x.mean(0))  # type: ignore[no-any-return]


class NormOfZero(Map):
    def __init__(self) -> None:
        Map.__init__(self)
        self.gain = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) * (1 + self.gain.norm())  # type: ignore[no-any-return]


def test_a_model_without_mistakes_keeps_all() -> None:
    report = lab.testing.check_model(Map, blobs)
    assert {f.outcome for f in report.findings} == {"passed"}


@pytest.mark.parametrize(
    ("law", "cls", "says"),
    [
        (
            "data",
            TooNarrow,
            "TooNarrow does not go with its data .inputs .4, 3. float64, targets .4. int64.: RuntimeError",
        ),
        (
            "names",
            DtypeByDay,
            r"table is .*\[\d+\].*, and made again .*\[\d+\].*; names and shapes follow from the options",
        ),
        ("seed", DrawsWithNumpy, "it draws from numpy's global generator; draw with torch"),
        ("gradient", ListOfParameters, "in a fleet it ends in an error .*looked up in forward"),
        ("neighbours", CenteredByAll, "is off by .* at worker 0 when worker 1 sees other data; modules share"),
        ("twice", Remembers, "the loss is off by .* the second time; what a module remembers"),
        ("evaluation", AlwaysDrops, r"the loss of a batch is off by .* the second time; eval\(\) has to turn off"),
        ("evaluation", LooksAtTheBatch, "the loss of a batch is .*, and the mean over its examples"),
        ("second derivatives", NormOfZero, "that of gain is not finite; usually the square root or norm"),
    ],
)
def test_each_law_finds_its_mistake(law: str, cls: type[nn.Module], says: str) -> None:
    finding = next(each for each in LAWS if each.name == law).check(Made(cls, blobs))
    assert finding.outcome == "failed", finding
    assert re.search(says, finding.says), finding.says
    assert "\n" not in finding.says


def test_what_cannot_be_tried_says_so_in_one_line() -> None:
    for model, says in ((lambda: Map(), "is a lambda"), ("no_such_net:make", "there is no module 'no_such_net'")):
        (finding,) = lab.testing.check_model(model, blobs).findings
        assert finding.outcome == "failed"
        assert re.search(says, finding.says), finding.says
