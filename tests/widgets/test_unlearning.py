"""Unlearning: what it says is what it draws."""

from __future__ import annotations

import pytest

from lab.events import from_json, to_json
from tests.support.pictures import check_forms_agree, check_well_formed, unlearned
from widgets import Bars, Lines, Unlearning
from widgets.pictures import Note
from widgets.unlearning import hull

VIEWS = {
    "whole": Unlearning.of(unlearned()),
    "one seed": Unlearning.of(unlearned(1)),
    "nothing but the first model": Unlearning.of(list(unlearned(1))[:1]),
    "no attacks": Unlearning.of(unlearned(parts=("lunar",))),
    "nothing yet": Unlearning.of([]),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: Unlearning) -> None:
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_the_sentence_has_the_numbers_that_are_drawn_below() -> None:
    said, recalls, layers, before, after, attacks, sequence, federation = VIEWS["whole"].pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "Before, 100.0% of what is to be forgotten is recalled and 99.0% of what is to be retained. Redirected, closed form: 1.0% and 98.0%, 2.4 "
        "from the ideal (mean of 2 seeds). Of rivals, gradient_ascent: 1.0% and 98.0%, 2.4 from the ideal (mean of 2 seeds). Of attacks, "
        "“5 learned again” brings back most: 11.0%."
    )
    assert isinstance(recalls, Lines)
    assert {s.name: (s.x[0], s.y[0]) for s in recalls.series if not s.faint}["AdamW"] == pytest.approx((0.11, 0.68))
    arcs = [s for s in recalls.series if s.faint]
    assert all(
        (x**2 + (1 - y) ** 2) ** 0.5 * 100 == pytest.approx(float(s.name.split()[0]))
        for s in arcs
        for x, y in zip(s.x, s.y, strict=True)
    )
    assert isinstance(layers, Lines)
    assert list(layers.series[2].y) == pytest.approx([0.1, 0.85, 0.75])
    assert isinstance(attacks, Bars)
    assert dict(zip(attacks.names, attacks.values, strict=True)) == pytest.approx(
        {"no attack": 0.01, "skip the block": 0.01, "5 learned again": 0.11}
    )
    assert isinstance(sequence, Lines)
    assert list(sequence.series[0].y) == pytest.approx([0.01, 0.11, 0.21])
    assert isinstance(federation, Bars)
    assert federation.labels[1].endswith("0.20 MB up")
    assert isinstance(before, Lines)
    assert isinstance(after, Lines)
    assert after.bands[0].x == after.bands[2].x == before.bands[2].x != before.bands[0].x


def test_a_hull_is_what_lies_between_its_edges() -> None:
    """A square with a point inside and one on an edge."""
    band = hull([[0, 0], [2, 0], [2, 2], [0, 2], [1, 1], [1, 2]], 3)
    assert (list(band.x), list(band.low), list(band.high)) == ([0, 2], [0, 0], [2, 2])
    triangle = hull([[0, 0], [4, 0], [1, 3]], 3)
    assert (list(triangle.x), list(triangle.low), list(triangle.high)) == ([0, 1, 4], [0, 0, 0], [0, 3, 0])
    point = hull([[1, 2], [1, 2]], 3)
    assert (list(point.x), list(point.low), list(point.high)) == ([1], [2], [2])


def test_events_read_back_as_they_were_written() -> None:
    for event in unlearned(1):
        assert from_json(to_json(event)) == event
