"""Joules by hand: of bytes on wires, of steps, of waiting; in plans, comparisons and tables, and nowhere where nothing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.costs.calendar import Calendar
from lab.costs.energy import Energy, energy, human_joules, joules
from lab.costs.network import Link, Network
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from lab.runs.trainer import train

NET = Network(8000.0, topology="server", server_bits_per_second=1e12, levels=(Link(16_000.0),))


def test_every_part_by_hand() -> None:
    """Two workers, three steps of 2 s (the second worker three times slower), one down in step 2; 1,000 bytes each up and down in step 3."""
    records = [
        Sent(3, "all_reduce", "params", (0, 1), {"all": 1000}),
        Sent(3, "broadcast", "params", (0,), {"all": 500}, level=1),
    ]
    up_TW = np.array([[True, True], [True, False], [True, True]])
    bill = NET.price(records, num_workers=2, steps=3, compute_seconds=2.0, slow={1: 3.0})
    given = Energy(joules_per_byte=0.5, levels=(2.0,), watts=10.0, idle_watts=1.0)
    found = joules(given, NET, Calendar.of(records, 3), up_TW, bill.at_step[1:], 2.0, {1: 3.0})
    assert found.sending == pytest.approx(0.5 * 4 * 1000 + 2.0 * 500)
    assert found.computing == pytest.approx(10.0 * (3 * 2.0 + 2 * 6.0))
    assert found.waiting == pytest.approx(2 * bill.total_seconds - 18.0)
    assert found.total == pytest.approx(2000 + 1000 + 180 + 2 * bill.total_seconds - 18)
    first = 10.0 * (2.0 + 6.0) + (2 * 6.0 - 8.0)  # all have computed when the slow one has, at 6 s
    assert found.at_step == pytest.approx([first, first + 10 * 2.0 + (2 * 6.0 - 2.0), found.total])
    per_step = joules(Energy(joules_per_step=7.0), NET, Calendar.of(records, 3), up_TW, bill.at_step[1:])
    assert (per_step.sending, per_step.computing, per_step.waiting) == (None, 35.0, None)
    turns = [(1, (1.0, 1.0)), (3, (1.0, 0.5))]
    later = joules(Energy(watts=1.0), NET, Calendar.of(records, 3), up_TW, bill.at_step[1:], 2.0, {1: 3.0}, turns)
    assert later.computing == pytest.approx(3 * 2.0 + 6.0 + 3.0)


def test_frames_are_sent_as_well() -> None:
    framed = Network(8000.0, framing="ethernet")
    record = [Sent(1, "all_reduce", "params", (0, 1), {"all": 1448 * 2})]
    found = joules(Energy(joules_per_byte=1.0), framed, Calendar.of(record, 1), np.ones((1, 2), bool), np.ones(1))
    assert found.sending == pytest.approx(2 * (2 * 1514 + 66))


def test_spelled_out() -> None:
    assert energy("joules_per_byte=6e-8, watts=300") == Energy(joules_per_byte=6e-8, watts=300.0)
    assert energy("joules_per_byte=1e-8:6e-8:1e-6") == Energy(joules_per_byte=1e-8, levels=(6e-8, 1e-6))
    tree = Energy(joules_per_byte=1.0, levels=(2.0, 3.0))
    assert [tree.of_byte(level) for level in range(5)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert Energy(joules_per_byte=1.0).of_byte(2) == 1.0
    for wrong, says in (
        ("watt=3", r"unknown figure of energy 'watt': use one of joules_per_byte.*did you mean 'watts'"),
        ("watts=many", r"energy watts='many': write a number"),
        ("watts=1:2", r"energy watts='1:2': write a number"),
        ("watts=-3", r"write a number, 0 or more"),
        ("watts=3,joules_per_step=1", "give one of them"),
    ):
        with pytest.raises(RecipeError, match=says):
            energy(wrong)
    with pytest.raises(RecipeError, match="says nothing"):
        Energy()
    with pytest.raises(RecipeError, match="without joules_per_byte"):
        Energy(levels=(1.0,), watts=1.0)
    assert [human_joules(x) for x in (None, 0.5, 12_340, 3.6e6, 2e16)] == [
        "–",
        "0.5 J",
        "12.3 kJ",
        "3.6 MJ",
        "2e+04 TJ",
    ]


def test_in_a_plan_and_not_where_nothing_is_said() -> None:
    """DES-LOC and DDP compute the same; what they send goes as their bytes on the ring."""
    recipe = Recipe.of("des_loc", ["steps=24", "model=nano", "num_workers=2"])
    silent = plan(recipe, {"mine": Network(1e7)}, step_seconds=0.5)
    assert silent.forecasts[0].joules is None
    assert "energy" not in silent.to_text()
    assert silent.to_dict()["forecasts"][0]["joules"] is None
    planned = plan(recipe, {"mine": Network(1e7)}, step_seconds=0.5, energy=Energy(joules_per_byte=1e-3, watts=40.0))
    (forecast,) = planned.forecasts
    assert forecast.joules is not None
    assert forecast.ddp_joules is not None
    assert forecast.joules.computing == pytest.approx(40.0 * 2 * 24 * 0.5)
    assert forecast.joules.sending == pytest.approx(1e-3 * 2 * planned.wire_bytes)
    assert forecast.ddp_joules.sending == pytest.approx(1e-3 * 2 * planned.ddp_wire_bytes)
    assert forecast.joules.waiting is None
    assert json.loads(json.dumps(planned.to_dict()))["forecasts"][0]["joules"]["total"] == forecast.joules.total
    assert "energy, all workers" in planned.to_text()
    assert "computing takes 0.5 s a step, as was said" in planned.to_text()


def test_of_runs(tmp_path: Path) -> None:
    """In `lab compare` and in the table of a run, whose last row has the total."""
    small: dict[str, Any] = {
        "model": "nano",
        "corpus": "grammar?tokens=8000",
        "steps": 4,
        "num_workers": 2,
        "batch_size": 1,
    }
    recipe = Recipe.of(small | {"method": {"name": "local_sgd", "sync_every": 2}, "context": 16, "eval_windows": 2})
    run = train(recipe, tmp_path / "one")
    given, net = Energy(joules_per_byte=1e-3, joules_per_step=2.0), Network(1e6)
    total = run.joules(given, net)
    assert total.computing == 16.0
    assert total.sending == pytest.approx(1e-3 * float(run.price(net).wire_bytes_W.sum()))
    frame = run.frame(net, given)
    at = frame.set_index("step")
    assert at["joules"].iloc[-1] == pytest.approx(total.total)
    assert at["joules"][1] == 4.0
    assert at["network_seconds"].iloc[-1] == pytest.approx(run.price(net).total_seconds)
    assert frame.attrs["units"]["joules"] == "joules"
    with pytest.raises(RecipeError, match="network"):
        run.frame(energy=given)
    figures = ["--network", "1Mbit", "--energy", "joules_per_byte=1e-3,joules_per_step=2", "--runs", str(tmp_path)]
    out = CliRunner().invoke(main, ["compare", "one", *figures, "--json"])
    assert json.loads(out.output)[0]["joules"]["total"] == pytest.approx(total.total)
    out = CliRunner().invoke(main, ["compare", "one", *figures])
    assert human_joules(total.total) in out.output
    out = CliRunner().invoke(main, ["table", "one", *figures])
    assert "network_seconds,joules" in out.output.splitlines()[0]
    out = CliRunner().invoke(main, ["compare", "one", "--runs", str(tmp_path)])
    assert "energy" not in out.output
