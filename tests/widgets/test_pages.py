"""The canvas's ES module on a bare page in a real browser: what it holds, what it draws, what it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widgets
from tests.support.browser import Bare, needs_chromium
from tests.support.pictures import PICTURES, TABLES, routing
from widgets import Board, Growing, Lines, Matrix, RoutingStability, Series
from widgets.axes import Axis, short
from widgets.canvas import Canvas
from widgets.view import WHOLE

pytestmark = [needs_chromium, pytest.mark.processes]


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
  const { held } = document.querySelector(".isthmus-board");
  const numbers = (column) => [...held.column(column)].map((v) => (Number.isNaN(v) ? null : v));
  return held.panels[0].series.map((s) => [numbers(s.x), numbers(s.y)]);
}"""


def held(page: Bare) -> list[Any]:
    """The lines of the first panel, as the page holds them."""
    return [[np.array(numbers, dtype=float) for numbers in line] for line in page.js(HELD)]


def holds(page: Bare, growth: Growth) -> bool:
    return all(
        np.array_equal(x, growth.x.values) and np.allclose(y, line.values, rtol=1e-6, equal_nan=True)
        for (x, y), line in zip(held(page), growth.lines, strict=True)
    )


def test_every_kind_of_picture_is_drawn(bare: Any) -> None:
    """Each gets ink and a label; cells have their colours; the pointer finds points; what is left is cleaned up."""
    canvas = Canvas()
    page = bare(canvas)
    assert "Waiting for the first event" in page.js("document.body.textContent")
    others = Board("Others", [*PICTURES.values(), *TABLES.values()])
    routed = RoutingStability.of(routing())
    routed.choose("detail", WHOLE)
    for board in (others, routed.board()):
        canvas.draw(board)
        page.settle()
        assert page.js("canvases().map((c) => c.ariaLabel)") == [p.text() for p in board.pictures]
        assert page.js("canvases().every((c) => c.getAttribute('role') === 'img')")
        assert min(page.js("canvases().map(inked)")) > 100
    first, wide, *others_below = page.js("canvases().map((c) => c.clientWidth)")
    assert min(first, wide) > 950
    assert max(others_below[:3]) < 330 < 480 < min(others_below[3:]) < 500
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


def test_points_are_appended(bare: Any) -> None:
    """The page holds every point at any time, gaps too, though it is sent only new ones."""
    canvas, growth = Canvas(), Growth()
    page = bare(canvas)
    for num in (1, 12, 300, 1, 9700, 50):
        growth.more(num)
        canvas.draw(growth.board())
        assert holds(page, growth)
    page.settle()
    assert page.bytes[-1] < 4_000 < 40_000 < page.bytes[-2]
    assert page.js("canvases()[0].ariaLabel") == growth.board().pictures[0].text()
    canvas.draw(growth.board())
    assert len(page.bytes) == 6


def test_it_keeps_up(bare: Any) -> None:
    """Hundreds of messages between two frames: all points are there, and drawn with the next frame, once."""
    canvas, growth = Canvas(), Growth()
    growth.more(10_000)
    page = bare(canvas)
    canvas.draw(growth.board())
    page.settle()
    page.js(
        "(() => { const panel = canvases()[0], of = panel.getContext.bind(panel); window.drawn = 0; panel.getContext = (kind) => (drawn++, of(kind)); })()"
    )
    page.held = True
    for _ in range(300):
        growth.more(2)
        canvas.draw(growth.board())
    page.at_once()
    page.settle()
    assert holds(page, growth)
    assert page.js("drawn") == 1
    assert page.js("canvases()[0].ariaLabel") == growth.board().pictures[0].text()


def test_a_spike_of_one_point_is_seen(bare: Any) -> None:
    """Of 20 000 points in some 770 columns of pixels the extremes are drawn."""
    x, y = Growing(range(20_000)), Growing(1.0 if k == 12_345 else 0.0 for k in range(20_000))
    canvas = Canvas()
    page = bare(canvas)
    canvas.draw(Board("?", [Lines("Spike?", "x", "y", [Series("a", x, y, colour=0)])]))
    page.settle()
    (words,) = page.js("point(0, 62 + 768 * 0.615, 50)")
    assert words == "a: 1 at 12.35k"
    page.js("canvases()[0].dispatchEvent(new PointerEvent('pointerleave'))")
    page.settle()
    near_top = page.js(
        "(() => { const c = canvases()[0], d = c.getContext('2d').getImageData(0, 60, c.width, 20).data; let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] === 15 && d[i + 1] === 144 && d[i + 2] === 248; return n; })()"
    )
    assert near_top > 10


def test_a_page_loaded_in_mid_run_has_everything_and_goes_on(bare: Any) -> None:
    canvas, growth = Canvas(), Growth()
    old = bare(canvas)
    growth.more(500)
    canvas.draw(growth.board())
    old.page.close()
    page = bare(canvas)
    assert holds(page, growth)
    page.settle()
    assert page.js("inked(canvases()[0])") > 1000
    growth.more(20)
    canvas.draw(growth.board())
    assert holds(page, growth)
    assert page.answer() == []


def test_a_message_that_was_missed_is_made_good(bare: Any) -> None:
    """The page sees it by the count, asks once, and is complete; what it gets twice does no harm."""
    canvas, growth = Canvas(), Growth()
    page = bare(canvas)
    growth.more(10)
    canvas.draw(growth.board())
    page.lost = True
    growth.more(10)
    canvas.draw(growth.board())
    page.lost = False
    for _ in range(2):
        growth.more(10)
        canvas.draw(growth.board())
    assert len(held(page)[0][0]) == 10
    assert page.answer() == [{"ask": "board"}]
    assert holds(page, growth)
    page.js("take({ seq: 2, num: 1, panels: [[0, { title: 'old' }]], columns: [[1, 0]] }, [''])")
    growth.more(3)
    canvas.draw(growth.board())
    assert holds(page, growth)
    assert page.answer() == []


def test_views_come_late_go_and_are_hidden(bare: Any) -> None:
    """Two views of one model draw the same; one that left draws no more; a hidden one is complete when it is seen again."""
    canvas, growth = Canvas(), Growth()
    page = bare(canvas)
    growth.more(200)
    canvas.draw(growth.board())
    page.js("look()")
    page.settle()
    one, two = page.js("canvases().map(inked)")
    assert one == two > 1000
    page.js("leave[0]()")
    page.js("document.body.lastElementChild.style.display = 'none'")
    growth.more(300)
    canvas.draw(growth.board())
    page.settle()
    assert page.js("canvases().length") == 1
    assert holds(page, growth)
    page.js("document.body.lastElementChild.style.display = ''")
    page.settle()
    assert page.js("canvases()[0].ariaLabel") == growth.board().pictures[0].text()
    fresh = bare(canvas)
    fresh.settle()
    assert page.js("inked(canvases()[0])") == fresh.js("inked(canvases()[0])")


def test_pictures_change_in_number_and_kind(bare: Any) -> None:
    canvas, growth = Canvas(), Growth()
    page = bare(canvas)
    growth.more(20)
    for board in (growth.board(), PLAIN, Board("None", []), growth.board()):
        canvas.draw(board)
        page.settle()
        assert page.js("document.querySelector('h3').textContent") == board.title
        assert page.js("canvases().map((c) => c.ariaLabel)") == [p.text() for p in board.pictures]
    assert holds(page, growth)
    assert page.js("document.querySelector('.isthmus-board').held.columns.size") == 5


def test_controls(bare: Any) -> None:
    """A menu and a line to type in: what is chosen is sent, what somebody types is left alone, an error is shown."""
    chosen = list[tuple[str, str]]()

    def choose(name: str, value: str) -> None:
        chosen.append((name, value))
        if value == "lots":
            raise ValueError("lots is no budget")

    canvas = Canvas(choose)
    page = bare(canvas)
    controls = [
        {"name": "network", "label": "network", "value": "b", "options": ["a", "b"], "hint": ""},
        {"name": "budget", "label": "budget", "value": "", "options": [], "hint": "20 MB"},
    ]
    canvas.draw(PLAIN, controls=controls)
    page.settle()
    menu, field = page.page.get_by_label("network"), page.page.get_by_label("budget")
    assert menu.input_value() == "b"
    menu.select_option("a")
    field.focus()
    page.page.keyboard.type("lo")
    canvas.draw(PLAIN, controls=[controls[0] | {"value": "a"}, controls[1]])
    page.settle()
    page.page.keyboard.type("ts\n")
    page.answer()
    assert chosen == [("network", "a"), ("budget", "lots")]
    assert page.page.get_by_role("status").inner_text() == "lots is no budget"
    assert field.input_value() == "lots"
    menu.focus()
    page.page.keyboard.press("ArrowDown")
    page.answer()
    assert chosen[-1] == ("network", "b")


NOTEBOOK = """{ context: { model: { cells: [
  {}, { outputs: window.outputs = {
    all: [
      { data: { "text/plain": "words" } },
      { data: { "application/vnd.jupyter.widget-view+json": { model_id: "MODEL" } } },
      { data: { "application/vnd.jupyter.widget-view+json": { model_id: "another" } } } ],
    get length() { return this.all.length; },
    get(k) { return this.all[k]; },
    set(k, output) { this.all[k] = output; },
  } } ] } } }"""


@pytest.mark.parametrize("manager", [NOTEBOOK, "undefined"])
def test_a_page_that_was_loaded_again_keeps_the_picture_itself(bare: Any, manager: str) -> None:
    """It asks for it and puts it in place of the canvas in its notebook; where it knows no notebook, it says what to do."""
    canvas = Canvas()
    page = bare(canvas, manager=manager.replace("MODEL", canvas.model_id))
    canvas.forms = {"text/plain": "at rest", "image/svg+xml": "<svg/>"}
    canvas.draw(PLAIN, at_rest=True)
    page.page.wait_for_function("model.sent.length", timeout=10_000)
    assert page.answer() == [{"ask": "rest"}]
    if manager == "undefined":
        assert "show the view in a new cell" in page.page.get_by_role("status").inner_text()
        return
    words, picture, other = page.js("outputs.all")
    assert words["data"] == {"text/plain": "words"}
    assert picture == {"output_type": "display_data", "data": canvas.forms, "metadata": {}}
    assert "another" in str(other)


def test_it_takes_the_colours_of_the_theme(bare: Any) -> None:
    canvas = Canvas()
    page = bare(canvas, style="--jp-content-font-color1: rgb(1, 2, 3)")
    canvas.draw(PLAIN)
    page.settle()
    assert page.js("getComputedStyle(document.querySelector('.isthmus-board')).color") == "rgb(1, 2, 3)"
    page.js("document.body.setAttribute('style', '--jp-content-font-color1: rgb(200, 2, 3)')")
    page.settle()
    assert page.js("getComputedStyle(document.querySelector('.isthmus-board')).color") == "rgb(200, 2, 3)"


NUMBERS = [
    0.0,
    1.0,
    9999.0,
    9999.4,
    9999.6,
    10_000.0,
    12_345.0,
    1536.0,
    -48_000.0,
    999_960.0,
    1e6,
    3.2e9,
    7.5e14,
    0.1,
    2.5e-4,
    1e-4,
    9.9999e-5,
]
NUMBERS += [3.14159265, -0.001234567, 1.25e-7, 6e-12, 2**0.5 * 1e3]


def test_a_number_under_the_pointer_is_that_of_a_tick(browser: Any) -> None:
    """One rule in Python and in the page: four digits, thousands from 10 000 on."""
    script = (Path(widgets.__file__).parent / "view.js").read_text(encoding="utf-8")
    (source,) = re.findall(r"^function short\(.*?^\}", script, flags=re.M | re.S)
    page = browser.new_page()
    said = page.evaluate(f"(numbers) => {{ {source}; return numbers.map((v) => [short(v), short(v, 'B')]); }}", NUMBERS)
    page.close()
    assert [number for number, _ in said] == [short(v) for v in NUMBERS]
    of_bytes = [(words, v) for (_, words), v in zip(said, NUMBERS, strict=True) if abs(v) >= 1 or v == 0]
    assert [words for words, _ in of_bytes] == [short(v, "B") for _, v in of_bytes]
    assert [short(v, "B") for v in (0, 999, 1000, 1.5e9, 2e13)] == ["0 B", "999 B", "1 kB", "1.5 GB", "20 TB"]
    assert [short(v) for v in (1536.0, 9999.6, 12_345.0, 1e-7)] == ["1536", "10k", "12.35k", "1e-7"]


AXES = [
    Axis("x", 0.0, 97.0),
    Axis("x", -3.2, 3.9),
    Axis("loss", 2.31, 2.38),
    Axis("step", 3.0, 9.0, whole=True),
    Axis("x", 0.0, 5.0, log=True),
    Axis("x", 1.1, 1.9, log=True),
    Axis("bytes", 0.0, 2.4e9),
    Axis("bytes", 1.2341e9, 1.2349e9),
    Axis("bytes", 2.2, 9.1, log=True),
    Axis("step", 12_340.0, 12_348.0, whole=True),
    Axis("loss", 2.3102, 2.3109),
]


def test_ticks_of_a_closer_look_are_those_of_axes(browser: Any) -> None:
    """One rule in Python and in the page."""
    script = (Path(widgets.__file__).parent / "view.js").read_text(encoding="utf-8")
    source = "\n".join(re.findall(r"^function (?:short|at|ticks|said)\(.*?^\}", script, flags=re.M | re.S))
    page = browser.new_page()
    found = page.evaluate(
        f"(axes) => {{ {source}; return axes.map((a) => [ticks(a), said(a).ticks]); }}", [a.spec() for a in AXES]
    )
    page.close()
    for axis, (ticks, said) in zip(AXES, found, strict=True):
        assert ticks == pytest.approx(axis.ticks(), abs=1e-9), axis
        assert [words for _, words in said] == [words for _, words in axis.said()], axis
        assert len({words for _, words in said}) == len(said), axis
    assert [words for _, words in Axis("nats", 2.264, 2.2776).said()] == [
        "2.265",
        "2.2675",
        "2.27",
        "2.2725",
        "2.275",
        "2.2775",
    ]


DRAG = """async ([k, from, to]) => {
  const c = canvases()[k], box = c.getBoundingClientRect();
  const at = (kind, [x, y]) => c.dispatchEvent(new PointerEvent(kind, { clientX: box.left + x, clientY: box.top + y, button: 0 }));
  at("pointerdown", from); at("pointermove", to); at("pointerup", to);
  await settle();
}"""


def test_a_closer_look(bare: Any) -> None:
    """Dragging over a part shows it larger; what lies outside is not found; a double click brings all of it back."""
    canvas = Canvas()
    page = bare(canvas)
    canvas.draw(Board("?", [Lines("Up?", "x", "y", [Series("a", range(101), range(101))], hover="{x}")]))
    page.settle()
    whole = page.js("pixels(canvases()[0]).join()")
    middle = [62 + 768 / 2, 150]
    (before,) = page.js("([x, y]) => point(0, x, y)", middle)
    page.js(DRAG, [0, [62 + 768 * 0.7, 150], [62 + 768 * 0.9, 152]])
    (after,) = page.js("([x, y]) => point(0, x, y)", middle)
    assert 35 < float(before) < 75 < float(after) < 90
    page.js("canvases()[0].dispatchEvent(new MouseEvent('dblclick'))")
    page.js("canvases()[0].dispatchEvent(new PointerEvent('pointerleave'))")
    page.settle()
    assert page.js("pixels(canvases()[0]).join()") == whole
