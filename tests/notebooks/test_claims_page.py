"""The page of all claims: what it says, that it needs no network, and that its filters work."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lab.study.claims import Claim, Claims
from lab.study.claims_page import claims_page
from lab.study.effects import Effect
from lab.study.evidence import Evidence
from lab.study.execution import Execution
from tests.support.browser import CHROMIUM, needs_chromium

ROWS = (
    Claim.effect(
        "A & B", "ends <lower>", "there", (1.0, 1.1, 1.2), (2.0, 2.2, 2.1), 0.1, seen="1 against 2", size="toy"
    ),
    Claim.every("C", "x", "y", [Effect((1.0, math.inf), (2.0, 2.0), 0.1, label="at 4"), Effect((1.0,), (2.0,), 3.0)]),
    Claim.effect("C", "ten times", "y", (1.0, 1.1, 1.2), (2.0, 2.2, 2.1), 10, scale="times"),
    Claim.exact("C", "counted", "y", 2, 2, size="1B, dry run"),
    Claim.untested("C", "not tried", "y", "no GPU"),
)


def executions(folder: Path) -> list[Execution]:
    for name in ("n-1.ipynb", "n-1.html", "n.ipynb"):
        (folder / name).touch()
    done = Execution(folder / "n.ipynb", {}, folder / "n-1.ipynb", claims=Claims("n", ROWS), seconds=3.0)
    return [done, Execution(folder / "m.ipynb", {"k": 2}, folder / "m-1.ipynb", problem="it <fell>")]


def test_what_the_page_says(tmp_path: Path) -> None:
    """The counts in a sentence; a picture for each effect, with an interval where there is one; links that exist; nothing from elsewhere."""
    page = claims_page(executions(tmp_path))
    said = "5 claims in 2 notebooks: <b>1 exact, 1 holds, 1 contradicted, 1 inconclusive, 1 not tested</b>."
    assert said in page
    rows = re.findall(r"<tr data-paper=.*?</tr>", page)
    assert [row.count("<svg") for row in rows] == [1, 2, 1, 0, 0]
    assert ["class=ci" in row for row in rows] == [True, False, True, False, False]
    assert (
        'data-paper="A &amp; B" data-notebook="n" data-profile="quick" data-verdict="holds" data-size="toy"' in rows[0]
    )
    assert "<div>1 against 2</div>" in rows[0]
    assert "counts: lower by more than 0.1" in rows[0]
    assert "at 4: median" in rows[1]
    assert "<lower>" not in page
    assert "it &lt;fell&gt;" in page
    assert "nan" not in re.sub("[a-z]nan|nan[a-z]", "", page.lower())
    assert "inf" not in "".join(re.findall(r'(?:x|d|cx|width)="[^"]*"', page))
    links = re.findall(r'href="([^"]+)"', page)
    assert set(links) == {"n-1.html", "n-1.ipynb", "n.ipynb"}
    assert not re.findall(r'(?:src|href)="(?:https?:)?//|url\(|@import', page)
    assert "1 claim is judged" not in page
    assert "2 claims are judged by 95 % intervals" in page


def test_a_row_is_drawn_where_its_numbers_are(tmp_path: Path) -> None:
    """The dashed margin and the ends of the interval, worked by hand: the picture has 6 pixels free at both sides of 220."""
    claim = Claim.effect("P", "a", "s", (-3.0, -1.0, -2.0), (0.0, 0.0, 0.0), 1.0)  # −2 ± 2.4841, margin at −1
    one = Execution(tmp_path / "n.ipynb", {}, tmp_path / "n-1.ipynb", claims=Claims("n", (claim,)))
    (row,) = re.findall(r"<tr data-paper=.*?</tr>", claims_page([one]))
    low, high = claim.effects[0].line_interval or (0, 0)
    room = 0.06 * (high - low)
    first, last = low - room, high + room

    def at(x: float) -> str:
        return f"{6 + 208 * (x - first) / (last - first):.1f}"

    assert f'class=margin d="M{at(-1)} 0V20"' in row
    assert f'class=zero d="M{at(0)} 0V20"' in row
    assert f'class=ci d="M{at(low)} 10.0H{at(high)}"' in row
    assert f'class=side x="6.0" y=0 width="{float(at(-1)) - 6:.1f}"' in row


def test_what_the_runs_were_is_in_the_row(tmp_path: Path) -> None:
    evidence = Evidence("116k parameters", 6, 3, 192, 786_432, "tokens", 1_200_000_000, 95.0)
    assert evidence.words == "6 runs, 3 seeds, 192 steps, 786k tokens each, 1.2 GB sent, 95 s"
    claim = Claim("P", "a", "s", "m", "inconclusive", evidence=evidence)
    one = Execution(tmp_path / "n.ipynb", {}, tmp_path / "n-1.ipynb", claims=Claims("n", (claim,)))
    page = claims_page([one])
    for words in ("116k parameters", "6 runs, 3 seeds", "192 steps, 786k tokens a run", "1.2 GB sent, 95 s"):
        assert f"<div>{words}</div>" in page
    assert Claim.from_json(claim.to_json()).evidence == evidence


@needs_chromium
@pytest.mark.slow
def test_the_filters(tmp_path: Path) -> None:
    """Without script all rows and no filters; with it, rows by key and by words. Nothing is wider than a narrow window."""
    from playwright.sync_api import sync_playwright

    (tmp_path / "claims.html").write_text(claims_page(executions(tmp_path)), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 600, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "claims.html").as_uri())
        shown = page.locator("#claims tbody tr:visible")
        assert shown.count() == 5
        page.select_option("select[name=paper]", "C")
        assert page.locator("output").inner_text() == "4 of 5 shown"
        page.select_option("select[name=verdict]", "exact")
        assert shown.count() == 1
        page.select_option("select[name=verdict]", "")
        page.fill("input[name=words]", "TEN times")
        assert shown.count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 600
        assert errors == []
        bare = browser.new_context(java_script_enabled=False).new_page()
        bare.goto((tmp_path / "claims.html").as_uri())
        assert bare.locator("#claims tbody tr:visible").count() == 5
        assert not bare.locator("#filters").is_visible()
        browser.close()
