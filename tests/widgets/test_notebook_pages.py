"""Pages of executed notebooks: small, whole without a network, text and pictures before code; on a real browser, from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from pygments.styles import get_style_by_name

from tests.support.browser import needs_chromium
from tests.support.contrast import WORDS, contrast
from tests.support.pictures import routing, unlearned
from widgets import RoutingStability, Unlearning
from widgets.pages import CODE, page

LIMIT = 400_000  # bytes of a page
ADDRESS = re.compile(r'(?:src|href|url)\s*[=(]\s*["\']?((?:https?:)?//[^"\' )]+)')


def shows(data: dict[str, Any]) -> Any:
    return nbformat.v4.new_code_cell("view", outputs=[nbformat.v4.new_output("display_data", data=data)])


def stream(words: str) -> Any:
    return nbformat.v4.new_output("stream", name="stdout", text=words)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words, parameters, two views that are among the largest, a solution, and a cell that shows nothing."""
    nb = nbformat.v4.new_notebook()
    nb.cells = [
        nbformat.v4.new_markdown_cell("# A & B\n\nWords with a [link](03_prelort.ipynb)."),
        nbformat.v4.new_code_cell("steps = 4", metadata={"tags": ["parameters"]}),
        shows(RoutingStability.of(routing()).bundle()),
        shows(Unlearning.of(unlearned()).bundle()),
        nbformat.v4.new_code_cell("answer = 42", metadata={"tags": ["solution"]}, outputs=[stream("that is right\n")]),
    ]
    nb.cells[-1].metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    nb.cells.append(nbformat.v4.new_code_cell("print('So: 5 of 7.')", outputs=[stream("So: 5 of 7.\n")]))
    file = tmp_path_factory.mktemp("executed") / "x.ipynb"
    nbformat.write(nb, file)
    return file


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook in which somebody asked for plotly."""
    data = RoutingStability.of(routing()).plotly()._repr_mimebundle_()
    file = tmp_path_factory.mktemp("explored") / "y.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[shows(data)]), file)
    return file


def test_a_page_is_small_and_whole(notebook: Path, tmp_path: Path) -> None:
    """Two of the largest views, with what draws them, and nothing beside it but pictures for who runs no script."""
    before = notebook.read_bytes()
    page(notebook, tmp_path / "a.html")
    assert {file.name for file in tmp_path.iterdir()} == {"a.html", "a-1.svg", "a-2.svg"}
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT / 2
    assert re.findall(r'<script[^>]* src="([^"]+)"', text) == []
    assert ADDRESS.findall(text) == []
    first, second = re.findall(r"<noscript><img[^>]*>", text)
    assert 'src="a-1.svg"' in first
    assert 'alt="Does routing stay stable?' in first
    assert 'src="a-2.svg"' in second
    assert notebook.read_bytes() == before


def test_who_asks_for_plotly_has_its_script_once_in_a_folder(explored: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        page(explored, tmp_path / f"{name}.html")
    (script,) = tmp_path.glob("*.js")
    assert re.fullmatch(r"plotly-[0-9a-f]{12}\.min\.js", script.name)
    for name in ("a", "b"):
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert len(text.encode()) < LIMIT
        assert re.findall(r'<script[^>]* src="([^"]+)"', text) == [script.name]


def test_a_single_file_has_nothing_beside_it(notebook: Path, explored: Path, tmp_path: Path) -> None:
    for source in (notebook, explored):
        page(source, tmp_path / "one.html", single_file=True)
        assert [file.name for file in tmp_path.iterdir()] == ["one.html"]
        text = (tmp_path / "one.html").read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(?!data:)([^"]+)"', text) == []
        assert text.count("<noscript><svg") == (2 if source == notebook else 0)


def test_code_is_folded_and_comes_after_what_it_shows(notebook: Path, tmp_path: Path) -> None:
    page(notebook, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    folds = re.findall(r'<details class="code"><summary>(\w+)</summary>(.*?)</details>', text, re.S)
    assert [word for word, _ in folds] == ["Parameters", "Code", "Code", "Solution", "Code"]
    assert "<details open" not in text
    for code in ("steps", "answer"):
        assert code in "".join(inside for _, inside in folds)
        assert f">{code}<" not in re.sub(r"<details.*?</details>", "", text, flags=re.S)
    assert "that is right" in folds[3][1]
    assert text.index("So: 5 of 7.") < text.index(">print<")
    assert "<title>A &amp; B</title>" in text
    assert text.index("<h1") < text.index("In short") < text.index("Parameters")


@pytest.mark.parametrize("style", CODE)
def test_code_can_be_read(style: str) -> None:
    """Every colour of what is written, on the ground of its style."""
    made = get_style_by_name(style)
    words = {str(kind): f"#{look['color']}" for kind, look in made if look["color"] and "Whitespace" not in str(kind)}
    assert {k: c for k, c in words.items() if contrast(c, made.background_color) < WORDS} == {}


@needs_chromium
@pytest.mark.processes
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_a_file_without_a_network(browser: Any, notebook: Path, tmp_path: Path, scheme: str) -> None:
    """Pictures are drawn in the system's theme, no script fails, nothing else is asked for; menus work, the keyboard opens code."""
    page(notebook, tmp_path / "a.html", single_file=scheme == "dark")
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800}, color_scheme=scheme)
    asked, failed = list[str](), list[str]()
    shown = context.new_page()
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: failed.append(str(error)))
    shown.goto((tmp_path / "a.html").as_uri())
    shown.wait_for_function("document.querySelectorAll('.isthmus-rest canvas').length >= 2")
    assert failed == []
    assert asked == [(tmp_path / "a.html").as_uri()]
    board = shown.locator(".isthmus-rest").first
    ink, ground = {
        "light": ("rgb(36, 41, 47)", "rgb(255, 255, 255)"),
        "dark": ("rgb(230, 230, 230)", "rgb(17, 17, 17)"),
    }[scheme]
    assert board.evaluate("el => getComputedStyle(el).color") == ink
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert board.locator("canvas").count() == 1
    board.locator("select").select_option("all pictures")
    shown.wait_for_function("document.querySelector('.isthmus-rest').querySelectorAll('canvas').length > 5")
    assert shown.locator("details[open]").count() == 0
    shown.locator("summary").first.focus()
    shown.keyboard.press("Enter")
    assert shown.locator("details[open]").inner_text().split() == ["Parameters", "steps", "=", "4"]
    assert shown.evaluate("document.documentElement.scrollWidth <= 1000")
    context.close()


@needs_chromium
@pytest.mark.processes
def test_plotly_opens_from_a_file(browser: Any, explored: Path, tmp_path: Path) -> None:
    page(explored, tmp_path / "a.html")
    context = browser.new_context(offline=True)
    shown = context.new_page()
    shown.goto((tmp_path / "a.html").as_uri())
    shown.wait_for_selector(".js-plotly-plot .main-svg")
    context.close()


@needs_chromium
@pytest.mark.processes
def test_where_no_script_runs_there_are_pictures(browser: Any, notebook: Path, tmp_path: Path) -> None:
    page(notebook, tmp_path / "a.html")
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto((tmp_path / "a.html").as_uri())
    assert [shown.locator("img").nth(k).bounding_box()["height"] > 200 for k in (0, 1)] == [True, True]
    context.close()


@needs_chromium
@pytest.mark.processes
def test_large_type_reaches_pictures_at_rest(browser: Any, tmp_path: Path) -> None:
    """The classroom's switch makes pictures larger that stay below it in its cell, once their run has ended."""
    view = RoutingStability.of(routing())
    view.save(tmp_path / "a.html")
    shown = browser.new_page()
    shown.goto((tmp_path / "a.html").as_uri())
    shown.wait_for_selector(".isthmus-rest canvas")
    tall = "document.querySelector('canvas').getBoundingClientRect().height"
    before = shown.evaluate(tall)
    shown.evaluate("document.body.className = 'jp-OutputArea'")
    shown.evaluate("document.body.appendChild(document.createElement('div')).className = 'isthmus-large'")
    assert shown.evaluate(tall) == pytest.approx(1.5 * before)
    shown.close()
