"""Forks: nothing changed changes nothing, what may change does from its step on, what may not is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lab.cli import main
from lab.events import Checkpointed, Event, Forked, KnobChanged, Started, Stepped, Warned
from lab.ground.errors import Damaged, LabError, RecipeError
from lab.methods import Method
from lab.methods.diloco import DiLoCo
from lab.optimizers.schedule import Schedule
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.fork import changes, fork
from lab.runs.index import summaries
from lab.runs.trainer import Trainer, train
from tests.support.recipes import SHORT, recipe


def a_run(place: Path, method: Method | str = SHORT, **fields: object) -> RunFolder:
    made = recipe(method, **{"keep_every": 1, "schedule": Schedule(warmup=0)} | fields)
    folder = RunFolder(place / made.id)
    train(made, folder.path)
    return folder


def of_steps(folder: RunFolder) -> list[Event]:
    """All but what says which run this is, and how long steps took."""
    said = [e for e in folder.events() if not isinstance(e, Started | Forked | Checkpointed | Warned)]
    return [replace(e, seconds=0.0) if isinstance(e, Stepped) else e for e in said]


def last_tensors(folder: RunFolder) -> dict[str, torch.Tensor]:
    return folder.load_step(max(folder.saved())).tensors


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (SHORT, {}),
        (DiLoCo(sync_every=2), {"codecs": {"params": "int8"}}),
        (DiLoCo(sync_every=4), {"scenario": {"failure_rate": 0.4, "mean_outage": 1}, "metrics": ["alignment"]}),
        ("fedprox", {"method": {"name": "fedprox", "sync_every": 2}, "clients": {"num": 9, "inner_states": "kept"}}),
    ],
)
def test_a_fork_with_nothing_changed_ends_as_the_run_it_comes_from(
    tmp_path: Path, method: Method | str, fields: dict[str, object]
) -> None:
    made = {k: v for k, v in fields.items() if k != "method"}
    origin = a_run(tmp_path, Recipe.of({"method": fields["method"]}).method if "method" in fields else method, **made)
    for step in (1, 3, 4):
        again = fork(origin, step)
        assert again.path != origin.path
        train(again.recipe(), again.path)
        assert of_steps(again) == of_steps(origin)
        there, here = last_tensors(origin), last_tensors(again)
        assert there.keys() == here.keys()
        assert all(torch.equal(there[key], here[key]) for key in there)


def test_another_learning_rate_makes_a_difference_after_its_step_alone(tmp_path: Path) -> None:
    origin = a_run(tmp_path)
    before = {p.name: p.read_bytes() for p in origin.path.iterdir() if p.is_file()}
    other = fork(origin, 3, ["method.inner.lr=0.05"])
    columns = train(other.recipe(), other.path)
    was, now = ([e.loss_W for e in folder.events() if isinstance(e, Stepped)] for folder in (origin, other))
    # the loss of step 4 is of the parameters after step 3: what the other rate did is seen from step 5 on
    assert was[:4] == now[:4]
    assert was[4] != now[4]
    (said,) = columns.forked
    assert (said.step, said.run) == (3, origin.path.name)
    assert said.changed == {"method.inner.lr": [origin.recipe().method.inner.lr, 0.05]}
    assert other.recipe() == Recipe.of(origin.recipe(), ["method.inner.lr=0.05"])
    assert {p.name: p.read_bytes() for p in origin.path.iterdir() if p.is_file()} == before
    own = [e for e in columns.ledger.records if e.step > 3]
    assert columns.own_payload_bytes == sum(e.bytes_all for e in own) > 0
    assert columns.own_payload_bytes < columns.ledger.total_bytes()
    of = {s.run: s for s in summaries(tmp_path)}
    assert (of[other.path.name].origin, of[other.path.name].forked) == (origin.path.name, 3)
    assert of[other.path.name].own_payload_bytes == columns.own_payload_bytes
    assert of[origin.path.name].own_payload_bytes == of[origin.path.name].payload_bytes
    assert of[origin.path.name].origin == ""


def test_the_same_fork_has_the_same_folder_and_goes_on_when_it_was_cut_off(tmp_path: Path) -> None:
    origin = a_run(tmp_path)
    first = fork(origin, 2, ["steps=9"])
    events = Trainer(first.recipe()).events(first)
    for event in events:
        if isinstance(event, Stepped) and event.step == 7:
            break
    events.close()  # type: ignore[attr-defined]
    again = fork(origin, 2, ["steps=9"])
    assert again.path == first.path
    columns = train(again.recipe(), again.path)
    assert columns.step == list(range(1, 10))
    assert len(columns.forked) == 1
    assert fork(origin, 3, ["steps=9"]).path != first.path
    of_fork = fork(first, 8)
    assert [e.run for e in Columns.of(of_fork.events()).forked] == [origin.path.name, first.path.name]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".fork")]


def test_the_recipe_of_a_fork_run_by_itself_is_another_run(tmp_path: Path) -> None:
    """A fork is not what its recipe gives from the beginning on, and is never shown as that."""
    origin = a_run(tmp_path)
    other = fork(origin, 2, ["steps=7"])
    assert other.path.name != other.recipe().id
    assert not (tmp_path / other.recipe().id).exists()


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("num_workers=2", "a row for each worker"),
        ("model.dim=16", "what tensors there are"),
        ("seed=1", "what was drawn"),
        ("method.name=ddp", "cannot change the method"),
        ("method=ddp", "cannot change the method"),
        ("method.clip=value", "may decide what states"),
        ("corpus=grammar", "what it decided"),
        ("steps=3", "nothing to do"),
    ],
)
def test_what_cannot_change_is_refused_in_one_line(tmp_path: Path, override: str, why: str) -> None:
    origin = a_run(tmp_path)
    with pytest.raises(LabError, match=why) as refused:
        fork(origin, 3, [override])
    assert "\n" not in str(refused.value)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [origin.path.name]


def test_a_momentum_of_its_own_cannot_come_or_go(tmp_path: Path) -> None:
    origin = a_run(tmp_path, DiLoCo(sync_every=2))
    with pytest.raises(RecipeError, match="the outer optimizer would have other states"):
        fork(origin, 2, ["method.outer.options.momentum=0.0", "method.outer.options.nesterov=false"])
    other = fork(origin, 2, ["method.outer.options.momentum=0.5"])
    assert train(other.recipe(), other.path).step == [1, 2, 3, 4, 5, 6]


def test_periods_change_where_a_hand_could_turn_them(tmp_path: Path) -> None:
    origin = a_run(tmp_path, DiLoCo(sync_every=2))
    other = fork(origin, 2, ["method.sync_every=3"])
    columns = train(other.recipe(), other.path)
    assert sorted({e.step for e in columns.ledger.records if e.op == "all_reduce"}) == [2, 3, 6]
    turned = Trainer(origin.recipe().but(seed=1), knob_source=lambda t: [("sync_every", 3)] if t == 1 else [])
    folder = RunFolder(tmp_path / "turned")
    assert [e.value for e in turned.events(folder) if isinstance(e, KnobChanged)] == [3]
    with pytest.raises(RecipeError, match="turned by hand"):
        fork(folder, 2, ["method.sync_every=4"])


def test_steps_without_a_checkpoint_are_named_with_those_that_have_one(tmp_path: Path) -> None:
    origin = a_run(tmp_path, keep_every=3)
    assert origin.saved().keys() == {3, 5, 6}
    with pytest.raises(RecipeError, match=r"no checkpoint of step 4; those that it has: 3, 5, 6 .*keep_every"):
        fork(origin, 4)
    assert fork(origin, overrides=["steps=8"]).saved().keys() == {6}
    with pytest.raises(RecipeError, match="multiple of 2"):
        recipe(keep_every=3, checkpoint_every=2)
    with pytest.raises(RecipeError, match="checkpoint_every above 0"):
        recipe(keep_every=3, checkpoint_every=0)


def test_a_damaged_checkpoint_is_no_beginning(tmp_path: Path) -> None:
    origin = a_run(tmp_path)
    file = origin.checkpoint_file(3)
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match=r"step-000003.*damaged"):
        fork(origin, 3)
    assert fork(origin, 4).exists


def test_the_command(tmp_path: Path) -> None:
    origin = a_run(tmp_path)
    command = ["fork", origin.path.name, "--step", "4", "-o", "method.inner.lr=0.01", "--runs", str(tmp_path)]
    done = CliRunner().invoke(main, [*command, "--name", "slower"])
    assert done.exit_code == 0, done.output
    assert f"forked from {origin.path.name} after step 4: method.inner.lr" in done.output
    assert "of it since the fork" in done.output
    listed = CliRunner().invoke(main, ["list", "runs", "--runs", str(tmp_path)]).output
    assert f"forked from {origin.path.name} after step 4" in listed
    assert '"slower"' in listed
    refused = CliRunner().invoke(main, [*command, "-o", "num_workers=9"])
    assert refused.exit_code == 2
    assert refused.output.count("\n") == 1
    assert changes(origin.recipe(), origin.recipe()) == {}
