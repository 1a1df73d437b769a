"""Front ends other than JupyterLab: what they lay around a view that is live, and what they leave of a notebook at rest."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anywidget
import nbformat
import pytest
from nbconvert import HTMLExporter

from lab.runs.folder import RunFolder
from tests.support import ROOT
from tests.support import pictures as made
from tests.support.browser import Bare, needs_chromium
from tests.support.contrast import WORDS, contrast
from widgets import Bars, Board, Lines, Losses, Series
from widgets.canvas import Canvas
from widgets.pictures import bundle
from widgets.view import UNDRAWN, Screen

BINDER = ROOT / ".binder"


# What stands around a widget: (of the page, of the element that the front end puts it into).
LABELS = "--jp-content-font-color1: black; --jp-content-font-color2: rgba(0, 0, 0, 0.7); --jp-layout-color0: white"
AROUND = {
    "a page": ("", ""),
    "a dark page": ("background: #111; color: #eee", ""),
    "VS Code, dark": (f"background: #1f1f1f; color: #ccc; {LABELS}", "background: white"),
    "VS Code, dark, without the labels of ipywidgets": ("background: #1f1f1f; color: #ccc", "background: white"),
    "Colab, dark": ("background: #383838; color: #d5d5d5", ""),
    "names of a light theme on a dark page": (f"background: #1e1e1e; color: #ccc; {LABELS}", ""),
}
SEEN = """() => {
  const hex = (colour) => "#" + colour.match(/[\\d.]+/g).slice(0, 3).map((v) => Math.round(v).toString(16).padStart(2, "0")).join("");
  const of = (found, name) => hex(getComputedStyle(document.querySelector(found))[name]);
  return { ink: of(".isthmus-answer", "color"), select: [of("select", "color"), of("select", "backgroundColor")],
    readout: [of(".isthmus-readout", "color"), of(".isthmus-readout", "backgroundColor")] };
}"""


@needs_chromium
@pytest.mark.processes
@pytest.mark.parametrize("around", AROUND)
def test_words_can_be_read_on_whatever_lies_behind(browser: Any, around: str) -> None:
    """Of the sentence, of a menu, and under the pointer: VS Code lays white behind widgets whatever its theme."""
    outside, inside = AROUND[around]
    canvas = Canvas()
    page = Bare(browser, canvas, style=outside)
    page.js(
        "(style) => { document.body.lastElementChild.style = style; document.body.dataset.theme = 'there'; }", inside
    )
    line = Lines("?", "x", "y", [Series("a", [0, 1], [0, 1])])
    menu = {"name": "axis", "label": "against", "value": "steps", "options": ["steps", "bytes"], "hint": ""}
    canvas.draw(Board("?", [line], "One of two."), controls=[menu])
    page.settle()
    page.js("point(0, 100, 150)")
    seen = page.js(SEEN)
    ground = re.search(r"background: (#\w+|white)", inside or outside)
    behind = "#fff" if ground is None or ground[1] == "white" else ground[1]
    assert contrast(seen["ink"], behind) >= WORDS
    assert contrast(*seen["select"]) >= WORDS
    assert contrast(*seen["readout"]) >= WORDS
    page.page.close()


PLAIN = {"svg", "title", "desc", "g", "path", "rect", "circle", "text"}
ATTRIBUTES = {
    "xmlns",
    "viewBox",
    "width",
    "height",
    "role",
    "class",
    "style",
    "font-family",
    "font-size",
    "font-weight",
    "fill",
    "fill-opacity",
    "stroke",
    "stroke-width",
    "stroke-dasharray",
    "stroke-linecap",
    "shape-rendering",
    "text-anchor",
    "transform",
    "x",
    "y",
    "d",
    "cx",
    "cy",
    "r",
}


def test_a_picture_at_rest_is_plain_shapes_and_words(pictures: dict[str, str]) -> None:
    """No style sheet, script, link, clip or reference of which a page that sanitises would leave half: GitHub's does."""
    for name, svg in pictures.items():
        assert set(re.findall(r"<([\w:-]+)", svg)) <= PLAIN, name
        assert set(re.findall(r'\s([\w:-]+)="', svg)) <= ATTRIBUTES, name
        assert set(re.findall(r'style="([^"]*)"', svg)) <= {"max-width:100%;height:auto"}, name


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    alone = made.PICTURES | made.TABLES
    views = {type(view).__name__: view.board().svg() for view in made.every_view()}
    return views | {name: picture.svg() for name, picture in alone.items()}


def stored() -> Any:
    return RunFolder(ROOT / "notebooks/stored/turned").events()


def test_where_no_script_runs_there_are_words_and_pictures() -> None:
    """A notebook with outputs, as those show it who know neither our kind of picture nor scripts, and sanitise what is HTML."""
    forms = [Losses.of(stored()).bundle(), bundle(Bars("How many bytes?", "bytes", ["a", "b"], [1, 2], ["1 B", "2 B"]))]
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_markdown_cell("# What is sent?")]
    nb.cells += [nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", f)]) for f in forms]
    page, _ = HTMLExporter(sanitize_html=True).from_notebook_node(nb)
    assert len(re.findall(r'<img [^>]*src="data:image/svg\+xml;base64,', page)) == 2
    assert "What is sent?" in page
    assert "vnd.isthmus" not in page
    for form in forms:
        title = form["text/plain"].partition("\n")[0]
        assert title
        assert f">{title}<" in form["image/svg+xml"]


def test_colab_is_told_what_draws_a_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    """anywidget asks Colab for its manager of widgets that are not Colab's own, and says in the metadata of the output which that is."""
    asked, shown = [], []
    there = SimpleNamespace(
        enable_custom_widget_manager=lambda: asked.append(1), _widgets=SimpleNamespace(_installed_url="from there")
    )
    monkeypatch.setitem(sys.modules, "google.colab.output", there)
    monkeypatch.setattr("widgets.view.display", lambda data, **more: shown.append((data, more)))
    anywidget._util.enable_custom_widget_manager_once.cache_clear()
    Screen("live")
    anywidget._util.enable_custom_widget_manager_once.cache_clear()
    ((data, more),) = shown
    (kind,) = {*data} - {"text/plain"}
    assert asked == [1]
    assert data["text/plain"] == UNDRAWN  # and no address of an object where nobody draws it
    assert more["metadata"][kind]["colab"]["custom_widget_manager"] == {"url": "from there"}


# --- Binder ------------------------------------------------------------------------------------------------------------


def test_binder_installs_what_make_does(tmp_path: Path) -> None:
    """Run with a pip that writes down what it is asked: the lock, torch for CPUs from its own index alone, the package."""
    asked, python = tmp_path / "asked", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    python.chmod(0o755)
    done = BINDER / "postBuild"
    assert done.stat().st_mode & stat.S_IXUSR
    subprocess.run([done], check=True, cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    said = re.sub(r"-m pip install --no-cache-dir --quiet --disable-pip-version-check ", "pip ", asked.read_text())
    assert said.splitlines() == [
        "pip --require-hashes --no-deps -r requirements.lock",
        "pip -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch",
        "pip --no-deps --no-build-isolation -e .",
        "-m widgets.resting",
    ]
    make = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(1)", "requirements")
    for arguments in ("--require-hashes --no-deps -r requirements.lock", "--no-deps --no-build-isolation -e ."):
        assert f"$(PIP) {arguments}" in make
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python_version = (BINDER / "runtime.txt").read_text().strip().removeprefix("python-")
    assert f"Programming Language :: Python :: {python_version}" in project["classifiers"]
    assert (ROOT / "notebooks/00_start_here.ipynb").exists()
