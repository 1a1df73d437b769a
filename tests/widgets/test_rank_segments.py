"""`RankSegments`: what it says of a federation is what the events say, live or stored, and nothing is ever made up."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lab.events import Covered, Event, Sent, Truncated, from_json, to_json
from lab.models.lora import LoRA
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.trainer import train
from tests.support.pictures import check_forms_agree, check_well_formed, federation
from tests.support.recipes import recipe
from widgets import Lines, Matrix, RankSegments
from widgets.pictures import Note, Picture
from widgets.rank_segments import best_prefix, segment_names

NAN = float("nan")
VIEWS: dict[str, RankSegments] = {
    "whole": RankSegments.of(federation()),
    "one round": RankSegments.of(federation(rounds=1)),
    "running text, no scores": RankSegments.of(federation(scores=False)),
    "nothing looked at": RankSegments.of(e for e in federation() if not isinstance(e, Truncated)),
    "nothing aggregated": RankSegments.of(e for e in federation() if not isinstance(e, Covered | Sent)),
    "a loss that is no number": RankSegments.of(
        replace(e, loss_M=[math.inf, NAN, NAN], aurac={"loss": NAN}, scores_M=[{}, {}, {}], energy_M=[0, 0, 0])
        if isinstance(e, Truncated)
        else e
        for e in federation()
    ),
    "nothing at all": RankSegments.of([]),
}


def picture(view: RankSegments, title: str) -> Any:
    (found,) = (p for p in view.pictures() if p.title.startswith(title))
    return found


def line(view: RankSegments, title: str, name: str) -> tuple[list[float], list[float | None]]:
    (found,) = (s for s in picture(view, title).series if s.name == name)
    return found.points


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: RankSegments) -> None:
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_who_covers_what() -> None:
    """Ranks 3-4 are handed in by client 0 alone: in the first and the last round; the other two cover the rest."""
    view = VIEWS["whole"]
    how_many: Matrix = picture(view, "How many clients")
    assert list(how_many.rows) == ["rank 1", "rank 2", "ranks 3-4"]
    assert list(how_many.columns) == [5, 10, 15, 20]
    assert how_many.values.tolist() == [[3, 2, 2, 3], [2, 1, 1, 2], [1, 0, 0, 1]]
    assert (how_many.low, how_many.high) == (0, 3)
    mass: Matrix = picture(view, "How much data")
    assert mass.values.tolist() == [[1, 1, 1, 1], [0.75, 0.5, 0.5, 0.75], [0.5, 0, 0, 0.5]]
    # A tick stands at its column. Plotly takes a number that is also a name for the name, so that it must be given names.
    x_axis = how_many.plotly()["layout"]["xaxis"]
    assert x_axis["tickvals"] == x_axis["ticktext"]
    assert set(x_axis["tickvals"]) <= set(how_many.plotly()["data"][0]["x"])
    waited: Matrix = picture(view, "How long")
    assert waited.values.tolist() == [[5, 5, 5, 5], [5, 5, 5, 5], [5, 5, 10, 15]]
    assert waited.high == 15


def test_energy_bias_and_bytes() -> None:
    view = VIEWS["whole"]
    assert line(view, "Which segments", "ranks 3-4") == ([5, 10, 15, 20], [0.1] * 4)
    assert line(view, "Which segments", "ranks 3-4, spectrum") == ([5, 10, 15, 20], [0.2] * 4)
    energy: Lines = picture(view, "Which segments")
    assert energy.names == ["rank 1", "rank 2", "ranks 3-4"]
    colours = {
        s.name.removesuffix(", spectrum"): {t.colour for t in energy.series if s.name in t.name} for s in energy.series
    }
    assert all(len(both) == 1 for both in colours.values())
    assert line(view, "How wrong", "bias of mean factors")[1] == [0.1, 0.05, pytest.approx(0.5 / 15, rel=1e-4), 0.025]
    assert line(view, "What does each", "handed in") == ([0, 1, 2], [80, 80, 40])  # client 0 in two of four rounds
    assert line(view, "What does each", "fetched") == ([0, 1, 2], [80, 80, 40])
    assert picture(view, "What does each").x == "client, of rank 4, 2, 1"


def test_bytes_are_told_apart_by_their_way() -> None:
    """What is broadcast is fetched; means at a server, factors gathered, and means without a server are handed over."""
    ops = {"broadcast": 1, "reduce": 10, "gather": 100, "all_reduce": 1000, "all_gather": 10_000}
    sent = [Sent(1, op, "params", (0, 2), {"all": n}) for op, n in ops.items()]
    view = RankSegments.of([*sent, Covered(1, [1], [[0, 2]], [1.0], [1], 0.0)])
    assert line(view, "What does each", "fetched") == ([0, 2], [1, 1])
    assert line(view, "What does each", "handed in") == ([0, 2], [11_110, 11_110])


def test_worth_of_prefixes() -> None:
    """The latest curve stands before some earlier ones; the best prefix is the one with the lowest loss, or best score."""
    view = VIEWS["whole"]
    assert line(view, "What is every prefix worth, by loss", "step 20") == ([1, 2, 4], [0.0, 0.5, 2.5])
    assert picture(view, "What is every prefix worth, by loss").floor == (0.0, "best: rank 1")
    assert picture(view, "What is every prefix worth, by accuracy").floor == (pytest.approx(0.5), "best: rank 4")
    faint = [s.name for s in picture(view, "What is every prefix worth, by loss").series if s.faint]
    assert faint == ["step 5", "step 10", "step 15"]
    assert line(view, "Do all prefixes learn, by loss", "AURAC")[1] == [2.0, 1.75, 1.5, 1.25]
    assert line(view, "Do all prefixes learn, by loss", "best prefix")[1] == [2.0, 1.5, 1.0, 0.0]
    assert line(view, "Do all prefixes learn, by loss", "smallest")[1] == [3.0, 2.0, 1.0, 0.0]
    assert line(view, "Do all prefixes learn, by accuracy", "largest")[1] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    many = RankSegments.of(federation(rounds=40))
    assert len([s for s in picture(many, "What is every prefix worth, by loss").series if s.faint]) == 4


def test_best_prefix() -> None:
    assert best_prefix([1, 2, 4], [3.0, 2.0, 2.0], "loss") == (2, 2.0)
    assert best_prefix([1, 2, 4], [3.0, 2.0, 2.0], "perplexity") == (2, 2.0)
    assert best_prefix([1, 2, 4], [0.3, NAN, 0.4], "rouge_l") == (4, 0.4)
    rank, value = best_prefix([1], [math.inf], "loss")
    assert rank == 0
    assert math.isnan(value)
    assert segment_names([1, 2, 8, 64]) == ["rank 1", "rank 2", "ranks 3-8", "ranks 9-64"]


def test_one_metric_can_be_chosen() -> None:
    chosen = RankSegments(metric="accuracy").replay(federation())
    assert [p.title for p in chosen.pictures() if "by " in p.title] == [
        "What is every prefix worth, by accuracy?",
        "Do all prefixes learn, by accuracy?",
    ]
    with pytest.raises(ValueError, match=r"metric = 'rouge' is not measured in this run: use loss, accuracy"):
        RankSegments(metric="rouge").replay(federation()).pictures()


def test_nothing_yet() -> None:
    (note,) = VIEWS["nothing at all"].pictures()
    assert isinstance(note, Note)
    assert "lora.ranks" in note.words
    titles = [p.title for p in VIEWS["nothing looked at"].pictures()]
    assert not any("prefix" in t or "energy" in t for t in titles)
    bad = VIEWS["a loss that is no number"]
    assert picture(bad, "What is every prefix worth, by loss").floor is None
    assert line(bad, "What is every prefix worth, by loss", "step 20")[1] == [None, None, None]


def test_a_new_run_begins_anew() -> None:
    twice = RankSegments.of([*federation(rounds=9), *federation()])
    assert [p.text() for p in twice.pictures()] == [p.text() for p in VIEWS["whole"].pictures()]


def test_live_and_stored_say_the_same(tmp_path: Any) -> None:
    """Of a real run of a federation: fed while it trained, from its file, and from events that went through JSON."""
    live, seen = RankSegments(), []
    spec = recipe(steps=8, eval_every=4, checkpoint_every=0, lora=LoRA(ranks=(3, 2, 1))).to_dict()

    def each(event: Event) -> None:
        seen.append(event)
        if isinstance(event, live.reads):
            live.fold(event)

    run = train(Recipe.of(spec | {"method": {"name": "prelort", "sync_every": 4}}), tmp_path / "run", each=each)
    stored = RankSegments.of(RunFolder(tmp_path / "run").events())
    through = RankSegments.of(from_json(to_json(e)) for e in seen)
    specs: list[list[dict[str, Any]]] = [[p.spec() for p in view.pictures()] for view in (live, stored, through)]
    assert specs[0] == specs[1] == specs[2]
    assert len(specs[0]) == 9
    assert all(isinstance(p, Picture) for p in live.pictures())
    up, down = (line(live, "What does each", way)[1] for way in ("handed in", "fetched"))
    whole = [run.ledger.total_bytes() / 2 * r / 6 for r in (3, 2, 1)]
    assert up == down == whole  # Σ r_k·(d_in + d_out) each way: in proportion to the rank
    assert picture(live, "How long").values.tolist() == [[4, 4], [4, 4], [4, 4]]
