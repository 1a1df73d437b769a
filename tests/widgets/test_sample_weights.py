"""What `SampleWeights` says and draws of weights of samples."""

from __future__ import annotations

import numpy as np
import pytest

from lab.events import Weighted
from tests.support.pictures import check_forms_agree, check_well_formed, weighed
from widgets import Lines, SampleWeights
from widgets.pictures import Note

LOOK = Weighted(
    30,
    "adapt",
    ["noise", "target", "away"],
    8,
    [6, 2, 0],
    [0.25, 0.75, None],
    [-0.5, 0.5, None],
    0.375,
    0.75,
    -0.25,
    0.4330127,
    {"ends": [-1.0, 1.0], "num": [6.0, *[0.0] * 18, 2.0]},
    {"ends": [0.25, 0.75], "num": [6.0, *[0.0] * 18, 2.0]},
)
VIEWS = {
    "whole": SampleWeights.of(weighed()),
    "long": SampleWeights.of(weighed(looks=300)),
    "one look": SampleWeights.of(weighed(looks=1)),
    "without scores": SampleWeights.of(weighed(scored=False)),
    "by hand": SampleWeights.of([LOOK]),
    "nothing yet": SampleWeights.of(weighed(looks=0)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: SampleWeights) -> None:
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_one_sentence_with_numbers_that_are_drawn_below() -> None:
    said, by_domain, ratio, weights, scores = SampleWeights.of([LOOK]).pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "Step 30: over 8 samples the mean weight by adapt is 0.375 (target 0.750, noise 0.250); they count as 75.0% of as many with equal "
        "weights; scores are -0.250 on average, standard deviation 0.433."
    )
    assert isinstance(by_domain, Lines)
    assert by_domain.names == ["target", "noise", "away"]
    assert [s.last for s in by_domain.series] == [(30.0, 0.75), (30.0, 0.25), None]
    assert isinstance(ratio, Lines)
    assert [s.last for s in ratio.series] == [(30.0, 0.375), (30.0, 0.75)]
    for picture, low, high in ((weights, 0.25, 0.75), (scores, -1.0, 1.0)):
        assert isinstance(picture, Lines)
        (stairs,) = picture.series
        assert (stairs.x[0], stairs.x[-1]) == (low, high)
        assert np.asarray(stairs.y)[[1, 2, 3, -2]].tolist() == [0.75, 0.75, 0.0, 0.25]


def test_at_first_and_now() -> None:
    view = SampleWeights.of(weighed())
    said, *_, weights, scores = view.pictures()
    assert isinstance(said, Note)
    assert said.words.endswith("From noise to target it is +0.667, after +0.000 at step 10.")
    for picture in (weights, scores):
        assert isinstance(picture, Lines)
        assert picture.names == ["step 10", "step 60"]


def test_a_view_forgets_the_run_before() -> None:
    view = SampleWeights.of([*weighed(), *weighed(looks=1, scored=False)])
    assert len(view.step) == 1
    assert view.last is view.first
