"""Views: what the canvas draws, plotly, SVG and text say the same; a view never ends a run; at rest it is one output."""

from __future__ import annotations

import json
import re
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import widgets.view
from lab.events import Ended, Event, Routed, Started, Stepped, from_json, to_json
from lab.probes.routing import balance
from tests.support import ROOT
from tests.support.pictures import PICTURES, TABLES, Place, check_forms_agree, check_well_formed, routing
from widgets import Bars, Board, Grid, Lines, Matrix, RoutingStability, Series, View, holdings
from widgets.boards import BOARD
from widgets.matrices import MAX_COLUMNS
from widgets.pictures import Note, Picture
from widgets.resting import MIME
from widgets.view import BRIEF, WHOLE

# --- a stream of events ----------------------------------------------------------------------------------------------


SHAPES: dict[str, dict[str, Any]] = {
    "four layers": {},
    "mode A": {"mode": "A"},
    "one layer, 128 experts": {"layers": 1, "experts": 128, "workers": 8, "looks": 12},
    "24 layers": {"layers": 24, "experts": 16, "workers": 8, "holders": 4, "looks": 9, "moves": True},
    "workers down": {"down": (1, 3), "looks": 8},
    "all workers down": {"down": (0, 1, 2, 3), "looks": 8, "mode": "A"},
    "one holder": {"holders": 1, "looks": 6},
    "full replicas": {"holders": 4, "looks": 6},
    "moving": {"moves": True, "looks": 10},
    "one look": {"looks": 1},
    "no looks yet": {"looks": 0},
    "512 layers": {"layers": 512, "experts": 4, "looks": 3},
}


def only(picture_type: type, title: str, view: View) -> Any:
    """The one picture of a view whose title begins so."""
    (found,) = (p for p in view.pictures() if p.title.startswith(title) and isinstance(p, picture_type))
    return found


def whole(view: View) -> View:
    """The same with all its pictures."""
    view.choose("detail", WHOLE)
    return view


def titles(view: View) -> list[str]:
    return [p.title for p in view.pictures()]


# --- four forms, one picture -----------------------------------------------------------------------------------------

ALL = PICTURES | TABLES | {name: whole(RoutingStability.of(routing(**shape))).board() for name, shape in SHAPES.items()}


@pytest.mark.parametrize("picture", ALL.values(), ids=ALL.keys())
def test_every_form_is_well_formed(picture: Picture) -> None:
    check_well_formed(picture)


@pytest.mark.parametrize("picture", ALL.values(), ids=ALL.keys())
def test_forms_agree(picture: Picture) -> None:
    check_forms_agree(picture)


def test_cells_of_the_svg_are_exactly_the_values():
    """Without gaps between them, every known value is a stroke of its length in its row, in the colour of its level."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (6, 40)).astype(float)
    values[2, 7:9] = np.nan
    matrix = Matrix(
        "?",
        "x",
        list("abcdef"),
        list(range(40)),
        values,
        "u",
        low=0,
        high=4,
        colours=tuple(f"#00{k}" for k in range(5)),
    )
    painted = np.full(values.shape, np.nan)
    for colour, path in re.findall(r'<path stroke="#00(\d)" d="([^"]+)"/>', matrix.svg()):
        for x, y, n in re.findall(r"M(\d+) (\d+)h(\d+)", path):
            painted[int(y), int(x) : int(x) + int(n)] = int(colour)
    np.testing.assert_array_equal(painted, values)


def test_what_is_too_much_is_averaged_and_says_so():
    rows = TABLES["512 rows"].spec()
    assert len(rows["rows"]) == 128
    assert rows["rows"][1] == "layer 4–layer 7"
    assert {v for row in rows["values"] for v in row} == {50}
    assert "mean of 4 rows" in rows["x"]
    columns = TABLES["700 columns"].spec()
    assert len(columns["columns"]) == 175 <= MAX_COLUMNS
    assert columns["values"][0][:2] == [1.5, 5.5]
    assert columns["columns"][-1] == "699"
    assert "mean of 4 columns" in columns["x"]


def test_values_beyond_the_scale_are_marked():
    """The colour bar says that its end means more, and the hover keeps the value."""
    spec = TABLES["bands"].spec()
    assert spec["scale"]["ticks"][-1][1] == "≥ 1"
    assert spec["values"][2] == [9]
    assert spec["row_ticks"] == [[0, "x"], [1.5, "y"]]
    assert spec["edges"] == [1]


def test_lines_have_gaps_in_every_form():
    """What is not known is not bridged; a point between two gaps shows."""
    lines = Lines("Gaps?", "x", "y", [Series("a", range(7), [1, 2, np.nan, 3, np.nan, 4, 5])])
    (series,) = lines.spec()["series"]
    assert series["y"] == lines.plotly()["data"][0]["y"] == [1, 2, None, 3, None, 4, 5]
    assert lines.svg().count("l0 0") == 3


def test_a_board_gives_every_picture_a_place_of_its_own():
    """No two overlap, all lie inside, a wide one takes a row, and plotly's plots are where the SVG's are."""
    board = whole(RoutingStability.of(routing())).board()
    places = board.places(BOARD)
    assert [p for p, *_ in places] == list(board.pictures)
    taken = np.zeros((board.height(BOARD), BOARD), dtype=int)
    for picture, left, top, width, height in places:
        taken[top : top + height, left : left + width] += 1
        assert width == BOARD or not picture.wide
    assert taken.max() == 1
    layout = board.plotly()["layout"]
    for k, (picture, left, top, width, height) in enumerate(places):
        x, y = (layout[f"{axis}axis{k + 1 if k else ''}"]["domain"] for axis in "xy")
        assert left / BOARD < x[0] < x[1] < (left + width) / BOARD
        assert 1 - (top + height) / layout["height"] < y[0] < y[1] < 1 - top / layout["height"]
        if isinstance(picture, Lines):
            assert layout[f"legend{k + 1 if k else ''}"]["y"] >= y[1]  # above the data, not on it
    spec = board.spec()
    assert [panel["per_row"] for panel in spec["panels"]] == [1, 1, 3, 3, 3, 2, 2, 2, 2]


def test_axis_titles_stay_within_their_picture():
    """Three in a row, with letters of middling width; also for titles of more than fit in full size."""
    long = Lines("Long?", "an axis with a title that is far too long for a third of a row, even so", "y " * 20, [])
    for board in (
        whole(RoutingStability.of(routing(**SHAPES["24 layers"]))).board(),
        Board("?", [replace(long, title=t) for t in "abc"]),
    ):
        for picture in ET.fromstring(board.svg()).findall("{*}svg"):
            width, height = float(picture.get("width")), float(picture.get("height"))
            for text in picture.iter("{http://www.w3.org/2000/svg}text"):
                half = 0.56 * float(text.get("font-size")) * len(text.text) / 2
                if text.get("fill") == "#333" and text.get("x"):
                    assert -1 < float(text.get("x")) - half < float(text.get("x")) + half < width + 1, text.text
                elif text.get("fill") == "#333" and "translate(13" in text.get("transform"):
                    middle = float(text.get("transform").split()[1].rstrip(")"))
                    assert -1 < middle - half < middle + half < height + 1, text.text


@pytest.mark.parametrize("num", range(1, 9))
def test_rows_of_a_board_are_even(num):
    board = Board("?", [Lines(f"{k}?", "x", "y", []) for k in range(num)])
    sizes = [len(row) for row in board.rows()]
    assert sum(sizes) == num
    assert max(sizes) <= 3
    assert max(sizes) - min(sizes) <= 1


# --- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_live_and_afterwards_are_the_same(shape, monkeypatch):
    """Fed event by event, or replayed from lines of JSON."""
    Place(monkeypatch, "batch")
    live = RoutingStability()
    for event in routing(**shape):
        live(event)
    stored = RoutingStability.of(from_json(to_json(event)) for event in routing(**shape))
    assert live.board().spec() == stored.board().spec()


def test_the_heat_map_is_the_load_in_even_shares():
    looks = [e for e in routing() if isinstance(e, Routed)]
    matrix = only(Matrix, "Does every expert", RoutingStability.of(routing()))
    load = np.array(looks[-1].agreed_load_LE, dtype=float)
    np.testing.assert_allclose(matrix.values[:, -1], (load / load.mean(1, keepdims=True)).ravel())
    assert matrix.rows[9] == "L1 E1"
    assert list(matrix.columns) == [e.step for e in looks]


def test_the_workers_load_leaves_out_what_is_not_known():
    """The sum over workers that are up; None for an expert that no router knows."""
    event = next(e for e in routing(layers=1, experts=2, workers=2, looks=1) if isinstance(e, Routed))
    event = replace(event, load_WLE=[[[3, None]], None], agreed_load_LE=[[1, 1]])
    view = RoutingStability(source="workers").replay([event])
    assert np.asarray(only(Matrix, "Does every", view).values).ravel().tolist() == pytest.approx(
        [1, np.nan], nan_ok=True
    )
    assert view.board().spec()["panels"][0]["values"] == [[1], [None]]
    nobody = replace(event, load_WLE=[None, None])
    assert np.isnan(only(Matrix, "Does every", RoutingStability(source="workers").replay([nobody])).values).all()


def test_too_many_layers_show_the_worst_one_by_name():
    events = list(routing(layers=24, experts=16, workers=8, looks=4))
    cv = np.mean([[balance(row).cv for row in e.agreed_load_LE] for e in events if isinstance(e, Routed)], axis=0)
    matrix = only(Matrix, "Does every", RoutingStability.of(events))
    assert f"Layer {cv.argmax()}, the least balanced of 24" in matrix.title
    assert len(matrix.rows) == 16
    chosen = RoutingStability(layer=3).replay(events)
    assert only(Matrix, "Does every", chosen).title.endswith("Layer 3")
    entropy = only(Lines, "How varied", chosen)
    assert [s.name for s in entropy.series] == ["lowest layer", "highest layer", "mean (thin: extremes)"]


def test_options_are_checked():
    with pytest.raises(ValueError, match="agreed"):
        RoutingStability(source="agred")
    with pytest.raises(ValueError, match="layers 0 to 3"):
        RoutingStability(layer=4).replay(routing(looks=2)).pictures()


@pytest.mark.parametrize(("workers", "holders"), [(4, 2), (8, 2), (4, 1), (2, 2)])
def test_ghosts_are_held_against_their_ideal(workers, holders):
    """1 − O_e/M from the table of holders; nothing to be shown where every worker has every expert, or in mode A."""
    view = RoutingStability.of(routing(workers=workers, holders=holders, looks=5))
    if holders < workers:
        ideal = next(s for s in only(Lines, "How often", view).series if s.name.startswith("ideal"))
        assert list(ideal.y) == [1 - holders / workers] * 5
    else:
        measured = [e for e in routing(workers=workers, holders=holders, looks=5) if isinstance(e, Routed)]
        quiet = [replace(e, ghost_fraction_WL=[[0.0] * 4] * workers) for e in measured]
        assert not any("absent" in t for t in titles(RoutingStability.of(quiet)))
    routers_know_their_own = RoutingStability.of(routing(workers=workers, holders=holders, looks=5, mode="A"))
    if holders < workers:
        assert not any("absent" in t for t in titles(routers_know_their_own))


def test_numbers_that_are_missing_are_gaps_or_leave_the_picture_out():
    """The first churn, entropy while everybody is down, divergence with one holder."""
    view = RoutingStability.of(routing(**SHAPES["all workers down"]))
    churn, entropy = only(Lines, "How many choices", view), only(Lines, "How varied", view)
    assert np.isnan(churn.series[-1].y[0])
    assert np.isfinite(churn.series[-1].y[1:]).all()
    assert np.isnan(entropy.series[-1].y).tolist() == [False, False, True, True, False, False, False, False]
    assert not any("copies" in t for t in titles(RoutingStability.of(routing(holders=1, looks=4))))


def test_balance_and_dead_experts():
    event = next(e for e in routing(layers=2, experts=4, looks=1) if isinstance(e, Routed))
    looks = [replace(event, step=t, agreed_load_LE=[[100, 100, 100, 100], [0, 0, 400, 400]]) for t in (10, 20)]
    view = RoutingStability.of(looks)
    lines = {s.name: s.y[0] for s in only(Lines, "How uneven", view).series}
    assert lines == {"layer 0": 1, "layer 1": 2, "busiest ÷ mean": 1.5, "CV (spread ÷ mean)": 0.5}
    assert only(Lines, "How many experts", view).series[0].y[0] == 2
    assert only(Lines, "How many experts", view).axes()[1].ticks() == [2]


def test_who_holds_what():
    """One table where all layers agree, bands of layers where they do not, shares where those would be too many."""
    same = only(Grid, "Who", RoutingStability.of(routing(looks=1)))
    assert np.asarray(same.held).sum(1).tolist() == [2] * 8
    assert same.text().endswith("w3: E2–E3, E6–E7")
    mixed = only(Grid, "Who", RoutingStability.of(routing(moves=True, looks=2)))
    assert len(mixed.rows) == 32
    assert len(mixed.bands) == 4
    assert "32 copies moved" in mixed.x
    many = only(Grid, "Who", RoutingStability.of(routing(**SHAPES["24 layers"])))
    assert len(many.rows) == 16
    assert "share of 24 layers" in many.x
    np.testing.assert_allclose(np.asarray(many.held).sum(1), 4)


def test_a_second_run_begins_anew():
    view = RoutingStability.of([*routing(looks=5), *routing(looks=3, moves=True)])
    assert len(view.looks) == 3
    assert view.moved == 32
    assert RoutingStability.of([*routing(looks=5), *routing(looks=0)]).looks == []


def test_a_run_without_experts_says_so():
    started, ended = [e for e in routing(looks=0) if isinstance(e, Started | Ended)]
    (note,) = RoutingStability.of([started, Stepped(1, [2.0], 1.0, 0.1), ended]).pictures()
    assert "No look" in note.text()


# --- one picture that answers, the others on demand -------------------------------------------------------------------


def test_the_first_picture_answers_and_the_others_are_behind_a_menu():
    """At rest both are one figure: what is not shown is there unseen, and the menu turns one into the other."""
    view = RoutingStability.of(routing())
    brief, everything = view.board(), whole(view).board()
    assert [p.title for p in brief.pictures] == ["How many choices changed?"] == titles(view)[:1]
    assert [p.title for p in everything.pictures] == titles(view)
    view.choose("detail", BRIEF)
    figure = view.plotly()
    shown = [trace for trace in figure["data"] if trace.get("visible", True)]
    assert len(shown) == len(brief.plotly()["data"]) < len(figure["data"]) == len(everything.plotly()["data"])
    words = [mark["text"] for mark in figure["layout"]["annotations"] if mark.get("visible", True)]
    assert words == [view.answer(), "How many choices changed?"]
    first, second = figure["layout"]["updatemenus"][0]["buttons"]
    assert (first["label"], second["label"]) == (BRIEF, WHOLE)
    assert second["args"][1]["height"] == everything.height(BOARD) > first["args"][1]["height"] == brief.height(BOARD)
    assert len(second["args"][2]) == len(figure["data"]) - len(shown)
    assert set(second["args"][0]["visible"]) == {None}  # as where nothing is said: seen


def test_what_has_one_point_is_a_number_and_no_picture():
    view = RoutingStability.of(routing(looks=1))
    note = view.pictures()[-1]
    assert isinstance(note, Note)
    assert not [p for p in view.pictures() if isinstance(p, Lines)]
    dead = next(e for e in routing(looks=1) if isinstance(e, Routed))
    assert f"How many experts are dead? all layers together: 0 at {dead.step}" in note.words


def test_a_share_is_drawn_against_all_that_it_may_be():
    """However little of it is used; what lies beyond is drawn as well."""
    flat = Lines("?", "x", "entropy", [Series("a", [0, 1], [0.9999, 0.99995])], reach=(0, 1))
    (low, high) = (flat.axes()[1].low, flat.axes()[1].high)
    assert low < 0 < 1 < high < 1.1
    assert replace(flat, series=[Series("a", [0, 1], [0.5, 3.0])]).axes()[1].high > 3
    assert replace(flat, reach=None).axes()[1].low > 0.99


# --- where a view shows itself ---------------------------------------------------------------------------------------


RESTING = {MIME, "image/svg+xml", "text/plain"}


def test_live_is_a_widget_that_becomes_one_picture(monkeypatch):
    place, view = Place(monkeypatch, "live"), RoutingStability()
    for event in routing(looks=6):
        assert place.changed == []
        view(event)
    ((shown_id, widget),) = place.shown
    ((changed_id, picture),) = place.changed
    assert shown_id == changed_id
    assert "application/vnd.jupyter.widget-view+json" in widget
    assert set(picture) == RESTING
    assert [p["title"] for p in view._screen.canvas.panels] == titles(view)[:1]
    view.rest()
    view.show()
    assert len(place.changed) == 1
    assert set(place.shown[1][1]) == RESTING
    for event in routing(looks=2):  # the same view again: a new place
        view(event)
    assert len(place.shown) == 3
    assert place.changed[1][0] == place.shown[2][0] != shown_id


def test_rest_in_mid_run_is_for_good(monkeypatch):
    """Later events are taken in, so that the view can be shown again, but they draw nothing."""
    place, view = Place(monkeypatch, "live"), RoutingStability()
    for event in routing(looks=6):
        view(event)
        if isinstance(event, Routed) and event.step == 30:
            view.rest()
    assert len(place.shown) == len(place.changed) == 1
    assert "at 30" in place.changed[0][1]["text/plain"]
    assert "at 60" in view.board().text()


def test_batch_is_one_output_at_the_end(monkeypatch):
    """No widget at all; less than 100 kB for 4 layers of 8 experts and 64 looks."""
    place, view = Place(monkeypatch, "batch"), RoutingStability()
    for event in routing():
        assert place.changed == []
        view(event)
    ((place_id, nothing),) = place.shown
    ((shown_id, picture),) = place.changed
    assert nothing == {"text/plain": ""}
    assert place_id == shown_id
    assert set(picture) == RESTING
    assert len(json.dumps(picture)) < 100_000
    assert view._screen.canvas is None


def test_a_terminal_gets_words(monkeypatch, capsys):
    place, view = Place(monkeypatch, "terminal"), RoutingStability()
    for event in routing(looks=3):
        view(event)
    assert place.shown == []
    assert capsys.readouterr().out.startswith("Does routing stay stable?")


def test_here_is_a_terminal():
    assert widgets.view.surroundings() == "terminal"


def test_a_thread_shows_nothing_by_itself(monkeypatch):
    """It has no cell. The view appears where it is shown, and changes there."""
    place, view = Place(monkeypatch, "live"), RoutingStability()
    events = list(routing(looks=3))

    def feed(part: list[Event]) -> None:
        thread = threading.Thread(target=lambda: [view(event) for event in part])
        thread.start()
        thread.join()

    feed(events[:3])
    assert place.shown == []
    view.show()
    feed(events[3:])
    assert len(place.shown) == len(place.changed) == 1


def test_drawing_is_rare_and_only_when_something_changed(monkeypatch):
    """At most 8 times a second, in at most a fiftieth of the time, and never for events that are not read."""
    Place(monkeypatch, "live")
    now, cost = [0.0], 0.0
    drawn: list[float] = []

    class Slow(RoutingStability):
        def pictures(self) -> list[Picture]:
            drawn.append(now[0])
            now[0] += cost
            return RoutingStability.pictures(self)

    view = Slow()
    view._screen = widgets.view.Screen("live", clock=lambda: now[0], work=lambda: now[0])
    stream = [e for e in routing(looks=40) if isinstance(e, Started | Routed)]
    for event in stream[:40]:
        view(event)
        now[0] += 0.03125
    assert len(drawn) == 10  # the first at once, then one in four
    assert min(np.diff(drawn)) == 0.125
    now[0], seen = 100.0, len(drawn)
    view(Stepped(1, [2.0], 1.0, 0.1))  # what changed last is drawn with the next event, whatever it is
    assert len(drawn) == seen + 1
    now[0] = 200.0
    view(Stepped(2, [2.0], 1.0, 0.1))
    assert len(drawn) == seen + 1
    cost, drawn[:] = 0.1, []
    for event in stream[:15]:
        view(event)
        now[0] += 1.0
    assert np.diff(drawn).min() > 5.0


def test_a_program_hears_what_a_thread_shows_when_a_cell_ends(monkeypatch):
    """nbclient listens while a cell runs; a picture that comes between two cells would be lost."""
    place, view = Place(monkeypatch, "batch"), RoutingStability()
    view.show()
    thread = threading.Thread(target=view.add, args=tuple(routing(looks=3)))
    thread.start()
    thread.join()
    assert place.changed == []
    widgets.view.BATCH.flush()  # IPython says when
    ((shown_id, picture),) = place.changed
    assert shown_id == place.shown[0][0]
    assert set(picture) == RESTING


@pytest.mark.parametrize("where", ["live", "batch", "terminal"])
@pytest.mark.parametrize("method", ["fold", "pictures", "nothing can be shown"])
def test_a_view_that_raises_is_dropped_and_the_run_goes_on(where, method, monkeypatch, capsys):
    """It says so once, in its place, with the error and where it came from; and takes in nothing more."""
    place, taken = Place(monkeypatch, where), [0]

    class Bad(RoutingStability):
        def fold(self, event: Event) -> None:
            taken[0] += 1
            if isinstance(event, Routed) and method != "pictures":
                raise IndexError("an expert too many")
            RoutingStability.fold(self, event)

        def pictures(self) -> list[Picture]:
            if self.looks:
                raise IndexError("an expert too many")
            return RoutingStability.pictures(self)

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no comm")

    if method == "nothing can be shown":
        monkeypatch.setattr(widgets.view.Screen, "rest", broken)
    view = Bad()
    for event in routing(looks=4):
        view(event)
    said = [data["text/plain"] for _, data in [*place.changed, *place.shown] if set(data) == RESTING]
    said += [out] if (out := capsys.readouterr().out) else []
    if method == "nothing can be shown":
        assert said == []
    else:
        (words,) = said
        assert "Bad was dropped; the run goes on" in words
        assert "IndexError: an expert too many" in words
        assert "test_views.py, line" in words
    assert taken[0] < 9


def test_the_example_in_the_documentation_works(monkeypatch):
    """The view of a few lines that the module shows is a view."""
    place = Place(monkeypatch, "batch")
    source = widgets.view.__doc__.split("::\n\n", 1)[1].split("    train(recipe")[0]
    names: dict[str, Any] = {}
    imports = "from lab.runs.columns import Columns\nfrom lab.events import *\nfrom widgets import *\nfrom widgets.pictures import Picture\n"
    exec(imports + re.sub(r"^    ", "", source, flags=re.MULTILINE), names)
    view = names["Pace"]()
    for event in routing(looks=9):
        view(event)
    assert len(place.changed) == 1
    assert view.pictures()[0].series[0].y[-1] == 0.01


@pytest.mark.slow
@pytest.mark.processes
def test_an_executed_notebook_holds_one_picture_that_needs_no_network(tmp_path):
    """Executed by nbclient, a view is one output without a widget, and the page made of it loads nothing from elsewhere."""
    from nbclient import NotebookClient

    from widgets.pages import page

    nb = nbformat.v4.new_notebook()
    nb.cells = [
        nbformat.v4.new_code_cell(
            "import threading\nfrom tests.support.pictures import routing\nfrom widgets import RoutingStability"
        ),
        nbformat.v4.new_code_cell("view = RoutingStability()\nfor event in routing(): view(event)"),
        nbformat.v4.new_code_cell("RoutingStability.of(routing(looks=5))"),
        nbformat.v4.new_code_cell(
            "late = RoutingStability()\nrun = threading.Thread(target=lambda: [late(e) for e in routing(looks=4)])\n"
            "run.start()\nrun.join()"
        ),
    ]
    NotebookClient(nb, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in nb.cells[1:]:
        (output,) = cell.outputs
        assert set(output["data"]) == RESTING
    assert not nb.metadata.get("widgets")
    file = tmp_path / "executed.ipynb"
    nbformat.write(nb, file)
    assert file.stat().st_size < 350_000
    page(file, tmp_path / "executed.html")
    text = (tmp_path / "executed.html").read_text()
    assert text.count('<figure class="board">') == 3
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text) == []


MODULE = Path(widgets.view.__file__).with_name("view.js")


def test_the_module_is_small_and_loads_nothing():
    source = MODULE.read_text()
    assert len(source.encode()) < 52_000
    assert not re.search(r"\bimport\b|https?://|\beval\b|innerHTML", re.sub(r"//.*", "", source))


def test_ranges_of_experts_end_with_their_layer() -> None:
    """L0 E1 and L1 E0 are neighbours in the picture, not in the model."""
    table = [[[0], [0, 1]], [[0, 1], [1]]]
    assert "w0: L0 E0–L0 E1, L1 E0; w1: L0 E1, L1 E0–L1 E1" in holdings("Who?", table).text()


def test_a_view_saves_itself(tmp_path: Path) -> None:
    view = RoutingStability.of(routing())
    view.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == view.board().svg()


@pytest.mark.parametrize("width", [600, 960, 1400])
def test_bars_that_stand_three_in_a_row_stay_in_their_places(width: int) -> None:
    """Long names beside them leave room for bars; a place whose ends are the wrong way round is drawn over all others."""
    names = ["reverse the vector", "skip the block", "5 learned again"]
    bars = Bars("What comes back?", "share", names, [0.9, 0.05, 0.7], ["92.7 %", "5.2 %", "72.7 %"])
    layout = Board("Three", [bars, bars, bars]).plotly(width)["layout"]
    spans = [layout[axis]["domain"] for axis in ("xaxis", "xaxis2", "xaxis3")]
    for k, (low, high) in enumerate(spans):
        assert k / 3 <= low < high <= (k + 1) / 3 + 0.02
        assert high - low >= 1 / 3 / 5
    assert 'width="0.0"' not in Board("Three", [bars, bars, bars]).svg(width)
