"""Which periods reach a utilisation: by hand on a ring, against the closed form; what claims say of their loss, and what they do not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.costs.network import Network
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from lab.study.claims import Claim, Claims
from lab.study.effects import Effect
from lab.study.execution import DONE
from lab.study.recommend import losses_at, recommend, stored_claims

NET = Network(1e7, 0.05)


def of(preset: str, **changes: Any) -> Recipe:
    return Recipe.of(preset, ["model=nano", "num_workers=4", "steps=96"]).but(**changes)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
def test_the_least_period_of_one_average(target: float) -> None:
    """A ring of four: 2 · 3/4 · S / B + 6 latencies a sync, and K · c of computing."""
    recipe, c = of("diloco"), 0.1
    size = plan(recipe, {"": NET}).ledger[0].bytes_each
    exchange = 1.5 * size * 8 / 1e7 + 6 * 0.05
    found = recommend(recipe, target, NET, step_seconds=c)
    assert found.least is not None
    least = math.ceil(exchange * target / (c * (1 - target)))
    assert found.least.periods == least
    assert found.least.utilisation == pytest.approx(least * c / (least * c + exchange))
    assert found.least.seconds_per_step == pytest.approx(c + exchange / least)
    assert found.least.bytes_per_step == pytest.approx(size / least)
    assert [choice.reaches for choice in found.choices] == [choice.of_params >= least for choice in found.choices]
    assert sum(choice.own for choice in found.choices) == 1


def test_periods_of_several_states_keep_their_ratio() -> None:
    """1 : 3 : 6, in a long run: of three states 1 + 1/3 + 1/6 travel a sync, with its latencies."""
    recipe, c, target = of("des_loc"), 0.1, 0.8
    size = plan(recipe, {"": NET}).ledger[0].bytes_each
    exchange = (1 + 1 / 3 + 1 / 6) * 1.5 * size * 8 / 1e7 + 6 * 0.05
    found = recommend(recipe, target, NET, step_seconds=c)
    assert found.least is not None
    k = math.ceil(exchange * target / (c * (1 - target)))
    assert found.least.periods == {"params": k, "exp_avg": 3 * k, "exp_avg_sq": 6 * k}
    assert found.least.utilisation == pytest.approx(k * c / (k * c + exchange))


def test_of_a_device_or_measured() -> None:
    """Twice as fast a device wants periods twice as long, where steps are reckoned from it."""
    recipe = of("diloco")
    one, two = (recommend(recipe, 0.5, NET, device="laptop", devices_per_worker=n) for n in (1, 2))
    assert one.step_seconds == pytest.approx(2 * two.step_seconds)
    assert one.step_seconds == plan(recipe, {"": NET}, device="laptop").seconds_per_step
    assert two.least is not None
    assert one.least is not None
    assert abs(two.least.of_params - 2 * one.least.of_params) <= 1


def test_what_cannot_be_recommended() -> None:
    with pytest.raises(RecipeError, match="ddp has no sync period to choose"):
        recommend(of("ddp"), 0.8, NET, step_seconds=0.1)
    for wrong in (0.0, 1.0, 80.0):
        with pytest.raises(RecipeError, match="between 0 and 1"):
            recommend(of("diloco"), wrong, NET, step_seconds=0.1)
    never = recommend(of("diloco"), 0.9, Network(10.0, 1e6), step_seconds=1e-3)
    assert never.least is None
    assert "no period up to 65,536 reaches 90%" in never.to_text()


CLAIMS = [
    Claim.every(
        "DES-LOC",
        "long periods cost little",
        "here",
        [
            Effect((2.02, 2.01, 2.03), (2.0, 2.0, 2.0), 2, "no worse", scale="percent", label=f"period {p}")
            for p in (16, 160)
        ],
    ),
    Claim.every("DES-LOC", "another", "here", [Effect((1.0,), (2.0,), 0, label="a less b, period 16")]),
    Claim.effect("DiLoCo", "another paper", "here", [1.0], [2.0], 0),
]


def test_what_claims_say() -> None:
    """Only of the same paper, only what costs this period has, and nothing where none speaks of it."""
    (said,) = losses_at(16, "des_loc", CLAIMS)
    assert said.startswith("long periods cost little: +1.0 %")
    assert losses_at(8, "des_loc", CLAIMS) == losses_at(16, "diloco", CLAIMS) == []
    found = recommend(of("des_loc"), 0.8, NET, step_seconds=0.1, claims=CLAIMS)
    at = {choice.of_params: choice.loss for choice in found.choices}
    assert at[16] == said
    assert {loss for k, loss in at.items() if k != 16} == {"not known"}
    assert "is not known: no stored claim" not in found.to_text()
    assert "no stored claim of des_loc speaks of them" in recommend(of("des_loc"), 0.8, NET, step_seconds=0.1).to_text()


def test_from_the_shell(tmp_path: Path) -> None:
    """Claims are those of the notebooks that were executed into runs/notebooks."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    output = {"data": Claims("nb", tuple(CLAIMS))._repr_mimebundle_()}
    done = {"done": True, "name": "nb", "parameters": {}, "folder": str(tmp_path), "inputs": {}}
    (folder / "nb-0.ipynb").write_text(
        json.dumps({"cells": [{"outputs": [output]}], "metadata": {DONE: done}}), encoding="utf-8"
    )
    (folder / "nb-0.html").write_text("", encoding="utf-8")
    assert [claim.says for claim in stored_claims(folder)] == [claim.says for claim in CLAIMS]
    assert stored_claims(tmp_path / "none") == []
    options = ["--recommend", "0.8", "--network", "10Mbit", "--step-seconds", "0.1", "--runs", str(tmp_path)]
    small = ["-o", "model=nano", "-o", "num_workers=4", "-o", "steps=96"]
    out = CliRunner().invoke(main, ["plan", "des_loc", *small, *options])
    assert out.exit_code == 0, out.output
    assert "long periods cost little: +1.0 %" in out.output
    assert "← the least that reaches it" in out.output
    (as_json,) = json.loads(CliRunner().invoke(main, ["plan", "des_loc", *small, *options, "--json"]).stdout)
    assert as_json["least"]["utilisation"] >= 0.8
    refused = CliRunner().invoke(main, ["plan", "ddp", *options])
    assert refused.exit_code == 2
