"""Runs whose data is a task: stopped and resumed as if never stopped, scored exactly, and what they say where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lab
from lab.data.tasks.tensors import Regression
from lab.events import Evaluated, Started
from lab.runs.trainer import Trainer
from tests.support.cases import IMAGES, SENSORS
from tests.support.examples import of_groups
from tests.support.recipes import recipe
from tests.support.stop_and_go import stop_and_go
from tests.support.texts import fails

TASKS = {"classes of images": IMAGES, "sensors of people": SENSORS}


@pytest.mark.parametrize("name", TASKS)
def test_stopped_and_resumed_is_never_stopped(name: str, tmp_path: Path) -> None:
    stop_and_go(recipe(steps=3, **TASKS[name]), tmp_path)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_validation_loss_is_exact_whatever_the_batch_size(name: str, batch_size: int) -> None:
    """What a run says is the mean over its held-out examples, and the scores are of the same, counted by themselves."""
    trainer = Trainer(recipe("ddp", steps=1, **TASKS[name] | {"batch_size": batch_size, "eval_windows": 20}))
    said = next(e for e in trainer.events() if isinstance(e, Evaluated))
    data, model = trainer.setup.data, trainer.fleet.modules[0]  # after a step of DDP all are alike
    assert data is not None
    x, y = (torch.cat(part) for part in zip(*data.validation, strict=True))
    assert (len(x), x.dtype) == (20, torch.float64)
    with torch.no_grad():
        logits = model.eval()(x)
    assert said.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-12)
    assert said.scores["accuracy"] == (logits.argmax(1) == y).double().mean().item()


def test_numbers_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression of one's own, by groups: its loss and scores are those of numbers, and clients are as large as their groups."""
    run = lab.train(recipe("ddp", steps=2, num_workers=3, data=of_groups, split="groups", model="mlp"))
    assert run.scores[-1].keys() == {"mse", "mae", "r2"}
    assert run.scores[-1]["mse"] == pytest.approx(run.eval_loss[-1], rel=1e-12)
    trainer = Trainer(recipe("ddp", num_workers=3, data=of_groups, split="groups", model="mlp"))
    assert trainer.setup.data is not None
    assert sorted(trainer.setup.data.samples_W) == [4, 6, 10]
    assert isinstance(of_groups(), Regression)


def test_a_run_knows_its_examples() -> None:
    """The digest that a run remembers is that of the examples, and not of how they are dealt."""

    def digest(**changes: Any) -> Any:
        started = next(
            e for e in Trainer(recipe("ddp", steps=1, **SENSORS | changes)).events() if isinstance(e, Started)
        )
        return started.inputs

    one = digest()
    assert one == digest(split="iid") == digest(batch_size=3)
    assert one != digest(data=SENSORS["data"] | {"seed": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits", "split": "groups", "model": "mlp"}, "needs natural groups, which these examples do not have"),
        ({**SENSORS, "num_workers": 7}, "split 'groups' gives 6 groups to 7 workers: use at most 6 workers"),
        ({**SENSORS, "model": "cnn"}, "model cnn is for"),
        ({**SENSORS, "model": "nano"}, r"model GPT predicts tokens, and the data has examples of shape \[5, 16\]"),
        ({**SENSORS, "data": {"name": "sensors", "rooms": 0}}, "data.rooms = 0 is not allowed"),
        ({**SENSORS, "data": {"name": "sensors", "room": -1}}, "data.room = -1 is not allowed"),
        ({**SENSORS, "data": {"name": "sensors", "noises": 1}}, "unknown option of data sensors 'noises'.*did you mean 'noise'"),
        ({**SENSORS, "data": "sensor"}, "unknown task 'sensor'.*did you mean 'sensors'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_trains(changes: Any, message: str) -> None:
    with fails(message):
        Trainer(recipe("ddp", **changes))
