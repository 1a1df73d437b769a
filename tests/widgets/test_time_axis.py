"""One time axis: what happened when is the same in all pictures over steps, in all their forms; and the line above them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from lab.events import Event, KnobChanged, Sent, Started, Stepped, WorkersChanged
from lab.runs.live import start
from tests.support.recipes import recipe
from widgets import Drift, Knobs, Losses, SyncCalendar, Workers
from widgets.boards import Board
from widgets.canvas import Canvas
from widgets.communication_budget import CommunicationBudget
from widgets.moments import Moments
from widgets.panel import Status
from widgets.pictures import Lines, Series
from widgets.time_axis import KNOB, LEFT, RIGHT

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def story(steps: int = 40, **more: object) -> list[Event]:
    """A sync every 4 steps; the learning rate up at 11 and back at 21, periods at 31; worker 2 away from 25 to 30."""
    given = recipe({"name": "des_loc", "sync_every": {"params": 4, "exp_avg": 8}}, steps=steps, num_workers=3, **more)
    out: list[Event] = [Started(1, given.to_dict(), 1, [10] * 3, 30, None, 1.0, {})]
    up, changed = [0, 1, 2], {25: [0, 1], 31: [0, 1, 2]}
    knobs = {11: ("lr", 8.0), 21: ("lr", 1.0), 31: ("sync_every", {"params": 16, "exp_avg": 8})}
    for t in range(1, steps + 1):
        if t in knobs:
            out.append(KnobChanged(t, *knobs[t]))
        if t in changed:
            up = changed[t]
            out.append(WorkersChanged(t, up, [], []))
        out.append(Stepped(t, [2.0 if w in up else None for w in range(3)], 1.0, 0.1))
        out += [Sent(t, "all_reduce", "params", tuple(up), {"all": 100})] if t % 4 == 0 else []
    return out


def moments(events: list[Event]) -> Moments:
    out = Moments()
    out.add(*events)
    return out


def test_what_happened_when() -> None:
    axis = moments(story()).axis()
    assert axis is not None
    assert axis.last == 40
    assert axis.syncs.values.tolist() == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert axis.knobs == [(11, "lr × 8"), (21, "lr × 1"), (31, "params every 16")]
    assert axis.outages == [(25, 30, "w2 down")]
    going = moments([e for e in story() if e == story()[0] or e.step <= 27]).axis()
    assert going is not None
    assert going.outages == [(25, 27, "w2 down")]  # as long as it has lasted


def test_a_sample_of_clients_is_no_outage() -> None:
    axis = moments(story(scenario={"sample": 2})).axis()
    assert axis is not None
    assert axis.outages == []


def test_two_runs_share_an_axis_and_say_whose_knob_it_was() -> None:
    both = Moments()
    for run, steps in (("A", 40), ("B", 60)):
        both.add(*story(steps), run=run)
    axis = both.axis()
    assert axis is not None
    assert axis.last == 60
    assert (11, "A: lr × 8") in axis.knobs
    assert (11, "B: lr × 8") in axis.knobs
    both.leave("B")
    axis = both.axis()
    assert axis is not None
    assert (axis.last, axis.knobs[0]) == (40, (11, "lr × 8"))


def boards() -> list[Board]:
    events, shared, out = story(), moments(story()), []
    for view in (Losses(), SyncCalendar(), Workers(), Knobs(), CommunicationBudget()):
        view.moments = shared
        view.replay(events)
        out.append(view.board())
    return out


def test_every_picture_over_steps_has_the_same_range_margins_and_marks() -> None:
    over = [p for board in boards() for p in board.pictures if getattr(p, "time", None)]
    assert len(over) == 6
    specs = [p.spec() for p in over]
    assert len({(s["x"]["low"], s["x"]["high"], str(s["x"]["ticks"])) for s in specs}) == 1
    assert len({str({k: v for k, v in s["time"].items() if k != "syncs"}) for s in specs}) == 1
    figures = [p.plotly() for p in over]
    assert {(f["layout"]["margin"]["l"], f["layout"]["margin"]["r"]) for f in figures} == {(LEFT, RIGHT)}
    for figure in figures:
        shapes = figure["layout"]["shapes"]
        assert [s["x0"] for s in shapes if s["type"] == "line" and s["line"].get("dash") == "dash"] == [11, 21, 31]
        assert [(s["x0"], s["x1"]) for s in shapes if s["type"] == "rect"] == [(24, 30)]
        (strokes,) = (s["path"] for s in shapes if s["type"] == "path")
        assert re.findall(r"M(\d+),", strokes) == [str(4 * k) for k in range(1, 11)]
    drawn = [re.findall(rf'd="M([\d.]+),\d+V\d+" stroke="{KNOB}"', p.svg()) for p in over]
    assert drawn == [drawn[0]] * 6
    assert len(drawn[0]) == 3
    for board in boards():
        ET.fromstring(board.svg())


def test_strokes_stay_in_their_own_picture_of_a_board() -> None:
    """Their heights are parts of a picture; on a board each picture is a part."""
    (board,) = (b for b in boards() if b.title == "What does it send?")
    layout = board.plotly()["layout"]
    paths = [s["path"] for s in layout["shapes"] if s["type"] == "path"]
    assert len(paths) == 2
    domains = [layout[axis]["domain"] for axis in ("yaxis", "yaxis2")]
    for path, (low, high) in zip(paths, domains, strict=True):
        heights = [float(y) for y in re.findall(r",([\d.]+)", path)]
        assert low - 1e-4 <= min(heights) < max(heights) < low + 0.05 * (high - low) + 1e-4


def test_what_is_not_over_steps_stays_as_it_is() -> None:
    by_bytes = Lines("?", "bytes", "loss", [Series("a", [1, 2], [1, 2])])
    log = Lines("?", "local step", "loss", [Series("a", [1, 2], [1, 2])], log_x=True)
    shared = moments(story())
    for picture in (by_bytes, log):
        assert shared.over(picture, compact=True) is picture
    step = Lines("?", "local step", "loss", [Series("a", [1, 2], [1, 2])])
    assert Moments().over(step, compact=True) is step  # before anything has begun


def test_live_it_is_low_and_at_rest_it_is_whole() -> None:
    """Among others a view leads with its first picture; when the run is over all are there."""
    budget, shared = CommunicationBudget(), moments(story())
    budget.moments = shared
    budget.add(*story())
    assert [p.title for p in budget.board().pictures] == ["How many bytes were sent?"]
    assert budget.board().pictures[0].height(960) < 150
    assert next(c.name for c in budget._controls()) == "detail"
    budget.choose("detail", "all pictures")
    assert len(budget.board().pictures) == 4
    budget.choose("detail", "the answer")
    budget.rest()
    assert len(budget.board().pictures) == 4
    assert budget.board().pictures[0].height(960) > 200
    assert [c.name for c in budget._controls()] == ["network", "budget"]


def test_the_canvas_is_sent_the_syncs_once() -> None:
    """They are a column that grows, shared by all pictures, like the points of a line."""
    view, shared = Drift(), Moments()
    losses = Losses()
    losses.moments = view.moments = shared
    canvas, sent = Canvas(), list[int]()
    canvas.send = lambda message, buffers=(): sent.append(sum(map(len, buffers)))  # type: ignore[method-assign]
    events = story()
    shared.add(*events[:60])
    losses.add(*events[:60])
    canvas.draw(losses.board())
    number = canvas.panels[0]["time"]["syncs"]
    assert (
        next(c for c in canvas.columns.values() if c.number == number).sent().tolist()
        == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40][: len(shared.runs[""].syncs)]
    )
    canvas.draw(losses.board())
    assert sent[1:] == []


def test_the_line_says_what_is_left_and_what_was_sent_of_what() -> None:
    run = start(recipe(), keep=False, paused=True)
    status = Status(run)
    status.add(Started(1, {}, 1, [1], 30, None, 1.0, {}), Stepped(2, [1.0, 2.0], 1.0, 0.1))
    status.add(Sent(2, "all_reduce", "params", (0, 1), {"all": 500}))
    assert status.beyond() == ["4 steps left"]
    status.foreseen, status.views = (
        4000,
        [CommunicationBudget(budget="10 kB"), CommunicationBudget(budget="1 h"), Losses()],
    )
    assert status.beyond() == ["4 steps left", "25 % of 4 kB foreseen", "10 % of the budget of 10 kB"]
    assert '<progress value="2" max="6" aria-label="steps of' in status.html()
    assert status.text().count("left") == 0  # what is kept at rest says it in the words of before


def test_what_is_foreseen_is_what_the_run_sends() -> None:
    run = start(recipe({"name": "des_loc", "sync_every": {"params": 2, "exp_avg": 3}}), keep=False)
    run.wait(60)
    status = Status.of(run)
    status.foresee().join(60)
    assert status.foreseen == status.progress.bytes_sent > 0
