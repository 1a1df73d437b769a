"""A part of a picture on demand: by pointer, by keys, and one part for all pictures over one time axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.runs.growing import Growing
from tests.support import axe
from tests.support.browser import Bare, needs_chromium
from widgets import Board, Calendar, Lines, Marks, Series
from widgets.canvas import Canvas
from widgets.time_axis import TimeAxis

pytestmark = [needs_chromium, pytest.mark.processes]
PICTURE = Board(
    "?",
    [
        Lines("Sent?", "local step", "bytes", [Series("a", range(101), [1e7 * k for k in range(101)])]),
        Lines("Low?", "local step", "loss", [Series("a", range(101), [5 - k / 50 for k in range(101)])]),
    ],
)
SEEN = """(k) => {
  const it = document.querySelectorAll(".isthmus-panel")[k], { axes, box } = it.picture;
  const of = (axis) => axis && [axis.low, axis.high];
  return { x: of(axes.x), y: of(axes.y), words: (axes.y || axes.x).ticks.map(([, w]) => w), all: it.querySelector("button").hidden, box };
}"""
COLOUR = [0x0F, 0x90, 0xF8]


@pytest.fixture
def page(browser: Any) -> Iterator[Bare]:
    canvas = Canvas()
    made = Bare(browser, canvas)
    canvas.draw(PICTURE)
    made.settle()
    yield made
    made.page.close()


def drag(page: Bare, k: int, one: tuple[float, float], other: tuple[float, float]) -> None:
    """Over parts of a picture's box, from its left and from its top."""
    box = page.js(SEEN, k)["box"]
    left, top = page.js("(k) => { const b = canvases()[k].getBoundingClientRect(); return [b.left, b.top]; }", k)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + box["left"] + x * (box["right"] - box["left"]),
            top + box["top"] + y * (box["bottom"] - box["top"]),
        )

    mouse = page.page.mouse
    mouse.move(*place(*one))
    mouse.down()
    mouse.move(*place(*other), steps=3)
    mouse.up()
    page.settle()


def test_a_part_by_pointer_and_all_of_it_again(page: Bare) -> None:
    """Drawn over a rectangle: both axes, with finer ticks in bytes. The other picture stays; a double click brings back all."""
    before, other = page.js(SEEN, 0), page.js(SEEN, 1)
    drag(page, 0, (0.4, 0.4), (0.5, 0.6))
    now = page.js(SEEN, 0)
    wide, tall = before["x"][1] - before["x"][0], before["y"][1] - before["y"][0]
    assert now["x"] == pytest.approx([before["x"][0] + 0.4 * wide, before["x"][0] + 0.5 * wide], abs=0.01 * wide)
    assert now["y"] == pytest.approx([before["y"][1] - 0.6 * tall, before["y"][1] - 0.4 * tall], abs=0.02 * tall)
    assert len(now["words"]) >= 4
    assert all(words.endswith(" MB") for words in now["words"])
    assert not now["all"]
    assert page.js(SEEN, 1) == other
    page.page.locator("canvas").first.dblclick(position={"x": 200, "y": 100})
    page.settle()
    assert page.js(SEEN, 0) == before


def test_along_one_axis_only(page: Bare) -> None:
    """A click, or a tremble, is no zoom; the button shows all of it."""
    before = page.js(SEEN, 0)
    drag(page, 0, (0.2, 0.5), (0.6, 0.51))
    now = page.js(SEEN, 0)
    assert now["y"] == before["y"]
    assert now["x"] != before["x"]
    button = page.page.get_by_role("button", name="all of it")
    assert button.count() == 1
    button.click()
    page.settle()
    drag(page, 0, (0.5, 0.5), (0.503, 0.51))
    assert page.js(SEEN, 0) == before


def test_by_keys(page: Bare) -> None:
    """Plus and minus, arrows along the axis and never beyond it, with Shift the other axis, Escape for all of it; what changes
    nothing is left to the page, which may go to the next cell.
    """
    before = page.js(SEEN, 0)
    page.page.keyboard.press("Tab")
    page.js("window.left = []; document.addEventListener('keydown', (e) => left.push(e.key), true)")

    def press(key: str) -> dict[str, Any]:
        page.page.keyboard.press(key)
        page.settle()
        return dict(page.js(SEEN, 0))

    low, high = before["x"]
    wide = high - low
    assert press("ArrowRight") == press("Escape") == press("-") == before
    assert page.js("left.splice(0)") == ["ArrowRight", "Escape", "-"]
    assert press("+")["x"] == pytest.approx([low + wide / 4, high - wide / 4])
    assert press("ArrowRight")["x"] == pytest.approx([low + 3 / 8 * wide, high - wide / 8])
    assert press("ArrowRight")["x"][1] == pytest.approx(high)
    assert press("ArrowRight")["x"] == pytest.approx([high - wide / 2, high])
    now = press("Shift+ArrowUp")["y"]
    low, high = before["y"]
    assert now == pytest.approx([low + (high - low) / 4, high - (high - low) / 4])
    assert press("ArrowDown")["y"] == pytest.approx([low + (high - low) / 8, high - (high - low) * 3 / 8])
    assert press("Control+-") != before
    assert page.js("left.splice(0)") == ["Shift", "Control", "-"]
    assert press("Escape") == before
    for _ in range(40):
        press("+")
    assert page.js(SEEN, 0)["x"][1] - page.js(SEEN, 0)["x"][0] >= 2  # steps are whole


def test_nothing_of_a_part_is_drawn_beside_its_box(page: Bare) -> None:
    """The line goes on to the left and to the right of what is shown; its ink does not."""
    drag(page, 1, (0.4, 0.2), (0.5, 0.8))
    outside = """([k, colour]) => {
      const [c, { box }] = [canvases()[k], document.querySelectorAll(".isthmus-panel")[k].picture];
      const dots = c.width / c.clientWidth;
      const { data } = c.getContext("2d").getImageData(0, (box.top + 3) * dots, (box.left - 2) * dots, (box.bottom - box.top - 6) * dots);
      let n = 0;
      for (let i = 0; i < data.length; i += 4) if (colour.every((v, j) => data[i + j] === v) && data[i + 3] === 255) n++;
      return n;
    }"""
    assert page.js(outside, [1, COLOUR]) == 0
    assert page.js("([k, c]) => count(canvases()[k], c)", [1, COLOUR]) > 20


def test_a_part_stays_where_it_is_while_a_run_goes_on(page: Bare) -> None:
    """New points make the axis longer; with another axis there is all of it."""
    drag(page, 0, (0.4, 0.5), (0.6, 0.5))
    now = page.js(SEEN, 0)["x"]
    longer = Lines("Sent?", "local step", "bytes", [Series("a", range(201), [1e7 * k for k in range(201)])])
    page.canvas.draw(Board("?", [longer, PICTURE.pictures[1]]))
    page.settle()
    assert page.js(SEEN, 0)["x"] == pytest.approx(now)
    by_bytes = Lines("Sent?", "tokens", "bytes", [Series("a", range(201), [1e7 * k for k in range(201)])])
    page.canvas.draw(Board("?", [by_bytes, PICTURE.pictures[1]]))
    page.settle()
    assert page.js(SEEN, 0)["x"][1] > 200


def test_one_time_axis_one_part(browser: Any) -> None:
    """In boards of one cell: what one picture shows of the steps is shown by all that have this axis, a calendar too, and one that
    comes later; their other axes stay. axe-core finds nothing serious.
    """
    time = TimeAxis(100, Growing(), [(40, "lr × 2")])
    lines = [Lines("?", "local step", "loss", [Series("a", range(101), range(101))], time=time) for _ in range(2)]
    calendar = Calendar("?", "local step", ["params"], [Marks(0, "sync", [10, 20, 60])], 100, time=time)
    alone = Lines("?", "local step", "loss", [Series("a", range(101), range(101))])
    canvas = Canvas()
    page = Bare(browser, canvas)
    canvas.draw(Board("?", [lines[0], calendar, alone]))
    page.js("look()")  # a second board, of another view for all that the page knows
    page.settle()
    before, whole = page.js(SEEN, 2), page.js(SEEN, 1)["x"]
    drag(page, 1, (0.4, 0.5), (0.6, 0.5))
    shown = [page.js(SEEN, k) for k in range(6)]
    part = shown[1]["x"]
    assert part[0] > 35
    assert [s["x"] for s in shown] == [part, part, before["x"]] * 2
    assert shown[0]["y"] == before["y"]
    canvas.draw(Board("?", [lines[0], calendar, alone, lines[1]]))
    page.settle()
    assert page.js(SEEN, 3)["x"] == part
    assert axe.serious(page.page, ".isthmus-board") == []
    page.page.locator("canvas").first.focus()
    page.page.keyboard.press("Escape")
    page.settle()
    assert [page.js(SEEN, k)["x"] for k in range(8)] == [whole, whole, before["x"], whole] * 2
    page.page.close()
