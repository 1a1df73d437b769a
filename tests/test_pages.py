"""The canvas's ES module on a bare page in a real browser: what it holds, what it draws, what it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Bare, needs_chromium
from test_views import TABLES, routing
from test_widgets import PICTURES

from widgets import Board, Growing, Lines, Matrix, RoutingStability, Series
from widgets.canvas import Canvas

pytestmark = [needs_chromium, pytest.mark.processes]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def bare(browser: Any) -> Iterator[Any]:
    """Makes pages, and closes them."""
    made: list[Bare] = []

    def make(canvas: Canvas, **options: Any) -> Bare:
        made.append(Bare(browser, canvas, **options))
        return made[-1]

    yield make
    for page in made:
        page.page.close()


PLAIN = Board(
    "Plain",
    [
        Matrix(
            "Two?",
            "step",
            ["a", "b"],
            [1, 2],
            [[0, 1], [1, None]],
            "u",
            colours=("#ff0000", "#00ff00"),
            hover="{row}/{column}: {value}\nwords",
        ),
        Lines("One?", "x", "y", [Series("up", range(11), range(11))], hover="{name} {y} at {x}"),
    ],
)


class Growth:
    """Lines that grow, as a view has them."""

    def __init__(self, num_lines: int = 4):
        self.x, self.lines = Growing(), [Growing() for _ in range(num_lines)]
        self.rng = np.random.default_rng(0)

    def more(self, num: int) -> None:
        for _ in range(num):
            self.x.append(len(self.x) + 1)
            for k, line in enumerate(self.lines):
                line.append(None if len(line) % 97 == 5 else 3 + k + self.rng.normal(0, 0.1))

    def board(self) -> Board:
        return Board(
            "Grows", [Lines("Up?", "step", "y", [Series(f"line {k}", self.x, y) for k, y in enumerate(self.lines)])]
        )


HELD = """() => {
  const out = {};
  for (const s of model.held.panels[0].series) out[s.name] = [...model.held.column(s.y)].map((v) => Number.isNaN(v) ? null : v);
  return out;
}"""


def test_every_kind_of_picture_is_drawn(bare: Any) -> None:
    """Each gets ink and a label; cells have their colours; the pointer finds points; what is left is cleaned up."""
    canvas = Canvas()
    page = bare(canvas)
    assert "Waiting for the first event" in page.js("document.body.textContent")
    others = Board("Others", [*PICTURES.values(), *TABLES.values()])
    for board in (others, RoutingStability.of(routing()).board()):
        canvas.draw(board)
        page.settle()
        assert page.js("canvases().map((c) => c.ariaLabel)") == [p.text() for p in board.pictures]
        assert page.js("canvases().every((c) => c.getAttribute('role') === 'img')")
        assert min(page.js("canvases().map(inked)")) > 100
    wide, *thirds = page.js("canvases().map((c) => c.clientWidth)")
    assert wide > 950
    assert max(thirds[:6]) < 330 < min(thirds[6:])
    canvas.draw(PLAIN)
    page.settle()
    red, green = (page.js("(c) => count(canvases()[0], c)", colour) for colour in ([255, 0, 0], [0, 255, 0]))
    assert green == pytest.approx(2 * red, rel=0.1)  # two cells of four, one, and one that is not known
    assert red > 10_000
    assert page.js("point(0, 400, 60)") == ["a/1: 0\nwords"]
    page.js("canvases()[0].dispatchEvent(new PointerEvent('pointerleave'))")
    (line,) = page.js("point(1, 80, 100)")
    assert re.fullmatch(r"up [01] at [01]", line)
    page.js("canvases()[1].dispatchEvent(new PointerEvent('pointerleave'))")
    assert page.js("point(0, 2, 2)") == []
    page.js("document.body.firstElementChild.style.width = '420px'")
    page.settle()
    assert max(page.js("canvases().map((c) => c.clientWidth)")) <= 420
    page.js("(forget(), leave.forEach((f) => f()))")
    assert page.js("[canvases().length, Object.values(model.handlers).flat().length]") == [0, 0]
