"""In no view, at no width, are words cut off, or written over each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.browser import headless, needs_chromium
from tests.support.pictures import TABLES, every_view
from widgets import Bars, Board, Lines, Question, Series
from widgets.matrices import Matrix
from widgets.pages import page as make_page
from widgets.pictures import Note, bundle

# Writes down, for each canvas, the words that were drawn on it last, and the box of each in pixels of the page.
WATCH = """
const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.fillText = function (words, x, y) {
  const [m, t] = [this.measureText(words), this.getTransform()];
  const corners = [[x - m.actualBoundingBoxLeft, y - m.actualBoundingBoxAscent], [x + m.actualBoundingBoxRight, y + m.actualBoundingBoxDescent]];
  const [xs, ys] = [corners.map(([a, b]) => t.a * a + t.c * b + t.e), corners.map(([a, b]) => t.b * a + t.d * b + t.f)];
  (this.canvas.said ||= []).push([words, Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)]);
  return fillText.call(this, words, x, y);
};
CanvasRenderingContext2D.prototype.clearRect = function (...box) {
  this.canvas.said = [];
  return clearRect.apply(this, box);
};
"""
WRONG = """() => [...document.querySelectorAll("canvas")].flatMap((c) => {
  const said = c.said || [];
  const cut = said.filter(([, l, t, r, b]) => l < -0.5 || t < -0.5 || r > c.clientWidth + 0.5 || b > c.clientHeight + 0.5).map(([words]) => words);
  const over = said.flatMap(([one, l, t, r, b], i) => said.slice(i + 1)
    .filter(([, l2, t2, r2, b2]) => Math.min(r, r2) - Math.max(l, l2) > 1.5 && Math.min(b, b2) - Math.max(t, t2) > 1.5)
    .map(([other]) => `${one} | ${other}`));
  return cut.length + over.length || !said.length ? [[c.ariaLabel.split("\\n")[0], cut, over]] : [];
})"""


SEGMENTS = ["1-4", "5-8", "9-16", "17-32", "33-64"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of every view, of pictures that stand alone, and of a question whose bars have long names."""
    places = {
        f"K = {k}": Bars("Sent?", "bytes", ["a", "a method that has a long name"], [k, 3 * k], ["a", "b"])
        for k in (1, 2)
    }
    question = Question("How many bytes does it send?", "K", places, "K = 1", 1.0, "B", prediction=3)
    lines = Lines("?", "messages of the author; bands: 95 %, bootstrap", "y", [Series("a", [1e6, 2e6], [1, 2])])
    three = Board(
        "Three", [Bars("One?", "share", ["reverse the vector of what was asked for"], [0.9], ["92.7 %"]), lines, lines]
    )
    segments = Matrix(
        "Who?", "ranks", ["client 0, rank 64"] * 2, SEGMENTS, [[1] * len(SEGMENTS)] * 2, "held", bar=False, wide=False
    )
    bundles = [view.bundle() for view in every_view()]
    bundles.append(bundle(Board("Beside others", [segments, lines, lines])))
    bundles += [question.bundle(), *map(bundle, [*TABLES.values(), three, Note("Long?", "words " * 300)])]
    nb = nbformat.v4.new_notebook()
    nb.cells = [
        nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)]) for data in bundles
    ]
    place = tmp_path_factory.mktemp("fit")
    nbformat.write(nb, place / "all.ipynb")
    make_page(place / "all.ipynb", place / "all.html", single_file=True)
    with headless() as chromium:
        page = chromium.new_page()
        page.add_init_script(WATCH)
        page.goto(Path(place / "all.html").as_uri())
        yield page


@needs_chromium
@pytest.mark.processes
@pytest.mark.parametrize("width", [380, 600, 760, 1000, 1400])
def test_words_fit(shown: Any, width: int) -> None:
    shown.set_viewport_size({"width": width, "height": 900})
    shown.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"
    )
    assert shown.evaluate("() => document.querySelectorAll('canvas').length") > 60
    assert shown.evaluate(WRONG) == []


@needs_chromium
@pytest.mark.processes
@pytest.mark.parametrize("width", [600, 1000, 1400, 1900])
def test_columns_are_named_evenly(shown: Any, width: int) -> None:
    """All of them, or one of so many: none is left out because it happens to be long."""
    shown.set_viewport_size({"width": width, "height": 900})
    shown.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"
    )
    (said,) = shown.evaluate(
        "() => [...document.querySelectorAll('canvas')].map((c) => (c.said || []).map(([words]) => words)).filter((words) => words.includes('1-4'))"
    )
    named = [k for k, name in enumerate(SEGMENTS) if name in said]
    assert named in ([0, 1, 2, 3, 4], [0, 2, 4], [0, 3], [0, 4], [0])
