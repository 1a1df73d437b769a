"""Slides of an executed notebook: what is on them, that they load nothing from a network, and that in a browser each fits its screen."""

from __future__ import annotations

import io
import re
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import lab.study.slides
from lab.cli import main
from lab.ground.errors import RecipeError
from lab.study.claims import Claim, Claims
from lab.study.slides import PARTS, REVEAL, fetched, maker
from tests.support.browser import needs_chromium
from tests.support.pictures import PICTURES
from widgets.pictures import Bars, bundle
from widgets.questions import Question
from widgets.slides import HEIGHT, WIDTH, slides

SHOWN = Question(
    "How many?",
    "K",
    {f"K = {k}": Bars("?", "bytes", ["a", "b"], [k, 9], [f"{k} B", "9 B"]) for k in (1, 2)},
    "K = 1",
    1.0,
    "B",
)


def cell(kind: str, source: str, slide: str, data: dict[str, Any] | None = None, *tags: str) -> Any:
    metadata = {"slideshow": {"slide_type": slide}, "tags": [*tags]}
    if kind == "text":
        return new_markdown_cell(source, metadata=metadata)
    outputs = [] if data is None else [new_output("display_data", data)]
    return new_code_cell(source, metadata=metadata, outputs=outputs)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    claims = Claims("x", (Claim.exact("P", "it is two", "s", 2, 2),))
    cells = [
        cell("text", "# A lesson", "slide"),
        cell("code", "secret = 1", "skip"),
        cell("text", "## How many?\n\n**Predict:** say a number.", "slide"),
        cell("text", "say it slowly", "notes"),
        cell("code", "hidden_code()", "fragment", SHOWN.bundle()),
        cell("code", "# Solution", "-", {"text/plain": "forty-two"}, "solution"),
        cell(
            "text",
            "<details><summary>Why? Look after your prediction</summary>\n\nSo *it* is.\n\n</details>",
            "fragment",
        ),
        cell("text", "## A picture", "subslide"),
        cell("code", "draw_it()", "-", bundle(PICTURES["losses"])),
        cell("code", "tell()", "slide", claims._repr_mimebundle_()),
    ]
    file = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=cells), file)
    return file


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / REVEAL
    folder.mkdir(parents=True)
    for part in PARTS:
        (folder / part).write_text(f"/* {part} */")
    return folder


def test_what_is_on_slides(notebook: Path, fake: Path, tmp_path: Path) -> None:
    """Questions before answers; no code, no solution, nothing that skips; claims a line each; one folder of reveal.js beside."""
    out = tmp_path / "a.slides.html"
    slides(notebook, out, fake)
    text = out.read_text()
    sections = re.findall(r"<section[^>]*>(?!\s*<section)(.*?)</section>", text, re.S)
    assert len(sections) == 4
    asked = sections[1]
    assert asked.index("say a number") < asked.index('class="fragment"') < asked.index('<figure class="board">')
    assert '<aside class="notes">' in asked
    assert "<summary>Why?</summary>" in asked
    assert "<details open" in asked
    assert "So <em>it</em> is." in asked
    for left_out in ("secret", "hidden_code", "forty-two", "# Solution", "draw_it()"):
        assert left_out not in text
    assert "<b>exact</b> · P: it is two" in sections[3]
    assert sorted(file.name for file in (tmp_path / REVEAL).iterdir()) == sorted(PARTS)
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize("single", [False, True])
def test_nothing_comes_from_a_network(notebook: Path, fake: Path, tmp_path: Path, single: bool) -> None:
    out = tmp_path / "b" / "a.slides.html"
    out.parent.mkdir()
    slides(notebook, out, fake, single)
    text = out.read_text()
    assert re.findall(r'(?:src|href)="(https?:)?//', text) == []
    assert "import(" not in text
    assert "@import" not in text
    assert ("/* reveal.js */" in text) == single
    assert [file.name for file in out.parent.iterdir()] == [out.name] if single else len([*out.parent.iterdir()]) == 2


def test_the_lab_finds_who_makes_them() -> None:
    assert maker() is slides


def test_without_reveal_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, a file that is not there, another file: said before anything is executed."""

    def unreachable(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(lab.study.slides, "execute_alone", None)
    with pytest.raises(RecipeError, match=r"cannot be reached .* give it with --reveal FILE"):
        fetched()
    with pytest.raises(RecipeError, match="cannot read"):
        fetched(str(tmp_path / "none.tgz"))
    (tmp_path / "other.tgz").write_bytes(b"something else")
    with pytest.raises(RecipeError, match="as it was published"):
        fetched(str(tmp_path / "other.tgz"))
    out = CliRunner().invoke(main, ["slides", "00_start_here"])
    assert out.exit_code == 2
    assert "cannot be reached" in out.output
    assert not (tmp_path / "empty").exists()


def test_what_was_fetched_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of the archive and no more; the second time nothing is read."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for place in (*PARTS.values(), "dist/other.js"):
            member = tarfile.TarInfo(f"package/{place}")
            member.size = len(place)
            archive.addfile(member, io.BytesIO(place.encode()))
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path))
    monkeypatch.setattr(lab.study.slides, "SHA512", digest)
    (tmp_path / "r.tgz").write_bytes(packed.getvalue())
    folder = fetched(str(tmp_path / "r.tgz"))
    assert {file.name: file.read_text() for file in folder.iterdir()} == PARTS
    monkeypatch.setattr(lab.study.slides, "_download", None)
    assert fetched() == folder


# --- in a browser ----------------------------------------------------------------------------------------------------

BOXES = """() => [...Reveal.getCurrentSlide().querySelectorAll("*")].filter((el) => el.checkVisibility() && !el.closest(".notes, style, script"))
  .map((el) => el.getBoundingClientRect()).filter((b) => b.width && b.height)
  .reduce(([x, y], b) => [Math.max(x, b.right), Math.max(y, b.bottom)], [0, 0])"""


@needs_chromium
@pytest.mark.processes
@pytest.mark.slow
def test_slides_in_a_browser(browser: Any, notebook: Path, tmp_path: Path) -> None:
    """Offline: a key goes on, first to the answer; its slider moves by keys, which do not turn the page; everything is within the screen."""
    try:
        reveal = fetched()
    except RecipeError as error:
        pytest.skip(str(error))
    out = tmp_path / "a.slides.html"
    slides(notebook, out, reveal)
    context = browser.new_context(offline=True, viewport={"width": WIDTH, "height": HEIGHT})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(out.as_uri())
    page.wait_for_function("() => window.Reveal?.isReady()")
    seen = []
    for _ in range(6):
        right, bottom = page.evaluate(BOXES)
        assert right <= WIDTH
        assert bottom <= HEIGHT
        seen.append(page.evaluate("() => Reveal.getCurrentSlide().querySelectorAll('.fragment.visible').length"))
        if seen[-1]:
            slider = page.locator("section.present input[type=range]").last
            slider.focus()
            slider.press("ArrowRight")
            assert slider.get_attribute("aria-valuetext") == "K = 2"
            slider.evaluate("el => el.blur()")
            assert page.evaluate(
                "() => [...document.querySelectorAll('section.present canvas')].every((c) => c.width > 100)"
            )
        page.keyboard.press("Space")
    assert seen == [0, 0, 1, 2, 0, 0]
    assert errors == []
    context.close()
