"""Parts of one's own in a recipe: by reference, with source and hash; and a file that names them executes nothing."""

from __future__ import annotations

import json
import linecache
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import lab
from lab.ground.config.references import source_and_digest
from lab.ground.errors import RecipeError
from lab.methods.registry import Absent
from lab.models.own import Factory
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from tests.support import ROOT
from tests.support.parts import blobs, net, with_own_method

HERE = "tests.support.parts"


METHOD = "tests.support.own_method:OwnAverage"


@pytest.fixture(autouse=True)
def own_method() -> Iterator[Any]:
    with with_own_method() as found:
        yield found


def own(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "method": {"name": METHOD, "sync_every": 2},
        "model": net,
        "data": blobs,
        "num_workers": 2,
        "steps": 4,
    }
    return Recipe.of(base | changes)


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(RecipeError) as error:
        make()
    (line,) = str(error.value).splitlines()
    return line


def test_a_recipe_of_own_parts_is_plain_json_and_comes_back() -> None:
    r = own(model=partial(net, width=5), data=partial(blobs, seed=3))
    raw = json.loads(json.dumps(r.to_dict()))
    assert raw["model"] == {"name": f"{HERE}:net", "width": 5}
    assert raw["data"] == {"name": f"{HERE}:blobs", "seed": 3}
    assert raw["own"].keys() == {"method", "model", "data"}
    assert raw["own"]["method"]["reference"] == METHOD
    assert {part["source"] for part in raw["own"].values()} == {""}  # they are in files: those say it
    again = Recipe.of(raw)
    assert again == r
    assert again.id == r.id


def test_as_on_the_command_line() -> None:
    r = Recipe.of(
        {"num_workers": 2, "steps": 4},
        [
            *(f"method={METHOD}", "method.sync_every=2", f"model={HERE}:net", "model.width=5"),
            *(f"data={HERE}:blobs", "data.seed=3"),
        ],
    )
    assert r == own(model=partial(net, width=5), data=partial(blobs, seed=3))


def test_the_lab_s_own_recipes_say_nothing_of_all_this() -> None:
    assert not Recipe().to_dict().keys() & {"own", "data"}


def test_every_option_and_every_change_of_source_is_in_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {own().id, own(model=partial(net, width=5)).id, own(data=partial(blobs, seed=3)).id}
    monkeypatch.setattr("lab.ground.config.references._source", lambda found: f"another {found.__name__}")
    assert len({*ids, own().id}) == 4


CELL = """
SIZE, steps, width = 3, 5, 7

def helper():
    return SIZE

def make(recipe):
    return recipe.steps, [recipe.width for _ in range(helper())]
"""


def test_what_a_part_looks_up_in_its_module_is_part_of_it_and_names_of_attributes_are_not() -> None:
    """A notebook is full of numbers; those that are called as an attribute somewhere are none of its business."""
    there: dict[str, Any] = {"__name__": "cells_of_a_notebook"}
    file = "<cell 1>"
    linecache.cache[file] = (len(CELL), None, CELL.splitlines(keepends=True), file)
    exec(compile(CELL, file, "exec"), there)
    module = ModuleType("cells_of_a_notebook")
    module.__dict__.update(there)
    sys.modules[module.__name__] = module
    try:
        text, digest = source_and_digest(there["make"])
        assert "def make" in text
        assert "def helper" in text
        assert "SIZE = 3" in text
        assert "steps = 5" not in text
        assert "width = 7" not in text
        module.__dict__["steps"] = 6
        assert source_and_digest(there["make"])[1] == digest
        module.__dict__["SIZE"] = 4
        assert source_and_digest(there["make"])[1] != digest
    finally:
        del sys.modules[module.__name__], linecache.cache[file]


def test_a_part_that_has_changed_is_not_taken_for_the_one_that_was_written_down() -> None:
    raw = own().to_dict()
    raw["own"]["model"]["sha256"] = "0" * 64
    assert "is not what this recipe was written with" in refused(lambda: Recipe.of(raw))
    assert Recipe.recorded(raw).own["model"].sha256 == "0" * 64


def test_a_change_of_part_forgets_what_was_recorded_of_the_former() -> None:
    assert Recipe().own == {}
    r = own().but(method="diloco", model="nano", data=None)
    assert r.own == {}
    assert own().but(model={"name": f"{HERE}:net", "width": 3}).own.keys() == {"method", "model", "data"}


# --- executing nothing -------------------------------------------------------------------------------------------------

LEAVES_A_TRACE = "open('executed', 'w').close()\n"


def test_reading_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder that comes from elsewhere names modules that lie beside it: looking at it does not import them."""
    monkeypatch.chdir(tmp_path)
    for name in ("strange_method", "strange_net", "strange_data"):
        (tmp_path / f"{name}.py").write_text(LEAVES_A_TRACE)
    raw = own().to_dict()
    raw |= {
        "method": {"name": "strange_average", "sync_every": 7},
        "model": {"name": "strange_net:make"},
        "data": {"name": "strange_data:make"},
    }
    raw["own"]["method"] = {"reference": "strange_method:Strange", "sha256": "0" * 64, "source": LEAVES_A_TRACE}
    raw["own"]["model"]["reference"], raw["own"]["data"]["reference"] = "strange_net:make", "strange_data:make"
    r = Recipe.recorded(raw)
    assert isinstance(r.method, Absent)
    assert isinstance(r.model, Factory)
    assert r.to_dict() == raw
    assert r.method.sync_every == 7
    assert not (tmp_path / "executed").exists()
    assert "strange_method has no 'Strange'" in refused(r.here)  # whoever wants to train it, imports it
    assert (tmp_path / "executed").exists()


def test_a_run_whose_parts_are_gone_opens_replays_and_is_priced_and_says_so_when_it_is_resumed(tmp_path: Path) -> None:
    """Trained in one process with parts in a file; looked at in another, without that file."""
    (tmp_path / "own_parts.py").write_text(
        (ROOT / "tests/support/own_method.py").read_text()
        + "\n".join((ROOT / "tests/support/parts.py").read_text().split("@contextlib")[0].split("annotations")[1:])
    )
    options = ["method=own_parts:OwnAverage", "model=own_parts:net", "data=own_parts:blobs", "num_workers=2", "steps=6"]
    options += ["eval_every=3", "checkpoint_every=2", "schedule.warmup=0"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lab", *words]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("run", "diloco", *(x for o in options for x in ("-o", o)))
    assert done.returncode == 0, done.stderr
    (tmp_path / "own_parts.py").unlink()
    (folder,) = (tmp_path / "runs").iterdir()
    for words in (("replay", str(folder), "--speed", "inf"), ("list",), ("compare", str(folder), str(folder))):
        seen = run(*words)
        assert seen.returncode == 0, (words, seen.stderr)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-1]))  # as if it had been killed before its end
    again = run("resume", str(folder))
    assert again.returncode == 2
    (line,) = again.stderr.splitlines()
    assert "own_parts" in line


# --- what is wrong, in one line ----------------------------------------------------------------------------------------


def no_module() -> Any:
    return 3


def fails() -> nn.Module:
    raise ValueError("no such thing\nat all")


def too_narrow() -> nn.Module:
    return nn.Linear(2, 3)


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x.mul_(2))  # type: ignore[no-any-return]


class ReadsItsInputTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x) * self.map(x) + x  # type: ignore[no-any-return]


NAMES: list[str] = []


def other_names() -> nn.Module:
    NAMES.append("x")
    return nn.Sequential(*(nn.Linear(3, 3) for _ in NAMES))


class GrowsLater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "more"):
            self.more = nn.Linear(3, 3)
        return self.more(self.map(x))  # type: ignore[no-any-return]


class KeepsItsGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.memory = nn.Linear(3, 3), torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.map(x) + self.memory
        self.memory = y.square().mean()
        return y


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x).detach()  # type: ignore[no-any-return]


def lazy() -> nn.Module:
    return nn.LazyLinear(3)


def frozen() -> nn.Module:
    return nn.Linear(3, 3).requires_grad_(False)


def no_task() -> Any:
    return {"train": 1}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_module, "model .*no_module gave 3: return an nn.Module"),
        (fails, "fails cannot be made: ValueError: no such thing$"),
        (too_narrow, r"too_narrow does not go with its data \(inputs \[8, 3\] float32, targets \[8\] int64\)"),
        (ChangesItsInput, "changes its inputs in place"),
        (other_names, "has other parameters each time it is made"),
        (GrowsLater, "makes or renames parameters in its forward pass"),
        (KeepsItsGraph, "keeps a graph from one step to the next"),
        (Detached, "does not depend on its parameters"),
        (lazy, "has no shape before its first batch"),
        (frozen, "has no parameters to train"),
    ],
)
def test_bad_models_are_refused_before_anything_trains(make: Any, says: str, tmp_path: Path) -> None:
    import re

    line = refused(lambda: lab.train(own(model=make), folder=tmp_path / "run"))
    assert re.search(says, line), line
    assert not (tmp_path / "run").exists()


def test_a_model_may_use_an_input_and_a_layer_twice() -> None:
    """As plain torch: gradients of both uses add up."""
    trainer = Trainer(own(model=ReadsItsInputTwice, dtype="float64", eval_every=0))
    trainer.setup.grad_at(1)
    with torch.random.fork_rng():
        net = ReadsItsInputTwice().double()
    net.load_state_dict(dict(trainer.fleet.modules[0].named_parameters()))
    assert trainer.setup.data is not None
    x, y = trainer.setup.data.batches.get(0, 1)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(trainer.fleet.grads.cell(name, 0), p.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": lambda: nn.Linear(3, 3)}, "is a lambda"),
        ({"model": nn.Linear(3, 3)}, "is a module that is made already"),
        ({"model": partial(net, 3)}, "give options by their names"),
        ({"model": partial(net, width=nn.Linear(1, 1))}, "its option width = .* is no plain value"),
        ({"model": partial(net, depth=2)}, "unknown option of model .*net 'depth'"),
        ({"model": f"{HERE}:nat"}, "has no 'nat'"),
        ({"model": "no_such_module:net"}, "there is no module 'no_such_module'"),
        ({"model": f"{HERE}:HERE"}, "has no 'HERE'"),
        ({"data": no_task}, "gives dict, which has no train, held_out"),
        ({"data": partial(blobs, name=1)}, "an option called name"),
        ({"data": blobs()}, "since a recipe cannot write down the examples themselves|is no plain value"),
        ({"data": "blobs"}, "unknown task 'blobs'"),
        ({"method": "no_such_module:Mine"}, "method: there is no module 'no_such_module'"),
        ({"model": "nano"}, r"model GPT predicts tokens, and the data has examples of shape \[3\]"),
    ],
)
def test_what_cannot_be_named_is_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    import re

    line = refused(lambda: Trainer(own(**changes)))
    assert re.search(says, line), line
