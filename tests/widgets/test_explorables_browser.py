"""Explorables in a real browser: guess, drag by keyboard and pointer, play, answer; without a network, and without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.study.explorables import explorable, names
from tests.support import axe
from tests.support.browser import needs_chromium
from widgets.explorables import Explorable

pytestmark = [needs_chromium, pytest.mark.processes]

SENTENCE = "() => document.querySelector('.sentence').textContent"
PANELS = "() => document.querySelector('.isthmus-board').held.panels.map((p) => [p.title, p.until ?? null, p.dots?.map((d) => d.words) ?? null])"
SETTLED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def opened(browser: Any, x: Explorable, folder: Path, **options: Any) -> Any:
    """The page of a file, which asks for nothing else and raises nothing."""
    file = folder / f"{x.name}.html"
    x.save(file)
    page = browser.new_page(viewport={"width": 1400, "height": 900}, reduced_motion="reduce", **options)
    page.wrong = list[str]()
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: None if request.url == file.as_uri() else page.wrong.append(request.url))
    page.goto(file.as_uri())
    return page


def panels(x: Explorable, place: int, moment: str) -> list[Any]:
    """What is drawn, as Python says it."""
    specs = x.places[place].moments[moment].spec()["panels"]
    return [[p["title"], p.get("until"), [d["words"] for d in p["dots"]] if "dots" in p else None] for p in specs]


def test_guess_drag_play_answer(browser: Any, tmp_path: Path) -> None:
    """By keyboard alone; what the page says and draws is what Python says at that place and moment."""
    x = explorable("local_steps")
    assert isinstance(x, Explorable)
    page, moments = opened(browser, x, tmp_path), list(x.places[0].moments)
    key = page.keyboard.press
    assert not page.locator(".sentence").is_visible()
    key("Tab")
    key("Space")  # the first option
    key("Enter")
    assert page.locator("[data-part=guess] [role=status]").text_content() == x.prediction.verdict(
        x.prediction.options[0]
    )
    assert page.locator(".sentence").is_visible()

    key("Tab")
    slider = page.locator(":focus")
    place = x.start
    for pressed, to in (
        ("ArrowRight", 1),
        ("ArrowLeft", -1),
        ("End", 99),
        ("ArrowUp", 1),
        ("Home", -99),
        ("PageUp", 2),
    ):
        key(pressed)
        place = max(0, min(len(x.places) - 1, place + to))
        assert page.evaluate(SENTENCE) == x.says(place)
        assert page.evaluate(PANELS) == panels(x, place, moments[-1])
        assert slider.get_attribute("aria-valuetext") == x.places[place].value
    assert (slider.get_attribute("role"), slider.get_attribute("aria-label")) == ("slider", x.dragged)

    box = slider.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 20 + 2 * 26, box["y"] + 10)
    page.mouse.up()
    assert page.evaluate(SENTENCE) == x.says(place + 2)

    key("Tab")
    assert page.locator(":focus").text_content() == "Play"
    key("Tab")
    key("Home")
    for k in (0, 1, 2):
        assert page.evaluate(PANELS) == panels(x, place + 2, moments[k])
        page.evaluate(SETTLED)
        assert page.locator(".isthmus-answer").text_content() == x.places[place + 2].moments[moments[k]].answer
        key("ArrowRight")
    key("Shift+Tab")
    key("Enter")
    page.wait_for_function(f"() => document.querySelector('.moments output').textContent === {moments[6]!r}")
    key("Enter")
    assert page.locator(":focus").text_content() == "Play"
    assert page.wrong == []
    page.close()


@pytest.mark.parametrize(("light", "ground"), [("true", "rgb(255, 255, 255)"), ("false", "rgb(17, 17, 17)")])
def test_in_a_notebook(browser: Any, light: str, ground: str) -> None:
    """The frame is as high as its page, before the guess and after, and takes the notebook's theme rather than the system's."""
    x = explorable("nested_ranks")
    assert isinstance(x, Explorable)
    page = browser.new_page(color_scheme="dark" if light == "true" else "light", reduced_motion="reduce")
    shown = x._repr_mimebundle_()["text/html"]
    page.set_content(f"<!doctype html><body data-jp-theme-light={light}><div style='width: 900px'>{shown}</div></body>")
    frame = page.frames[1]
    frame.wait_for_selector("button")
    assert frame.evaluate("() => getComputedStyle(document.body).backgroundColor") == ground
    for fits in (1, 2):
        page.evaluate(SETTLED)
        high, needs = (
            page.evaluate("() => document.querySelector('iframe').clientHeight"),
            frame.evaluate("() => document.body.scrollHeight"),
        )
        assert needs <= high <= needs + 80, fits
        frame.get_by_text("Skip").click()
        frame.wait_for_selector("canvas")
    page.close()


@pytest.mark.parametrize("name", names())
def test_the_check_of_the_page_is_that_of_python(browser: Any, name: str, tmp_path: Path) -> None:
    x = explorable(name)
    assert isinstance(x, Explorable)
    page, e = opened(browser, x, tmp_path), x.exercise
    page.get_by_text("Skip").click()
    typed = [
        "",
        "a lot",
        "0",
        "-3",
        "0x10",
        "1e999",
        f"{e.right:.12g}",
        f" {e.right:.12g} ",
        f"{1.3717 * e.right:.12g}",
        f"{e.right / 1.3717:.12g}",
    ]
    typed += [
        f"{e.right:,.0f}",
        "1,5",
        "12,345,678",
        "3/4",
        "3/0",
        f"{e.right:g} {e.unit}",
        *(f"{slip.value:.12g}" for slip in e.slips),
    ]
    for answer in typed:
        page.locator("[data-part=exercise] input").fill(answer)
        page.locator("[data-part=exercise] button").click()
        assert page.locator("[data-part=exercise] [role=status]").text_content() == repr(e.check(answer)), answer
    assert page.wrong == []
    page.close()


@pytest.mark.parametrize("name", names())
def test_without_scripts(browser: Any, name: str, tmp_path: Path) -> None:
    """Mail, and places that show pages but run nothing: text, one picture, answers in folds."""
    x = explorable(name)
    assert isinstance(x, Explorable)
    page = opened(browser, x, tmp_path, java_script_enabled=False)
    assert page.locator(".sentence").text_content() == x.says(x.start)
    assert page.locator("figure > svg").is_visible()
    assert page.locator("form:visible, .moments:visible").count() == 0
    assert [words.strip() for words in page.locator("summary").all_text_contents()] == ["What is so", "The answer"]
    assert page.locator("section li:visible").count() == len(x.prediction.options) + len(x.further)
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_keyboards_and_screen_readers(browser: Any, theme: str, tmp_path: Path) -> None:
    for name in names():
        x = explorable(name)
        assert isinstance(x, Explorable)
        page = opened(browser, x, tmp_path, color_scheme=theme)
        found = axe.serious(page, "main")
        page.get_by_text("Skip").click()
        assert found + axe.serious(page, "main") == [], name
        page.close()
