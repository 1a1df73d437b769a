"""A run in sentences: those of the views that have something to say, at the end of `lab run` and by `lab answers`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lab.runs.answers
from lab.cli import main
from lab.events import Event, KnobChanged, Stepped
from lab.runs.answers import ANSWERS, answered, lines
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support import ROOT
from tests.support.pictures import by_client, federation, routing
from tests.support.recipes import recipe
from widgets import CommunicationBudget, Drift, Knobs, Losses, RoutingStability, SyncCalendar, Workers
from widgets.summaries import answers

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
STORED = ROOT / "notebooks/stored/turned"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that a package has registered this."""

    def install(value: str) -> None:
        point = EntryPoint("isthmus", value, ANSWERS)
        monkeypatch.setattr(
            lab.runs.answers, "entry_points", lambda group: [point] if group == ANSWERS and value else []
        )

    return install


def quiet() -> list[Event]:
    """A run in which every worker works."""
    return list(Trainer(recipe(steps=4)).events())


def test_each_sentence_is_that_of_its_view() -> None:
    """In their order; a view whose subject did not come up says nothing."""
    events = list(RunFolder(STORED).events())
    views = (Losses, CommunicationBudget, SyncCalendar, Workers, Drift, Knobs)
    assert answers(events) == [(view.title, view.of(events).answer()) for view in views]


def test_what_did_not_happen_is_not_told() -> None:
    titles = [title for title, _ in answers([*routing(looks=3), Stepped(9, [1.0, 1.0], 1.0, 0.1)])]
    assert RoutingStability.title in titles
    assert Drift.title not in titles
    assert answers(quiet()[:1]) == []  # no step was taken


@pytest.mark.parametrize("story", [federation, by_client])
def test_stories_of_all_kinds_are_told(story: Callable[[], Any]) -> None:
    told = dict(answers([*story(), Stepped(9, [1.0, 1.0], 1.0, 0.1)]))
    assert {"Which ranks are used, and by whom?", "Who gains, who loses?"} & set(told)
    assert all(told.values())


def test_a_pause_is_no_knob_and_all_at_work_is_nothing_to_tell() -> None:
    events = quiet()
    paused: list[Event] = [*events[:-1], KnobChanged(3, "paused", True), *events[-1:]]
    titles = [title for title, _ in answers(paused)]
    assert Knobs.title not in titles
    assert Workers.title not in titles


def test_a_view_that_raises_says_nothing_and_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: object) -> None:
        raise IndexError("an expert too many")

    events = quiet()
    monkeypatch.setattr(SyncCalendar, "fold", fall)
    monkeypatch.setattr(Drift, "answer", fall)
    assert [title for title, _ in answers(events)] == [Losses.title, CommunicationBudget.title]


def test_the_terminal_says_them_at_the_end_and_on_demand(installed: Callable[[str], None], tmp_path: Path) -> None:
    installed("widgets.summaries:answers")
    given = tmp_path / "recipe.json"
    given.write_text(json.dumps(recipe(steps=4).to_dict()))
    ran = CliRunner().invoke(main, ["run", str(given), "--runs", str(tmp_path / "runs")])
    assert ran.exit_code == 0, ran.output
    (path,) = (tmp_path / "runs").glob("*/events.jsonl*")
    events = list(RunFolder(path.parent).events())
    said = lines(answers(events))
    assert len(said) >= 3
    assert ran.stdout.splitlines()[-len(said) :] == said
    told = CliRunner().invoke(main, ["answers", path.parent.name, "--runs", str(tmp_path / "runs")])
    assert told.output.splitlines() == lines(answers(events), indent="")


def test_without_views_a_run_ends_as_ever_and_the_question_is_refused(installed: Callable[[str], None]) -> None:
    installed("no_such_package:answers")
    assert answered(quiet) == []
    installed("")
    refused = CliRunner().invoke(main, ["answers", str(STORED)])
    assert refused.exit_code != 0


def test_the_package_registers_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EntryPoint("isthmus", project["entry-points"][ANSWERS]["isthmus"], ANSWERS).load() is answers


def test_lines_are_broken_where_they_are_long() -> None:
    said = lines([("Why?", "because " * 30)])
    assert max(map(len, said)) <= 118
    assert said[0].startswith("  Why? because")
    assert all(line.startswith("    because") for line in said[1:])
