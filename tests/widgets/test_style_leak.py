"""What `StyleLeak` says and draws of an audit of imitation."""

from __future__ import annotations

import pytest

from lab.events import Imitated, from_json, to_json
from lab.systems.imitation.found import Found, Row, band
from tests.support.pictures import audited, check_forms_agree, check_well_formed
from widgets import Bars, Lines, StyleLeak
from widgets.pictures import Note

VIEWS = {
    "whole": StyleLeak.of(audited()),
    "many counts": StyleLeak.of(audited(counts=tuple(range(0, 200, 5)))),
    "base alone": StyleLeak.of(audited(counts=(0,), federated=False)),
    "federation alone": StyleLeak.of(audited(counts=())),
    "one count": StyleLeak.of(audited(counts=(25,), federated=False)),
    "nothing yet": StyleLeak.of([]),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: StyleLeak) -> None:
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_numbers_are_those_of_the_events() -> None:
    """Of three authors 1, 2 and 3 of 20 texts of the base pass, and of verifiers with imitations half as many."""
    answer, by_way, by_verifier, detectors, likeness, federations, said = VIEWS["whole"].pictures()
    assert isinstance(answer, Note)
    assert isinstance(said, Note)
    assert "fine-tuned (full) on 200 messages 100% (100% to 100%) pass" in answer.words
    assert "lets 5% of other people's own texts pass; least passes with signature: 0%" in answer.words
    assert "; of adapters of federations" in answer.words
    assert "people only 90 % and 5 %" in said.words
    assert "by full that pass for the author's, 20 of each author" in said.words
    assert "people only: 10 % (2 to 20) with 0" in said.words
    assert "signature: 0 % (0 to 0) with 0" in said.words
    assert "prelort, plain: shared, rank 2 40 % (loss 0.50)" in said.words
    assert isinstance(by_way, Lines)
    assert by_way.names == ["lora", "full"]
    assert [list(by_way.series[0].x), list(by_way.series[0].y)] == [
        [0, 5, 25, 200],
        pytest.approx([0.1, 0.2, 0.6, 1.0]),
    ]
    assert by_way.floor == (pytest.approx(0.05), "other people's own texts")
    found = Found.of(audited())
    base = Row("base", 0)
    low, high = band({0: [1] + [0] * 19, 1: [1] * 2 + [0] * 18, 2: [1] * 3 + [0] * 17})
    assert (by_way.bands[0].low[0], by_way.bands[0].high[0]) == (low, high) == found.band(base, "people only")
    assert isinstance(by_verifier, Lines)
    assert by_verifier.names == ["people only", "with imitations", "signature"]
    assert list(by_verifier.series[2].y) == [0.0] * 4
    assert isinstance(detectors, Lines)
    assert detectors.names == ["log-likelihood", "watermark, at the service"]
    assert isinstance(likeness, Lines)
    assert isinstance(federations, Bars)
    assert list(federations.values) == pytest.approx([0.4, 0.5, 0.9, 0.0])
    assert federations.labels[3].endswith("no loss")


def test_a_way_is_chosen_and_a_new_audit_begins_anew() -> None:
    view = StyleLeak.of(audited())
    assert [c.name for c in view.controls()] == ["way"]
    view.way = "lora"
    assert "by lora" in view.pictures()[2].title
    view.way = "prompt"
    with pytest.raises(ValueError, match="use lora, full"):
        view.pictures()
    twice = StyleLeak.of([*audited(), *audited(counts=(0,), federated=False)])
    assert twice.found.ways == []
    assert twice.found.federated == []


def test_seeds_are_cells_of_one_row_and_a_cell_done_anew_replaces_itself() -> None:
    (one, *_) = [e for e in audited() if isinstance(e, Imitated)]
    other = Imitated(**{**vars(one), "seed": 1, "accepted": {v: [1] * 20 for v in one.accepted}})
    found = Found.of([one, other, one])
    assert found.rates(Row("base", 0), "people only") == {0: (1 + 20) / 40}


def test_events_read_back_as_they_were_written() -> None:
    for event in audited():
        assert from_json(to_json(event)) == event
