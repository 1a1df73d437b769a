"""`PrivacyLevels`: what it says of levels is what the runs' events say, over seeds, in every form."""

from __future__ import annotations

import pytest

from lab.recipes.recipe import Recipe
from tests.support.pictures import check_forms_agree, check_well_formed, levelled
from widgets import Bars, Lines, PrivacyLevels
from widgets.pictures import Note
from widgets.privacy_levels import level_of


def of(*runs: tuple[str, int, bool], looks: int = 4) -> PrivacyLevels:
    view = PrivacyLevels()
    for level, seed, groups in runs:
        view.replay(levelled(level, seed, looks, groups=groups), f"{level} {groups}")
    return view


LEVELS = ("", "by:person", "by:person+room", "by:person+sensor")
VIEWS = {
    "whole": of(*((level, seed, level.endswith("sensor")) for level in LEVELS for seed in (0, 1, 2))),
    "one run": of(("", 0, False)),
    "long": of(*((level, 0, False) for level in LEVELS), looks=300),
    "nothing to compare with": of(("by:person", 0, False)),
    "nothing yet": PrivacyLevels(),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: PrivacyLevels) -> None:
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_what_is_said_is_what_is_drawn() -> None:
    """Two seeds, by hand: means, ranges, and differences from the centralised run of the same seed."""
    said, bars, lines = of(
        ("", 0, False), ("", 1, False), ("by:person+sensor", 0, True), ("by:person+sensor", 1, True)
    ).pictures()
    assert isinstance(said, Note)
    assert isinstance(bars, Bars)
    assert isinstance(lines, Lines)
    last = 0.9 - 0.5 / 16
    assert bars.names == [
        "centralised",
        "person × sensor",
        "person × sensor: F and all G together",
        "person × sensor: F, own sensor alone",
        "person × sensor: G, own sensor alone",
    ]
    assert bars.values == pytest.approx([last + d + 0.005 for d in (0, -0.05, -0.02, -0.25, -0.1)])
    assert list(bars.labels)[:2] == ["0.874", "0.824, -5.0 points"]
    assert "person × sensor 0.824 (0.819 to 0.829), -5.0 points (-5.0 to -5.0); " in said.words
    for name, label in zip(bars.names, bars.labels, strict=True):
        assert f"{name} {label[:5]} (" in said.words
    assert said.words.startswith(
        "Accuracy at the last evaluation, 2 seeds (mean, and from the least to the most): centralised 0.874"
    )
    assert lines.names == ["centralised", "person × sensor"]
    assert list(lines.series[0].y) == pytest.approx([0.9 - 0.5 / k**2 + 0.005 for k in (1, 2, 3, 4)])


def test_names_make_rows_and_epsilon_is_said() -> None:
    view = PrivacyLevels()
    for seed in (0, 1):
        view.replay(levelled("", seed), f"centralised #{seed}")
        view.replay(levelled("by:person", seed, epsilon=0.5 + 0.1 * seed), f"people, with noise #{seed}")
    _, bars, _ = view.pictures()
    assert isinstance(bars, Bars)
    assert bars.names == ["centralised", "people, with noise"]
    assert bars.labels[1].endswith("points, ε = 2.4")
    again = view.replay(levelled("by:person", 1, looks=1), "people, with noise #1")  # the run begins anew
    assert {seed: [*x] for seed, x in again.looks["people, with noise"].items()} == {0: [10, 20, 30, 40], 1: [10]}


def test_levels_are_told_by_the_recipe() -> None:
    def recipe(split: str, num: int) -> Recipe:
        return Recipe.of({"data": "sensors", "model": "conv1d", "split": split, "num_workers": num})

    assert level_of(recipe("iid", 1)) == "centralised"
    assert level_of(recipe("by:person+room", 12)) == "person × room"
    assert level_of(recipe("groups", 12)) == "12 clients, groups"
