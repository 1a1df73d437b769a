"""Runs that an earlier version has left behind (`tests/stored`): this one opens, replays and resumes them with the same numbers.

What is read must be equal in every bit. What is trained from there on is float64 and may differ by the rounding of another
processor; on the machine and the torch that made them ISTHMUS_EXACT=1 asks for every bit of it, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lab.events import Event, Stepped, to_json
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support import ROOT

STORED = ROOT / "tests/stored"
NAMES = ["diloco", "fomoe", "prelort"]
LATER: dict[str, dict[int, dict[str, Any]]] = {
    "diloco": {8: {"down": [0]}, 9: {"down": [], "lr": 2.0}}
}  # knobs, by step
EXACT = bool(os.environ.get("ISTHMUS_EXACT"))
OWN = {"started", "ended", "checkpointed", "warned"}  # of each execution: clock, machine, notes


@pytest.fixture(params=NAMES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    shutil.copytree(STORED / request.param, tmp_path / request.param)
    return RunFolder(tmp_path / request.param)


def finished(folder: RunFolder) -> dict[str, Any]:
    return json.loads((folder.path / "finished.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def told(events: list[Event] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    plain = [e if isinstance(e, dict) else json.loads(to_json(e)) for e in events]
    return [{k: v for k, v in e.items() if k != "seconds"} for e in plain if e["kind"] not in OWN]


def same(mine: Any, theirs: Any, where: str) -> None:
    """Equal but for the last bits of numbers that are no counts."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), where
        for key in theirs:
            same(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs), where
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(theirs, float) and not EXACT:
        assert mine == pytest.approx(theirs, rel=1e-8, abs=1e-12), where
    else:
        assert mine == theirs, where


def test_it_opens_and_is_replayed(stored: RunFolder) -> None:
    events = list(stored.events())
    whole = told(finished(stored)["events"])
    assert told(events) == whole[: len(told(events))]
    columns = Columns.of(events)
    saved = stored.last_step_saved()
    assert saved is not None
    assert len(columns.loss_W) >= saved
    assert columns.ledger.total_bytes() > 0


LATER_KEPT = {"watch/divergence"}  # each worker's own part, where there was the sum of all in the JSON values


def test_what_its_checkpoint_holds_is_taken_up_and_given_back(stored: RunFolder) -> None:
    checkpoint, notes = stored.load()
    assert checkpoint is not None
    assert not notes
    trainer = Trainer(stored.recipe())
    trainer.restore(checkpoint)
    tensors, extra = trainer.snapshot()
    assert tensors.keys() - LATER_KEPT == checkpoint.tensors.keys()
    for key, x in checkpoint.tensors.items():
        assert tensors[key].dtype == x.dtype, key
        assert torch.equal(tensors[key], x), key
    checkpoint.extra.get("watch", {}).pop("divergence", None)  # see `LATER_KEPT`
    assert json.loads(json.dumps(extra)) == checkpoint.extra
    trainer.fleet.close()


def test_it_goes_on_to_the_same_end(stored: RunFolder) -> None:
    begun = [e.step for e in stored.events() if isinstance(e, Stepped)]
    trainer = Trainer(stored.recipe())
    trainer.knob_source = lambda t: LATER.get(stored.path.name, {}).get(t, {}).items()
    list(trainer.events(stored))
    whole = finished(stored)
    assert len(begun) < stored.recipe().steps
    same(told(list(stored.events())), told(whole["events"]), stored.path.name)
    tensors = last_checkpoint(stored)
    assert tensors.keys() - LATER_KEPT == whole["checkpoint"].keys()
    for key, (digest, total, norm) in whole["checkpoint"].items():
        x = tensors[key]
        same([float(x.double().sum()), float(x.double().norm())], [total, norm], key)
        assert not EXACT or of(x) == digest, key


def last_checkpoint(folder: RunFolder) -> dict[str, Tensor]:
    with safe_open(folder.checkpoint_file(folder.recipe().steps), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def of(x: Tensor) -> str:
    told = f"{x.dtype}{tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes()
    return hashlib.sha256(told).hexdigest()[:16]
