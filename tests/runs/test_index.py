"""Lists of runs: what stands in a summary, that nothing is read twice, names, and what is meant by one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lab.cli import main
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs import index
from lab.runs.folder import RunFolder, find_run, runs_called
from lab.runs.index import INDEX, as_options, nearest, summaries
from lab.runs.trainer import train
from tests.support.recipes import recipe


def lab(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


TINY = ["corpus=grammar?tokens=20000", "steps=2", "batch_size=2", "context=16", "eval_every=2", "schedule.warmup=0"]
STORED = Path(__file__).parents[2] / "notebooks/stored/turned"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs with events, of the same recipe, the second one newer; and one that has not begun."""
    for k, name in enumerate(("diloco-4w-aaaa", "diloco-4w-bbbb")):
        shutil.copytree(STORED, tmp_path / name)
        os.utime(tmp_path / name / "events.jsonl", (1e9 + k, 1e9 + k))
    RunFolder(tmp_path / "ddp-3w-cccc").write_recipe(recipe())
    return tmp_path


def test_a_summary_says_what_the_run_says(runs: Path) -> None:
    of, folder = {s.run: s for s in summaries(runs)}["diloco-4w-aaaa"], RunFolder(STORED)
    made, sent, last = folder.recipe(), [e for e in folder.events() if isinstance(e, Sent)], folder.last_evaluated()
    ended = folder.end()
    assert ended is not None
    assert last is not None
    assert (of.status, of.step, of.steps, of.seed) == (ended.status, ended.step, made.steps, made.seed)
    assert of.loss == last.loss
    assert of.payload_bytes == sum(e.bytes_all for e in sent) > 0
    assert of.workers == made.num_workers
    assert of.changed == 1e9
    unbegun = {s.run: s for s in summaries(runs)}["ddp-3w-cccc"]
    assert (unbegun.status, unbegun.step, unbegun.loss, unbegun.payload_bytes) == ("unfinished", None, None, None)


def test_what_has_not_changed_is_not_read_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = summaries(runs)
    looked: list[str] = []
    inner = index.summary_of
    monkeypatch.setattr(index, "summary_of", lambda run, path: looked.append(path) or inner(run, path))
    assert summaries(runs) == before
    assert looked == []
    RunFolder(runs / "diloco-4w-bbbb").call("second")
    assert [s.name for s in summaries(runs)] == ["", "", "second"]
    assert looked == ["diloco-4w-bbbb"]
    shutil.rmtree(runs / "diloco-4w-bbbb")
    assert len(summaries(runs)) == 2
    assert "bbbb" not in (runs / INDEX).read_text()


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b"\xff", b'{"version": 1, "runs": {"a": {"summary": {"odd": 1}}}}', b'{"version": 0}']
)
def test_an_index_that_is_none_is_made_again(broken: bytes, runs: Path) -> None:
    before = summaries(runs)
    (runs / INDEX).write_bytes(broken)
    assert summaries(runs) == before
    assert json.loads((runs / INDEX).read_text())["version"] == index.VERSION


def test_a_recipe_is_told_by_what_makes_it_special() -> None:
    assert nearest(Recipe.of("diloco")) == ("diloco", {})
    preset, differs = nearest(Recipe.of("diloco", ["steps=96", "method.outer.lr=0.4", "seed=3"]))
    assert preset == "diloco"
    assert sorted(as_options(differs)) == ["method.outer.lr=0.4", "seed=3", "steps=96"]
    assert nearest(Recipe.of("des_loc", ["mean.by=median"])) == ("des_loc", {"mean.by": "median"})
    assert nearest(Recipe.of("muloco", ["steps=96"])) == ("muloco", {"steps": 96})
    again = Recipe.of("des_loc", as_options(nearest(Recipe.of("des_loc", ["model=micro", "corpus=grammar"]))[1]))
    assert again == Recipe.of("des_loc", ["model=micro", "corpus=grammar"])


def test_a_name_means_its_run_and_the_beginning_of_an_id_the_newest(runs: Path) -> None:
    RunFolder(runs / "diloco-4w-aaaa").call("mine")
    assert find_run("mine", runs).path.name == "diloco-4w-aaaa"
    assert find_run("diloco", runs).path.name == "diloco-4w-bbbb"
    assert [r.path.name for r in runs_called("diloco", runs)] == ["diloco-4w-aaaa", "diloco-4w-bbbb"]
    assert find_run("diloco-4w-aaaa", runs).path.name == "diloco-4w-aaaa"
    for taken in ("mine", "diloco-4w-aaaa"):
        with pytest.raises(RecipeError, match="called already"):
            RunFolder(runs / "diloco-4w-bbbb").call(taken)
    RunFolder(runs / "diloco-4w-aaaa").call("mine")
    for name in ("", " a", "a/b", "x" * 101, "\x1b[31m", "a\nb"):
        with pytest.raises(RecipeError, match="no name for a run"):
            RunFolder(runs / "diloco-4w-aaaa").call(name)


def test_the_command_line_names_lists_and_compares(runs: Path) -> None:
    assert lab("name", "diloco-4w-bbbb", "the newer one", "--runs", str(runs)).exit_code == 0
    out = lab("list", "runs", "--runs", str(runs)).stdout
    assert '· "the newer one"' in out
    assert ", sent " in out
    assert [run["name"] for run in json.loads(lab("list", "--json", "--runs", str(runs)).stdout)] == [
        "",
        "",
        "the newer one",
    ]
    out = lab("compare", "the newer one", "diloco-4w-a", "--runs", str(runs), "--json")
    assert [row["run"] for row in json.loads(out.stdout)] == ["diloco-4w-aaaa", "diloco-4w-bbbb"]  # the older one first
    assert out.stderr == ""
    out = lab("compare", "diloco", "--runs", str(runs))
    assert out.stderr == "note: 2 runs are meant by diloco: the newest is taken, diloco-4w-bbbb\n"
    assert lab("name", "diloco", "a/b", "--runs", str(runs)).exit_code == 2


def test_losses_of_different_texts_are_not_shown_side_by_side(runs: Path) -> None:
    train(Recipe.of("ddp", TINY), runs / "other")
    out = lab("compare", "other", "diloco-4w-aaaa", "--runs", str(runs)).stdout
    rows = [line.split() for line in out.splitlines()[1:3]]
    assert {row[3] for row in rows} == {"–"}
    assert "note: not all of these runs have the same text, so their losses are no comparison and are left out" in out
    alone = lab("compare", "other", "--runs", str(runs)).stdout
    assert "–" not in alone.splitlines()[1]


def test_a_run_is_named_as_it_begins(tmp_path: Path) -> None:
    options = [part for option in TINY for part in ("-o", option)]
    out = lab("run", "diloco", *options, "--name", "a trial", "--runs", str(tmp_path))
    assert out.exit_code == 0, out.output
    (one,) = summaries(tmp_path)
    assert (one.name, one.status) == ("a trial", "done")
    assert one.differs["steps"] == 2
    refused = lab(
        "run", "diloco", *options, "-o", "batch_size=100000000", "--name", "too large", "--runs", str(tmp_path)
    )
    assert refused.exit_code == 2
    assert len(list(tmp_path.glob("diloco-*"))) == 1
