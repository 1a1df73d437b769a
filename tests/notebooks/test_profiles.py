"""Firm profiles: finished runs in small form, rates that are tuned first, and notebooks that read what is stored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import math
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.events import CellDone, Drifted, Ended, PseudoLabelled, Started, Stepped
from lab.ground.errors import Damaged, RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.stored import Stored, events_in, read_small, started_in
from lab.study.profiles import firm, firm_profiles
from lab.study.tuning import tune

SMALL = {
    "model": {"dim": 8, "num_layers": 1, "num_heads": 1},
    "corpus": "grammar?tokens=8000",
    "steps": 6,
    "num_workers": 2,
    "batch_size": 2,
    "context": 16,
    "eval_every": 2,
    "method": {"name": "local_adam", "sync_every": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    recipe = Recipe.of(SMALL)
    path = tmp_path_factory.mktemp("runs") / recipe.id
    lab.train(recipe, path)
    return RunFolder(path)


def test_a_stored_run_is_the_run(run: RunFolder, tmp_path: Path) -> None:
    recipe, stored = run.recipe(), Stored(tmp_path / "firm")
    assert recipe not in stored
    assert len(stored) == 0
    stored.add(recipe, run.events())
    assert recipe in stored
    assert len(stored) == 1
    whole, small = lab.Columns.of(run.events()), lab.Columns.of(stored.events(recipe))
    assert (small.eval_loss, small.eval_step, small.drift) == (whole.eval_loss, whole.eval_step, whole.drift)
    assert small.ledger.records == whole.ledger.records
    assert small.ledger.total_bytes() > 0
    assert small.step == whole.step
    assert small.recipe == whole.recipe == recipe
    for kept, was in zip(small.loss_W, whole.loss_W, strict=True):
        assert kept == pytest.approx([sum(was) / len(was)] * len(was), abs=0.51e-4)  # the mean, for each
        assert kept != was
    assert started_in(stored.file(recipe)).recipe == whole.started.recipe  # type: ignore[union-attr]


def test_what_has_not_ended_is_not_stored(run: RunFolder, tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    stored.add(run.recipe(), [e for e in run.events() if not isinstance(e, Ended)])
    stored.add(run.recipe(), [])
    assert run.recipe() not in stored


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "no run"])
def test_a_damaged_one_is_refused_in_one_line(run: RunFolder, tmp_path: Path, damage: str) -> None:
    stored, recipe = Stored(tmp_path), run.recipe()
    stored.add(recipe, run.events())
    file = stored.file(recipe)
    data = file.read_bytes()
    middle = len(data) // 2
    wrong = {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "empty": b"",
        "other": b"no xz at all",
        "no run": lzma.compress(b'{"kind":"stepped","step":1,"loss_W":[1.0],"lr":0.1,"seconds":0.1}\n'),
    }
    file.write_bytes(wrong[damage])
    with pytest.raises(Damaged, match=r"cannot be read .* remove it, and it is made anew") as error:
        stored.events(recipe)
    assert "\n" not in str(error.value)


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("mine")
    with pytest.raises(RecipeError, match=r"stored = .*small' is no folder"):
        Stored(tmp_path / "small")


def test_a_file_of_another_recipe_is_refused(run: RunFolder, tmp_path: Path) -> None:
    stored, other = Stored(tmp_path), run.recipe().but(seed=5)
    stored.add(run.recipe(), run.events())
    shutil.copy(stored.file(run.recipe()), stored.file(other))
    with pytest.raises(Damaged, match=r"is a run of another recipe: remove it") as error:
        stored.events(other)
    assert "\n" not in str(error.value)


def test_the_walk_over_rates() -> None:
    asked: list[float] = []

    def valley(best: float) -> object:
        def loss(rate: float) -> float:
            asked.append(rate)
            return (math.log2(rate) - math.log2(best)) ** 2

        return loss

    found = tune(valley(0.5), 0.125)  # type: ignore[arg-type]
    assert found.rate == 0.5
    assert not found.at_edge
    assert list(found.losses) == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert len(asked) == len(set(asked)) == 5  # none twice
    short = tune(valley(64.0), 1.0, most=4)  # type: ignore[arg-type]
    assert short.rate == 4.0
    assert short.at_edge
    assert "at the edge" in short.words
    assert len(short.losses) == 4
    downhill = tune(valley(0.3), 1.0)  # type: ignore[arg-type]
    assert downhill.rate == 0.25
    assert tune(lambda rate: math.nan if rate > 1 else -rate, 1.0).rate == 1.0  # what diverges is never the best
    cliff = tune(lambda rate: math.inf if rate > 0.5 else 1 / rate, 8.0)  # from where all diverge it goes down
    assert (cliff.rate, cliff.at_edge) == (0.5, False)
    lost = tune(lambda rate: math.inf, 1.0, most=3)
    assert lost.words == "1 of 0.25 … 1, where all diverged"
    assert lost.at_edge
    one = tune(valley(64.0), 1.0, most=1)  # type: ignore[arg-type]
    assert one.rate == 1.0
    assert one.words == "1, not tuned"
    assert not one.at_edge
    with pytest.raises(ValueError, match="no walk"):
        tune(valley(1.0), 1.0, factor=1.0)  # type: ignore[arg-type]


def test_settings_that_are_none(tmp_path: Path) -> None:
    assert firm_profiles(tmp_path) == {}
    with pytest.raises(RecipeError, match=r"01_a has no firm profile: there is none"):
        firm(tmp_path / "01_a.ipynb")
    (tmp_path / "firm").mkdir()
    file = tmp_path / "firm/settings.toml"
    file.write_text("[01_b]\nruns = 2\nhours = 1\n")
    with pytest.raises(RecipeError, match=r"\[01_b\]: it needs runs, hours and a table of parameters"):
        firm_profiles(tmp_path)
    file.write_text("[01_b\n")
    with pytest.raises(RecipeError, match=r"settings\.toml cannot be read"):
        firm_profiles(tmp_path)
    file.write_text("[01_b]\nruns = 4\nhours = 2.0\n[01_b.parameters]\nsteps = 3\n")
    profile = firm(tmp_path / "01_b.ipynb")
    assert profile.values == {"steps": 3, "stored": "firm/01_b"}
    assert profile.hours_left == 2.0
    assert "0 of 4 runs are stored" in profile.words
    (tmp_path / "firm/01_b").mkdir()
    for k in range(3):
        (tmp_path / f"firm/01_b/{k}.jsonl.xz").touch()
    assert profile.hours_left == 0.5
    (tmp_path / "firm/01_b/3.jsonl.xz").touch()
    assert profile.words == "all 4 runs are stored: none of them is trained"


CELLS = """steps: int = 2
seeds: str = "0"
runs: str = "runs"
stored: str = ""
---
import lab
from widgets import train_all
recipes = {s: lab.Recipe.of({**%r, "steps": steps, "seed": int(s)}) for s in seeds.split(",")}
done = train_all(recipes, runs, stored or None)
---
ends = [run.eval_loss[-1] for run in done.values()]
lab.Claims("90_small", (lab.Claim.effect("P", "learns", "any", ends, [9.0] * len(ends), 0, runs=done.values()),))"""


def test_a_notebook_reads_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [nbformat.v4.new_code_cell(text) for text in (CELLS % SMALL).split("\n---\n")]
    cells[0].metadata["tags"] = ["parameters"]
    (tmp_path / "notebooks/firm").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/90_small.ipynb")
    (tmp_path / "notebooks/firm/settings.toml").write_text(
        '[90_small]\nruns = 2\nhours = 0.1\n[90_small.parameters]\nsteps = 4\nseeds = "0,1"\n'
    )

    def reproduce(*more: str) -> str:
        done = CliRunner().invoke(main, ["reproduce", "90_small", *more])
        assert done.exit_code == 0, done.output
        return done.output

    assert "0 of 2 runs are stored, 2 are trained: about 0.1 hours" in reproduce("--firm", "--plan")
    reproduce("--firm")
    stored = Stored(tmp_path / "notebooks/firm/90_small")
    assert len(stored) == 2
    shutil.rmtree(tmp_path / "notebooks/runs")
    reproduce()  # quick: nothing is read from there, and nothing added
    assert len(stored) == 2
    assert len([*(tmp_path / "notebooks/runs").iterdir()]) == 1
    shutil.rmtree(tmp_path / "notebooks/runs")
    assert "all 2 runs are stored: none of them is trained" in reproduce("--firm", "--again")
    assert not (tmp_path / "notebooks/runs").exists()
    page = (tmp_path / "runs/notebooks/claims.html").read_text()
    assert 'data-profile="firm"' in page
    assert 'data-profile="quick"' in page
    assert 'href="../../notebooks/firm/90_small">stored runs</a>' in page
    assert "90_small, firm: " in page
    (executed,) = (tmp_path / "runs/notebooks").glob("90_small-firm-*.ipynb")
    notes = [c.source for c in nbformat.read(executed, 4).cells if c.cell_type == "markdown"]
    assert [note.partition(", `seeds")[0] for note in notes] == ["**Firm profile:** `steps = 4`"]
    (quick,) = set((tmp_path / "runs/notebooks").glob("90_small-*.ipynb")) - {executed}
    assert all(c.cell_type == "code" for c in nbformat.read(quick, 4).cells)
    assert "; with parameters of your own, others may be needed" in reproduce("--firm", "--plan", "-p", "steps=3")
    done = CliRunner().invoke(main, ["reproduce", "90_small", "--firm", "--plan", "-p", "stepz=3"])
    assert done.exit_code == 2
    assert "90_small has no parameter 'stepz'" in done.output
    settings = tmp_path / "notebooks/firm/settings.toml"
    settings.write_text(settings.read_text().replace("seeds", "seedz"))
    done = CliRunner().invoke(main, ["reproduce", "90_small", "--firm", "--plan"])
    assert done.exit_code == 2
    assert "the firm profile of 90_small gives it 'seedz', and it has the parameters steps, seeds" in done.output


def test_firm_needs_a_profile_and_a_plan_needs_firm() -> None:
    for arguments, words in (
        (["--firm", "00_start_here"], "00_start_here has no firm profile: there is one of 26_scale, 14_fedanchor, "),
        (["--plan", "00_start_here"], "--plan is of --firm"),
    ):
        done = CliRunner().invoke(main, ["reproduce", *arguments])
        assert done.exit_code == 2
        assert words in done.output
        assert len(done.output.strip().splitlines()) == 1


STORED = sorted(Path("notebooks/firm").glob("*/*.jsonl.xz"))


def begun(file: Path) -> Started | dict[str, Any]:
    """What a run began with, or the settings of a record."""
    with lzma.open(file) as lines:
        first = json.loads(lines.readline())
    return started_in(file) if first["kind"] == "started" else first


def test_what_the_repository_stores_is_firm() -> None:
    """Named by recipes as they are called now, long enough where there is text, over enough seeds, and not too large all together."""
    assert sum(file.stat().st_size for file in STORED) < 30e6
    assert {file.parent.name for file in STORED} == {*firm_profiles(Path("notebooks"))}
    seeds: dict[str, set[int]] = {}
    for file in STORED:
        if not isinstance(started := begun(file), Started):
            continue
        recipe = Recipe.recorded(started.recipe)
        assert file.name == f"{recipe.id}.jsonl.xz", f"{file.name} is {recipe.id} now: rename it"
        anyhow = re.sub(r'("seed": |[?&]seed=)\d+', r"\1*", json.dumps(recipe.to_dict()))  # of data and methods too
        seeds.setdefault(anyhow, set()).add(recipe.seed)
        if recipe.data is None:
            of_four = 4 if recipe.num_workers == 1 and recipe.batch_size == 8 else 1  # one client alone of four
            assert of_four * recipe.steps * started.tokens_per_step >= 20 * started.num_params, file
    choosing = {100, 101}
    judged = [found - choosing for found in seeds.values() if not found <= choosing]
    shown = [found for found in judged if len(found) == 1]
    assert len(shown) == 2  # personal heads on MNIST-1D (08), by which nothing is judged
    assert all(len(found) >= 5 and min(found) >= 5 for found in judged if found not in shown), (
        "at least five, none of the first look (0 to 4)"
    )
    assert len(judged) >= 4 * 21 + 50  # sizes, methods and readings; and what the other notebooks compare


def test_records_that_the_repository_stores_are_firm() -> None:
    """Named by their settings, whole, of at least five seeds or authors that the quick profile does not have."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in STORED:
        if not isinstance(settings := begun(file), Started):
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
            assert file.name == f"{settings['kind']}-{digest[:8]}.jsonl.xz"
            _, events = read_small(file)
            assert isinstance(events[-1], CellDone)
            found.setdefault(file.parent.name, []).append(settings)
    assert {*found} == {"19_lunar", "22_nexa", "23_imitation_audit"}
    (facts,), (audit,) = found["19_lunar"], found["23_imitation_audit"]
    assert len(facts["seeds"]) >= 5
    assert min(facts["seeds"]) >= 6
    assert len(audit["targets"]) >= 5
    assert audit["seed"] != 0
    worlds: dict[str, set[int]] = {}
    for settings in found["22_nexa"]:
        of = {key: settings[key] for key in ("world", "learning", "policy", "rivals")}
        worlds.setdefault(json.dumps([of, settings["start"] is None, settings["synthetic"]["easy"]]), set()).add(
            settings["seed"]
        )
    assert len(worlds) == 4 + 2 + 2 + 2  # prices, the harder world, the adders, the other ways to learn
    assert all(len(drawn) >= 5 and min(drawn) >= 6 for drawn in worlds.values())


def test_profiles_say_how_many_runs_they_have() -> None:
    """And a notebook takes every parameter that its profile gives it."""
    for name, profile in firm_profiles(Path("notebooks")).items():
        assert profile.runs == len(profile.stored), name
        (cell,) = [c for c in nbformat.read(profile.notebook, 4).cells if "parameters" in c.metadata.get("tags", [])]
        assert {*profile.values} <= {line.partition(":")[0] for line in cell.source.splitlines()}, name


def test_the_last_step_of_a_stored_run(run: RunFolder, tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    stored.add(run.recipe(), run.events())
    events = events_in(stored.file(run.recipe()))
    assert isinstance(events[0], Started)
    assert [e.step for e in events if isinstance(e, Stepped)] == [*range(1, 7)]


def test_what_is_rounded_in_a_stored_run(run: RunFolder, tmp_path: Path) -> None:
    """Training losses to their mean, who is down stays down; of latents the first and the last look; nothing else."""
    started, ended = next(iter(run.events())), Ended(3, "done", "")
    looks = [PseudoLabelled(k, 4, 2, 1, 0, 1 / 3, [[1.0, 2.0, 0.0, 0.0]], [[0.5, 0.5, 1.0]], 0.25) for k in (1, 2, 3)]
    step = Stepped(1, [1.0, None, 2.0], 1 / 3, 0.0123456)
    apart = Drifted(1, [1 / 3, None, 2 / 3], [None, None, None])
    Stored(tmp_path).add(run.recipe(), [started, step, apart, *looks, ended])
    _, small, near, first, second, third, _ = Stored(tmp_path).events(run.recipe())
    assert small == Stepped(1, [1.5, None, 1.5], 0.3333, 0.012)
    assert near == Drifted(1, [0.33, None, 0.67], [None, None, None])
    assert (first, third) == (looks[0], looks[2])
    assert second == dataclasses.replace(looks[1], points=[], anchors=[])
