"""`lab.testing.check_task`: the lab's own tasks keep all laws, and each law finds a task with one mistake."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lab
from lab.data.tasks.task import Examples
from lab.testing.task_laws import LAWS, Given
from tests.support.parts import blobs, pictures


@pytest.mark.parametrize(
    "task",
    ["digits", "sensors", {"name": "mnist1d", "num_samples": 100}, partial(blobs, seed=4), pictures],
    ids=["digits", "sensors", "mnist1d", "blobs", "pictures"],
)
def test_the_lab_s_own_tasks_keep_all(task: Any) -> None:
    report = lab.testing.check_task(task)
    report.assert_all()
    assert [f.law for f in report.findings] == LAWS.names()
    assert {f.outcome for f in report.findings} == {"passed"}


class Blobs:
    """Nothing is wrong with it."""

    num_outputs = 3

    def __init__(self) -> None:
        self.made = blobs()

    @property
    def train(self) -> Examples:
        return self.made.train

    @property
    def held_out(self) -> Examples:
        return self.made.held_out

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(module(inputs), targets)

    def num_targets(self, targets: Tensor) -> int:
        return len(targets)

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, Any]:
        with torch.no_grad():
            return {"accuracy": float((module(examples.inputs).argmax(1) == examples.targets).double().mean())}


class TooFewOutputs(Blobs):
    num_outputs = 2


class OtherEachTime(Blobs):
    def __init__(self) -> None:
        self.made = blobs(seed=random.randrange(10**6))


class MadeAnew(Blobs):
    """Every look at it finds one more."""

    def __init__(self) -> None:
        Blobs.__init__(self)
        self.num = 40

    @property
    def train(self) -> Examples:
        self.num += 1
        return replace(
            self.made.train, inputs=self.made.train.inputs[: self.num], targets=self.made.train.targets[: self.num]
        )


class Leaks(Blobs):
    @property
    def held_out(self) -> Examples:
        return self.made.train


class NoTensor(Blobs):
    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        return float(Blobs.loss(self, module, inputs, targets))


class Detached(Blobs):
    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        return Blobs.loss(self, module, inputs, targets).detach()


class Scales(Blobs):
    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        return Blobs.loss(self, module, inputs.div_(2), targets)


class Sum(Blobs):
    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        return F.cross_entropy(module(inputs), targets, reduction="sum")


class CountsAll(Blobs):
    """Its loss is a mean over two classes of three."""

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
        counts = targets > 0
        return F.cross_entropy(module(inputs), targets, reduction="none")[counts].sum() / counts.sum().clamp(min=1)


class Guesses(Blobs):
    def scores(self, module: nn.Module, examples: Examples) -> dict[str, Any]:
        return {"accuracy": random.random()}


class LeavesTrainMode(Blobs):
    def scores(self, module: nn.Module, examples: Examples) -> dict[str, Any]:
        found = Blobs.scores(self, module, examples)
        module.train()
        return found


class GivesTensors(Blobs):
    def scores(self, module: nn.Module, examples: Examples) -> dict[str, Any]:
        return {"accuracy": torch.tensor(0.5)}


def test_a_task_without_mistakes_keeps_all() -> None:
    assert {f.outcome for f in lab.testing.check_task(Blobs).findings} == {"passed"}


@pytest.mark.parametrize(
    ("law", "cls", "says"),
    [
        (
            "examples",
            TooFewOutputs,
            "train.targets of example . is 2, and num_outputs is 2; lab.data.tasks.tensors has",
        ),
        (
            "made again",
            OtherEachTime,
            "it draws from the global generator of Python's random; draw from torch.Generator",
        ),
        ("dealt once", MadeAnew, r"split=iid: example \d+ comes . times in an epoch"),
        ("held out", Leaks, "96 of 96 held-out examples are also in train; split first"),
        ("loss", NoTensor, r"it is 1\.\d+; return the mean loss"),
        ("loss", Detached, "it does not depend on the parameters"),
        ("loss", Scales, "it changes the batch that it is given"),
        ("means", Sum, r"the loss of 32 examples is \d+.*, and from batches of 1 it is .*; num_targets counts"),
        ("means", CountsAll, "the loss of 32 examples is .*, and from batches of 1 it is"),
        ("scores", Guesses, "they draw from the global generator of Python's random"),
        ("scores", LeavesTrainMode, "the module is in train mode afterwards"),
        ("scores", GivesTensors, r"'accuracy' is tensor\(0.5000\): a finite float by name"),
    ],
)
def test_each_law_finds_its_mistake(law: str, cls: type[Any], says: str) -> None:
    before = random.getstate()
    finding = next(each for each in LAWS if each.name == law).check(Given(cls))
    random.setstate(before)
    assert finding.outcome == "failed", finding
    assert re.search(says, finding.says), finding.says
    assert "\n" not in finding.says


def test_what_is_no_task_is_refused_in_one_line() -> None:
    for given, says in (
        (3, "data gives int, which has no train"),
        ("digit", "unknown task 'digit'"),
        (dict, "has no train"),
    ):
        (finding,) = lab.testing.check_task(given).findings
        assert finding.outcome == "failed"
        assert re.search(says, finding.says), finding.says
