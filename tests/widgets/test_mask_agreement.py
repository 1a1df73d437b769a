"""`MaskAgreement`: what it says of masks is what the events say, in every form, live or stored."""

from __future__ import annotations

from typing import Any

import pytest

from lab.events import Masked, from_json, to_json
from tests.support.pictures import check_forms_agree, check_well_formed, masked
from widgets import Lines, MaskAgreement
from widgets.pictures import Note

LOOK = Masked(
    30, 2000, 10, 100.0, 1234, 130, 120, {"mean": 0.75, "least": 0.5}, {"mean": 0.875, "least": 0.625}, 0.9375
)
VIEWS: dict[str, MaskAgreement] = {
    "whole": MaskAgreement.of(masked()),
    "long": MaskAgreement.of(masked(rounds=300)),
    "one round": MaskAgreement.of(masked(rounds=1)),
    "one client at times": MaskAgreement.of(masked(alone=(1, 3))),
    "one client alone": MaskAgreement.of(masked(rounds=3, alone=(0, 1, 2))),
    "by hand": MaskAgreement.of([LOOK]),
    "nothing yet": MaskAgreement.of(masked(rounds=0)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: MaskAgreement) -> None:
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_one_sentence_with_numbers_that_are_drawn_below() -> None:
    said, agreement, regrown, sparsity = MaskAgreement.of([LOOK]).pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "At step 30, 10 clients handed in 100 of 2,000 weights each; masks of two clients have an IoU of 0.7500 on average, 0.5000 at "
        "least. 1,234 weights had grown back at them. The server's model now has 120, a sparsity of 94.00%. In 0 of 1 rounds nothing "
        "had grown back."
    )
    drawn: dict[str, Any] = {}
    for picture in (agreement, regrown, sparsity):
        assert isinstance(picture, Lines)
        drawn |= {s.name: [*s.points[1]] for s in picture.series}
    assert drawn == {
        "two clients, mean": [0.75],
        "two clients, least": [0.5],
        "client and server": [0.875],
        "server and before": [0.9375],
        "weights": [1234],
        "the server's model": [0.94],
        "what a client hands in": [0.95],
    }


def test_with_one_client_there_is_no_pair() -> None:
    """The line of pairs has a gap there, and the words do not speak of them."""
    (words, lines, *_) = MaskAgreement.of(masked(rounds=3, alone=(0, 1, 2))).pictures()
    assert "two clients" not in words.words  # type: ignore[union-attr]
    pairs = next(s for s in lines.series if s.name == "two clients, mean")  # type: ignore[union-attr]
    assert all(y is None or y != y for y in pairs.points[1])


def test_an_event_reads_back_as_it_was_written_and_stays_small() -> None:
    assert from_json(to_json(LOOK)) == LOOK
    assert len(to_json(LOOK)) < 500
    assert LOOK.sparsity == 0.94


def test_a_new_run_begins_anew() -> None:
    view = MaskAgreement.of(masked(rounds=4))
    assert len(view.replay(masked(rounds=2)).step) == 2
