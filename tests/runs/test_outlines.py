"""Outlines of runs: what they cost on any link is what a network says, nothing is read twice, and reading may take its time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.costs.network import Network
from lab.events import Evaluated
from lab.runs import outlines as module
from lab.runs.columns import Columns
from lab.runs.fork import fork
from lab.runs.outlines import AXES, POINTS, course, outlines
from lab.runs.trainer import Trainer, train
from tests.support.recipes import SHORT, recipe

LINKS = (Network(1e7, 0.05), Network(1e9, 0.02), Network(3e5))


def ran(place: Path, **fields: Any) -> Columns:
    made = recipe(SHORT, **{"keep_every": 1} | fields)
    return train(made, place / made.id)


@pytest.mark.parametrize("method", ["ddp", "diloco", "des_loc", "noloco", "streaming_diloco", "fedprox"])
@pytest.mark.parametrize("scenario", [{}, {"slow": {1: 3.0}}])
def test_seconds_are_what_the_network_says(method: str, scenario: dict[str, Any]) -> None:
    named = {"name": method} | ({"sync_every": 2} if method in ("diloco", "fedprox", "streaming_diloco") else {})
    if method == "streaming_diloco":
        named |= {"num_fragments": 1, "overlap": 0}
    columns = train(recipe("ddp").but(method=named, scenario=scenario, checkpoint_every=0))
    along = course(columns)
    assert set(along["curve"]) == {*AXES}
    for link in LINKS:
        bill = columns.price(link)
        for at in (along["curve"], along["end"]):
            now = {name: np.array(values, dtype=float) for name, values in at.items()}
            seconds = now["compute"] + 8 * now["wire"] / link.bits_per_second + now["trips"] * link.latency_seconds
            assert np.allclose(seconds, bill.at_step[now["step"].astype(int)], rtol=1e-5)
    assert along["end"]["bytes"] == columns.ledger.total_bytes()


def test_an_outline_says_what_is_special_and_what_belongs_together(tmp_path: Path) -> None:
    first = ran(tmp_path)
    ran(tmp_path, seed=1)
    ran(tmp_path, batch_size=4)
    other = fork(tmp_path / first.recipe.id, 3)
    train(other.recipe(), other.path)
    found, missing = outlines(tmp_path)
    assert missing == 0
    by = {(o.summary.seed, o.fields["batch_size"], bool(o.summary.origin)): o for o in found}
    assert len(by) == len(found) == 4
    a, b, c, d = by[0, 2, False], by[1, 2, False], by[0, 4, False], by[0, 2, True]
    assert a.settings == b.settings
    assert len({a.settings, c.settings, d.settings}) == 3
    assert a.fields["method.sync_every.params"] == 2
    assert "codecs" not in a.fields  # as everywhere
    assert a.saved == [1, 2, 3, 4, 5, 6]
    assert (a.of, a.curve["step"], a.curve["loss"]) == (
        "validation",
        first.eval_step,
        pytest.approx(first.eval_loss, rel=1e-6),
    )
    assert d.summary.origin == a.summary.run


def test_a_run_that_was_never_evaluated_has_its_training_losses_and_not_too_many(tmp_path: Path) -> None:
    ran(tmp_path, steps=60, eval_every=0, checkpoint_every=0, keep_every=0)
    (one,), _ = outlines(tmp_path)
    assert len(one.curve["loss"]) <= POINTS
    assert one.end["step"] == 60
    events = list(Trainer(recipe(SHORT, steps=60, eval_every=0, checkpoint_every=0)).events())
    columns = Columns.of(e for e in events if not isinstance(e, Evaluated))
    along = course(columns)
    assert along["of"] == "training"
    assert along["curve"]["loss"][0] == pytest.approx(float(columns.loss[0]), rel=1e-6)
    assert along["curve"]["step"][0::23] == [1, 60]


def test_nothing_is_read_twice_and_what_is_missing_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        ran(tmp_path, seed=seed)
    looked: list[str] = []
    inner = module._outline
    monkeypatch.setattr(module, "_outline", lambda run, path: looked.append(path) or inner(run, path))
    assert outlines(tmp_path, seconds=-1.0) == ([], 3)
    found, missing = outlines(tmp_path)
    assert (len(found), missing, len(looked)) == (3, 0, 3)
    assert outlines(tmp_path, seconds=-1.0) == (found, 0)
    assert len(looked) == 3


def test_a_damaged_run_is_there_with_its_problem(tmp_path: Path) -> None:
    columns = ran(tmp_path)
    folder = tmp_path / columns.recipe.id
    shutil.rmtree(folder / "checkpoints")
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join([lines[0], lines[1].replace(b"loss", b"lost"), *lines[2:]]))
    (one,), _ = outlines(tmp_path)
    assert (one.curve, one.end, one.of) == ({}, {}, "")
    assert one.summary.run == folder.name


def test_from_anywhere_in_a_project_all_of_its_runs_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    for seed, place in enumerate(("runs", "notebooks/runs")):
        ran(tmp_path / place, seed=seed)
    for here in ("", "notebooks", "runs"):
        monkeypatch.chdir(tmp_path / here)
        found, _ = outlines("runs")
        assert sorted(one.summary.seed for one in found) == [0, 1]
        assert all((Path(one.where) / one.summary.path / "events.jsonl").is_file() for one in found)
