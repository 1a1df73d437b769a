"""`Fairness`: what it says of clients is what the events say, in every form, live or stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lab.events import ClientsScored, Event, from_json, to_json
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.trainer import train
from tests.support.pictures import by_client, check_forms_agree, check_well_formed
from widgets import Fairness, Lines
from widgets.pictures import Note, Picture

ABOUT = {"num": 20, "mean": 0.75, "std": 0.125, "worst_tenth": 0.25, "p0": 0.125, "p5": 0.2, "p25": 0.5, "p50": 0.8}
ABOUT |= {"p75": 0.9, "p95": 0.95, "p100": 1.0}
OWN = ABOUT | {"num": 8, "mean": 0.875, "worst_tenth": 0.5}
GAIN = {"num": 8, "p50": 0.0625, "share": 0.75}
LOOK = ClientsScored(
    40,
    {"accuracy": ABOUT},
    {"accuracy": OWN},
    {"accuracy": GAIN},
    {"accuracy": {"ends": [0.0, 1.0], "shared": [1, *[0] * 17, 4, 15], "own": [*[0] * 19, 8]}},
    [3, 5],
    {"accuracy": [0.5, None]},
    {"accuracy": [0.75, 1.0]},
)
VIEWS: dict[str, Fairness] = {
    "whole": Fairness.of(by_client()),
    "one look": Fairness.of(by_client(looks=1)),
    "nothing kept": Fairness.of(by_client(personal=False)),
    "two clients": Fairness(clients="2, 21", score="loss").replay(by_client(looks=20)),
    "all alike": Fairness.of(by_client(clients=1)),
    "by hand": Fairness.of([LOOK]),
    "nothing yet": Fairness.of(by_client(looks=0)),
    "nobody holds out anything": Fairness.of([ClientsScored(4, {}, {}, {}, {}, [], {}, {})]),
}


def picture(view: Fairness, title: str) -> Any:
    (found,) = (p for p in view.pictures() if p.title.startswith(title))
    return found


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: Fairness) -> None:
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_one_sentence_with_numbers() -> None:
    assert LOOK.words("accuracy") == (
        "accuracy of the agreed model at step 40, over 20 clients: 0.75 on average, 0.25 for the worst tenth, from 0.125 to 1 "
        "(standard deviation 0.125). With what each keeps, 75% of the 8 clients that had a turn are better off (higher), half of all by "
        "0.0625 or more: 0.875 on average, 0.5 for the worst tenth"
    )
    note = VIEWS["by hand"].pictures()[0]
    assert isinstance(note, Note)
    assert note.words == LOOK.words("accuracy")
    without = next(e for e in by_client(personal=False) if isinstance(e, ClientsScored)).words("loss")
    assert "keeps" not in without


def test_lines_and_bands_are_those_of_the_events() -> None:
    looks = [e for e in by_client() if isinstance(e, ClientsScored)]
    for score in ("loss", "accuracy"):
        lines: Lines = picture(VIEWS["whole"], f"How is the {score}")
        values = {s.name: np.asarray(s.y).tolist() for s in lines.series}
        assert values == {
            "shared, mean": [e.shared[score]["mean"] for e in looks],
            "shared, worst tenth": [e.shared[score]["worst_tenth"] for e in looks],
            "own, mean": [e.own[score]["mean"] for e in looks],
            "own, worst tenth": [e.own[score]["worst_tenth"] for e in looks],
        }
        assert np.asarray(lines.series[0].x).tolist() == [10, 20, 30, 40, 50, 60]
        wide, narrow = lines.bands
        assert np.asarray(wide.low).tolist() == [e.shared[score]["p5"] for e in looks]
        assert np.asarray(wide.high).tolist() == [e.shared[score]["p95"] for e in looks]
        assert np.asarray(narrow.low).tolist() == [e.shared[score]["p25"] for e in looks]


def test_the_histogram_is_made_of_stairs() -> None:
    stairs: Lines = picture(VIEWS["by hand"], "Who has which accuracy, at step 40?")
    shared, own = stairs.series
    assert (shared.name, own.name) == ("shared", "own")
    x, y = np.asarray(shared.x), np.asarray(shared.y)
    assert len(x) == len(y) == 42
    assert (x[0], x[1], x[2], x[-1]) == (0, 0, pytest.approx(0.05), 1)
    assert (y[:4].tolist(), y[-5:].tolist()) == ([0, 1, 1, 0], [4, 4, 15, 15, 0][-5:])
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(0.05 * 20)  # twenty clients in bins of a twentieth
    assert np.asarray(own.y).max() == 8


def test_a_clients_line_on_demand() -> None:
    """In the looks in which it took part: client 2 in the first of every ten, as four of forty do so each time."""
    view = Fairness.of(by_client(looks=21))
    assert not any("client" in s.name for s in picture(view, "How is the loss").series)
    view.choose("clients", "2 21")
    looks = [e for e in by_client(looks=21) if isinstance(e, ClientsScored) and 2 in e.clients]
    found = {s.name: s for s in picture(view, "How is the loss").series}
    line = found["client 2, shared"]
    assert list(line.x) == [10, 110, 210]
    assert list(line.y) == [e.shared_C["loss"][e.clients.index(2)] for e in looks]
    assert list(found["client 2, own"].y) == [e.own_C["loss"][e.clients.index(2)] for e in looks]
    assert "client 21, shared" in found
    for words, says in (
        ("2; 3", "write up to 5 numbers"),
        ("1 2 3 4 5 6", "write up to 5"),
        ("99", "did not take part"),
    ):
        with pytest.raises(ValueError, match=says):
            view.choose("clients", words)
    assert view.clients == "2 21"
    view.choose("clients", "")
    assert not any("client" in s.name for s in picture(view, "How is the loss").series)


def test_what_was_not_known_is_a_gap() -> None:
    view = Fairness(clients="5").replay([LOOK])
    found = {s.name: (list(s.x), list(s.y)) for s in picture(view, "How is the accuracy").series}
    assert "client 5, shared" not in found  # none of its targets counts
    assert found["client 5, own"] == ([40], [1.0])
    late = Fairness.of(
        [
            ClientsScored(
                10, {"accuracy": ABOUT}, {}, {}, {"accuracy": {"ends": [0, 1], "shared": [20] * 20}}, [], {}, {}
            ),
            LOOK,
        ]
    )
    own = next(s for s in picture(late, "How is the accuracy").series if s.name == "own, mean")
    assert np.isnan(np.asarray(own.y)[0])
    assert np.asarray(own.y)[1] == 0.875
    with pytest.raises(ValueError, match="'acuracy' is not known of this run: use accuracy"):
        Fairness(score="acuracy").replay([LOOK]).pictures()


def test_a_new_run_begins_anew() -> None:
    twice = Fairness.of([*by_client(looks=9), *by_client()])
    assert [p.text() for p in twice.pictures()] == [p.text() for p in VIEWS["whole"].pictures()]


def test_live_and_stored_say_the_same(tmp_path: Any) -> None:
    live, seen = Fairness(), []
    r = Recipe.of(
        {
            "method": {"name": "local_sgd", "sync_every": 2},
            "model": "tests.support.parts:net",
            "data": "tests.support.parts:blobs",
            "split": "draw:8:0.5",
            "num_workers": 3,
            "clients": {"num": 12, "held_out": 0.25, "personal": ("2.*",)},
            "steps": 8,
            "batch_size": 3,
            "eval_every": 2,
        }
    )

    def each(event: Event) -> None:
        seen.append(event)
        if isinstance(event, live.reads):
            live.fold(event)

    train(r, tmp_path / "run", each=each)
    stored = Fairness.of(RunFolder(tmp_path / "run").events())
    through = Fairness.of(from_json(to_json(e)) for e in seen)
    specs: list[list[dict[str, Any]]] = [[p.spec() for p in view.pictures()] for view in (live, stored, through)]
    assert specs[0] == specs[1] == specs[2]
    assert len(specs[0]) == 5
    assert all(isinstance(p, Picture) for p in live.pictures())
