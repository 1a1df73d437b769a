"""Training from a cell: how long it will take, and a picture from the first step on where somebody looks."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import widgets.training
import widgets.view
from lab.events import Ended, Started, Stepped
from lab.ground.errors import Diverged
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import find_run
from lab.runs.stored import Stored
from lab.study.compare import with_rate
from tests.support.recipes import recipe
from widgets.training import LINES, MOST, _Lines, _Picture, events_of, train_all, tune_rate
from widgets.training_losses import Losses

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    class Handle:
        def update(self, forms: dict[str, str], raw: bool) -> None:
            said.append(forms["text/plain"])

    monkeypatch.setattr("widgets.training.display", lambda *_, **__: Handle())
    monkeypatch.setattr("widgets.training.clear_output", lambda wait: said.append("cleared"))
    monkeypatch.setattr("widgets.training.get_ipython", object)
    return said


def test_the_line_says_how_long_all_of_them_take(told: list[str]) -> None:
    """At the pace of this run; what is finished already takes no time."""
    lines, now = _Lines({"a": 10, "b": 30, "c": 0}), [0.0]
    lines.begin("a", recipe(steps=10))
    lines.progress._clock = lambda: now[0]
    lines(Started(1, {}, 1, [1], 30, None, 1.0, {}))
    for step in (1, 2, 3):
        now[0] += 2.0
        lines.shown = -1e9
        lines(Stepped(step, [1.0], 1.0, 0.1))
    assert told[-1].startswith("a  1 of 3, 74 s for all: step 3 of 10")  # 7 steps and 30 more, 2 s each
    assert told[-1].endswith("14 s left")
    lines.end()
    lines.begin("b", recipe(steps=30))
    lines.shown = -1e9
    lines(Stepped(1, [1.0], 1.0, 0.1))
    assert "for all" not in told[-1]  # the last: what is left of it is what is left


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """In front of a person; (runs in the picture, points of the one that is trained) at every drawing."""
    drawn: list[tuple[int, int]] = []

    class Canvas:
        def __init__(self, choose: Any):
            self.forms: dict[str, Any] = {}

        def _repr_mimebundle_(self) -> dict[str, Any]:
            return {}

        def draw(self, board: Any, **head: Any) -> None:
            (picture,) = board.pictures
            drawn.append((len(picture.names), max(len(s.x) for s in picture.series)))

    for place in (widgets.training, widgets.view):
        monkeypatch.setattr(place, "surroundings", lambda: "live")
    for name in ("display", "update_display"):
        monkeypatch.setattr(widgets.view, name, lambda *_, **__: None)
    monkeypatch.setattr(widgets.view, "Canvas", Canvas)
    monkeypatch.setattr(widgets.view, "RATE", 1e9)
    monkeypatch.setattr(widgets.view, "SHARE", 1e9)
    return drawn


def test_a_picture_from_the_first_step_on(told: list[str], looking: list[tuple[int, int]], tmp_path: Any) -> None:
    """All runs are in its legend before the first has begun; finished ones are not trained again, and there is no picture of them alone."""
    runs = {"one": recipe(steps=4), "two": recipe("ddp", steps=4)}
    done = train_all(runs, tmp_path)
    assert looking[0] == (2, 0)
    assert (2, 1) in looking
    assert looking[-1] == (2, 4)
    assert [len(columns.step) for columns in done.values()] == [4, 4]
    looking.clear()
    assert train_all(runs, tmp_path)["two"].loss.tolist() == done["two"].loss.tolist()
    assert looking == []


def test_many_finished_runs_are_one_line(told: list[str]) -> None:
    names = [f"r{k}" for k in range(LINES + 1)]
    lines = _Lines(dict.fromkeys(names, 0))
    for name in names:
        lines.begin(name, recipe(steps=4))
        lines.end()
    assert told[-1] == "17 of 17 runs, all of them finished before, are read"
    assert all(len(said.splitlines()) == 1 for said in told)
    one_to_come = _Lines(dict.fromkeys(names, 0) | {"r3": 4})
    one_to_come.begin("r0", recipe(steps=4))
    one_to_come.end()
    assert told[-1].startswith("r0 ")


def test_in_secret_nothing_is_shown_of_what_comes_of_it(
    told: list[str], looking: list[tuple[int, int]], tmp_path: Any
) -> None:
    """Where a question asks for it: how far the runs are, whether they are trained or finished already."""
    runs = {"one": recipe(steps=4, eval_every=2), "two": recipe("ddp", steps=4, eval_every=2)}
    for _ in ("trained", "read"):
        told.clear()
        train_all(runs, tmp_path, secret=True)
        assert looking == []
        assert told[-1].splitlines() == ["one  step 4 of 4", "two  step 4 of 4"]
        assert not any("loss" in said or "validation" in said for said in told)


def test_what_is_interrupted_leaves_a_picture_at_rest(
    told: list[str], looking: list[tuple[int, int]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[bool] = []
    monkeypatch.setattr(Losses, "rest", lambda self: rested.append(True))

    def cut_off(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(widgets.training, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train_all({"one": recipe(steps=4)}, tmp_path)
    assert rested == [True]


def test_of_many_runs_the_last_are_shown(looking: list[tuple[int, int]]) -> None:
    names = [f"r{k}" for k in range(MOST + 3)]
    picture = _Picture(dict.fromkeys(names, 4))
    for name in names:
        picture.begin(name)
    assert picture.view is not None
    assert [*picture.view.runs] == names[3:]
    assert picture.view.board().title == f"The last {MOST} of {MOST + 3} runs · Does it learn?"


def test_nobody_looks_no_picture(told: list[str], tmp_path: Any) -> None:
    assert _Picture({"one": 4}).view is None


SHORT = {
    "method": {"name": "ddp", "inner": {"name": "SGD", "lr": 0.1}},
    "model": {"dim": 8, "num_layers": 1, "num_heads": 1},
    "corpus": "grammar?tokens=8000",
    "num_workers": 1,
    "batch_size": 2,
    "context": 8,
    "steps": 3,
    "eval_every": 0,
    "checkpoint_every": 0,
}


def at(rate: float, seed: int) -> Recipe:
    return with_rate(Recipe.of(SHORT).but(seed=seed), rate / 0.1)


def test_a_rate_is_chosen_over_seeds(told: list[str], tmp_path: Path) -> None:
    """By the mean of what its runs come to; every run is trained once, and then read from where it is stored."""
    asked: list[tuple[float, int]] = []

    def loss(run: Columns) -> float:
        rate = run.recipe.method.inner.lr
        asked.append((rate, run.recipe.seed))
        # alone seed 7 would choose 0.1 and seed 8 would choose 0.4; both together choose 0.2
        return {7: {0.05: 3.0, 0.1: 1.0, 0.2: 2.0, 0.4: 9.0}, 8: {0.05: 9.0, 0.1: 8.0, 0.2: 2.0, 0.4: 1.0}}[
            run.recipe.seed
        ][round(rate, 3)]

    folders = tmp_path / "runs", tmp_path / "stored"
    found = tune_rate("method", at, 0.1, (7, 8), loss, 5, *folders)
    assert (found.rate, found.at_edge) == (0.2, False)
    assert found.losses == {0.05: 6.0, 0.1: 4.5, 0.2: 2.0, 0.4: 5.0}
    assert len(asked) == len({*asked}) == 8
    assert len(Stored(folders[1])) == 8
    shutil.rmtree(folders[0])
    again = tune_rate("method", at, 0.1, (7, 8), loss, 5, *folders)
    assert again == found
    assert not folders[0].exists()  # nothing was trained
    events = events_of(at(0.2, 7), *folders)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Ended)


def test_one_rate_is_taken_as_it_is(tmp_path: Path) -> None:
    def never(*_: object) -> Recipe:
        raise AssertionError("nothing is to be trained")

    found = tune_rate("method", never, 0.1, (7, 8), lambda run: 0.0, 1, tmp_path)
    assert found.words == "0.1, not tuned"


def test_a_run_without_a_finite_loss_has_diverged(told: list[str], tmp_path: Path) -> None:
    found = tune_rate(
        "m", at, 0.1, (7,), lambda run: math.nan if run.recipe.method.inner.lr > 0.1 else 1.0, 3, tmp_path
    )
    assert found.rate == pytest.approx(0.1)
    assert found.losses[0.2] == math.inf


def test_a_run_that_diverges_is_no_rate_to_take_and_is_stored(told: list[str], tmp_path: Path) -> None:
    """Trained once: what it came to is known then."""

    def steep(rate: float, seed: int) -> Recipe:
        return at(rate, seed).but(method={"name": "ddp", "max_norm": None, "inner": {"name": "SGD", "lr": rate}})

    folders = tmp_path / "runs", tmp_path / "stored"
    found = tune_rate("m", steep, 1e15, (7,), lambda run: run.loss_W[-1][0], 2, *folders)
    assert found.losses == {5e14: math.inf, 1e15: math.inf}
    stored = Stored(folders[1])
    assert len(stored) == 2
    assert stored.events(steep(1e15, 7))[-1].status == "failed"  # type: ignore[union-attr]
    shutil.rmtree(folders[0])
    assert tune_rate("m", steep, 1e15, (7,), lambda run: 0.0, 2, *folders) == found
    assert not folders[0].exists()
    with pytest.raises(Diverged, match=r"is nan|is inf"):
        train_all({"a": steep(1e15, 7)}, *folders)
    assert told[-1].startswith("a  diverged: loss of worker 0 is ")
    recipes = {"a": steep(1e15, 7), "b": at(0.1, 7)}
    stored_then, trained_now = (
        train_all(recipes, *folders, diverging=True),
        train_all(recipes, folders[0], diverging=True),
    )
    for found_in in (stored_then, trained_now):
        assert len(found_in["a"].step) < len(found_in["b"].step) == 3


def test_in_a_plain_script_finished_runs_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing that was said can be changed."""
    train_all({"a": at(0.1, 7), "b": at(0.1, 8)}, tmp_path)
    assert [line[:10] for line in capsys.readouterr().out.splitlines()] == ["a  3 steps", "b  3 steps"]
    assert tune_rate("m", at, 0.1, (7,), lambda run: 1.0, 2, tmp_path).losses == {0.05: 1.0, 0.1: 1.0}
    assert "\x1b" not in capsys.readouterr().out


def test_nothing_to_train(tmp_path: Path) -> None:
    assert train_all({}, tmp_path) == {}
    with pytest.raises(ValueError, match="one seed at least"):
        tune_rate("m", at, 0.1, (), lambda run: 1.0, 2, tmp_path)


def test_events_of_a_run_that_is_not_stored(told: list[str], tmp_path: Path) -> None:
    train_all({"a": at(0.1, 7)}, tmp_path)
    assert events_of(at(0.1, 7), tmp_path) == [*find_run(at(0.1, 7).id, tmp_path).events()]
    assert events_of(at(0.1, 7), tmp_path, tmp_path / "empty")[-1].kind == "ended"
