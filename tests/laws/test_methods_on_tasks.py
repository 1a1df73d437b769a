"""`lab.testing.check_method` of every method on the lab's tasks, and on one of a user's.

All of them on all tasks take two minutes of a core: each method has one of the tasks here, in turn, and ``ISTHMUS_ALL_TASKS=1`` gives it all.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest

import lab
from lab.methods import METHODS, declared
from tests.support.listed import OF_ADAPTERS
from tests.support.parts import blobs, net

TASKS: dict[str, dict[str, Any]] = {
    "digits": {"data": {"name": "digits", "image": False}, "model": {"name": "mlp", "hidden": [3]}},
    "digits as images": {"data": "digits", "model": {"name": "cnn", "channels": [2]}},
    "mnist1d": {"data": {"name": "mnist1d", "num_samples": 100}, "model": {"name": "conv1d", "channels": [2]}},
    "sensors": {"data": "sensors", "model": {"name": "conv1d", "channels": [2]}},
    "own": {"data": partial(blobs, seed=4), "model": partial(net, width=4)},
}
PAIRS = [
    (name, task)
    for k, name in enumerate(METHODS)
    for i, task in enumerate(TASKS)
    if os.environ.get("ISTHMUS_ALL_TASKS") or i == k % len(TASKS)
]


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_every_method_keeps_the_laws_on_a_task(name: str, task: str) -> None:
    recipe = dict(TASKS[task])
    if name == "lordo" and task in ("mnist1d", "sensors"):  # the filters of a convolution are no matrix to be projected
        recipe["model"] = {"name": "sensor_transformer", "dim": 4, "num_layers": 1, "num_heads": 1, "patch": 10}
    if name in OF_ADAPTERS:
        target = "0" if task == "own" else "hidden.0" if task == "digits" else "head"
        recipe["lora"] = {"ranks": [2], "targets": [target]}
        if declared(METHODS[name]()).trains_B_alone:
            recipe["lora"]["train"] = "B"
    if declared(METHODS[name]).unlabelled:
        recipe["server"] = {"labelled": 2}
    report = lab.testing.check_method(name, recipe)
    report.assert_all()
    assert sum(f.outcome == "passed" for f in report.findings) >= 15
