"""`Underperformers`: what it says of clients is what the events say, in every form, live or stored."""

from __future__ import annotations

import pytest

from lab.events import Adapted, from_json, to_json
from tests.support.pictures import check_forms_agree, check_well_formed, compared
from widgets import Bars, Lines, Underperformers
from widgets.pictures import Note

LOOK = Adapted(
    30,
    20,
    50,
    [3, 5, 8, 9],
    {"loss": [1.0, 2.0, 1.5, None], "accuracy": [0.5, 0.25, 0.75, 0.5]},
    {"ewc": {"loss": [0.5, 2.25, 1.0, 1.0], "accuracy": [1.0, 0.25, 0.75, 0.75]}},
    {"loss": [0.75, 1.0, 2.0, 1.0], "accuracy": [0.75, 0.5, 0.5, 0.5]},
)
VIEWS: dict[str, Underperformers] = {
    "one look": Underperformers.of(compared()),
    "as it goes": Underperformers.of(compared(looks=12)),
    "long": Underperformers(score="loss").replay(compared(looks=300)),
    "no way": Underperformers.of(compared(ways=())),
    "one client": Underperformers.of(compared(clients=1)),
    "nobody alone": Underperformers.of(compared(alone=False)),
    "nothing yet": Underperformers.of(compared(looks=0)),
    "no client": Underperformers.of([Adapted(4, 2, 2, [], {}, {"kd": {}}, {})]),
    "by hand": Underperformers.of([LOOK]),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: Underperformers) -> None:
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_one_sentence_with_numbers_that_are_drawn_below() -> None:
    said, bars, lines = Underperformers.of([LOOK]).pictures()
    assert isinstance(said, Note)
    assert said.words.splitlines() == [
        "accuracy at step 30: of 4 clients so many would be better off alone (50 local steps, 0.5625 on average):",
        "2 with the model as it is, together by 0.5",
        "1 after EWC (20 local steps), together by 0.25",
    ]
    assert isinstance(bars, Bars)
    assert [*zip(bars.names, bars.values, bars.labels, strict=True)] == [
        ("as it is", 2.0, "2 of 4"),
        ("EWC", 1.0, "1 of 4"),
    ]
    assert isinstance(lines, Lines)
    drawn = {s.name: [*s.points[1]] for s in lines.series}
    assert drawn == {"as it is": [-0.25, -0.25, 0.0, 0.25], "EWC": [-0.25, 0.25, 0.25, 0.25]}
    for name, count in zip(bars.names, bars.values, strict=True):
        assert sum(y < 0 for y in drawn[name]) == count
    assert lines.floor == (0.0, "as alone")


def test_another_score_and_one_that_there_is_not() -> None:
    _, bars, lines = Underperformers(score="loss").replay([LOOK]).pictures()
    assert bars.labels == ["2 of 3", "1 of 4"]  # type: ignore[union-attr]
    assert [*lines.series[1].points[1]] == [-1.25, 0.0, 0.25, 1.0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="score = 'f1' is not known of this run: use loss, accuracy"):
        Underperformers(score="f1").replay([LOOK]).pictures()


def test_over_time_each_look_is_drawn() -> None:
    view, looks = Underperformers.of(compared(looks=5)), [e for e in compared(looks=5) if isinstance(e, Adapted)]
    over_time = view.pictures()[-1]
    for series, way in zip(over_time.series, looks[0].ways, strict=True):  # type: ignore[union-attr]
        assert [*series.points[1]] == [e.underperformers(way, "accuracy") for e in looks]
    assert len(view.pictures()) == 4


def test_what_is_missing_is_said() -> None:
    for view in (VIEWS["nothing yet"], VIEWS["nobody alone"], VIEWS["no client"]):
        (note,) = view.pictures()
        assert "set adaptation.local_steps" in note.words  # type: ignore[union-attr]


def test_a_new_run_begins_anew_and_through_json_it_is_the_same() -> None:
    assert len(Underperformers.of([*compared(looks=3), *compared(looks=2)]).step) == 2
    through = Underperformers.of(from_json(to_json(e)) for e in compared(looks=3))
    assert [p.text() for p in through.pictures()] == [
        p.text() for p in Underperformers.of(compared(looks=3)).pictures()
    ]
