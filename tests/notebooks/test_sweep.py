"""A notebook over many parameters: which combinations there are, what is executed, what is compared in the end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.ground.errors import RecipeError
from lab.study.claims import Claim, Claims
from lab.study.comparison import to_html, to_text
from lab.study.execution import Execution, Pages
from lab.study.sweep import combinations

CLAIMING = """
from lab.study.claims import Claim, Claims
if x == 2:
    raise ValueError("two & no more")
Claims("tiny", (Claim("Paper A", "x is large", "here", f"{x} of {label}", "inconclusive" if x > 1 else "contradicted"),))
"""


def notebook(path: Path) -> Path:
    def cell(code: str, *tags: str) -> dict[str, Any]:
        metadata = {"tags": list(tags)} if tags else {}
        return {
            "cell_type": "code", "source": code, "metadata": metadata, "outputs": [], "execution_count": None,
            "id": f"c{len(code)}",
        }  # fmt: skip

    cells = [cell('x: int = 1  # how many\nlabel: str = "a"  # of what', "parameters"), cell(CLAIMING)]
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(
        json.dumps({"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
    )
    return path


@pytest.mark.slow
@pytest.mark.processes
def test_a_sweep_runs_what_is_missing_and_compares(tmp_path: Path) -> None:
    """One combination fails: it is named with its parameters and its error, the others are compared; what is done is not run again."""
    source, out = notebook(tmp_path / "tiny.ipynb"), tmp_path / "out"
    arguments = ["sweep", str(source), "-p", "x=2,3", "-p", "label=b", "--out", str(out)]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 1, first.output
    (line,) = [x for x in first.stderr.splitlines() if x.startswith("failed:")]
    assert line.startswith("failed: tiny with x=2 label=b: cell 3 raised ValueError: two & no more (see ")
    assert re.search(r"2 +b +failed: cell 3 raised ValueError", first.stdout)
    assert re.search(r"3 +b +1 inconclusive", first.stdout)
    (page,) = out.glob("sweep-tiny-*.html")
    assert f"compared on one page: {page}" in first.stdout
    text = page.read_text()
    assert "Paper A: x is large" in text
    assert "3 of b" in text
    assert "two &amp; no more" in text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == 3
    assert all((out / link).exists() for link in links)

    executed = {p: p.stat().st_mtime_ns for p in out.glob("tiny-*.ipynb")}
    again = CliRunner().invoke(main, [*arguments[:2], "-p", "x=3", *arguments[4:]])
    assert again.exit_code == 0
    assert "tiny: 1 combination, 1 already done" in again.stdout
    assert all(p.stat().st_mtime_ns == then for p, then in executed.items())


def test_combinations() -> None:
    """Values are split at commas, JSON where they can be; the last parameter changes fastest."""
    assert combinations(["a=1,2", "b=x,y"]) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert combinations(['seeds="0,1","2"', "deep=[1,2],[3]"])[0] == {"seeds": "0,1", "deep": [1, 2]}
    assert combinations(["c=1,fast,0.5"]) == [{"c": 1}, {"c": "fast"}, {"c": 0.5}]
    assert combinations([]) == [{}]


@pytest.mark.parametrize(("parameters", "says"), [(["a"], "write key=value"), (["a=1", "a=2"], "-p a is there twice")])
def test_what_is_no_parameter(parameters: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        combinations(parameters)


def test_an_unknown_parameter_is_one_line(tmp_path: Path) -> None:
    out = CliRunner().invoke(main, ["sweep", str(notebook(tmp_path / "tiny.ipynb")), "-p", "z=1,2", "--out", "o"])
    assert out.exit_code == 2
    assert "tiny has no parameter 'z': there are label, x" in out.stderr


@pytest.mark.parametrize(
    ("parameters", "says"),
    [(["-p", "x=1,two"], "tiny: x = 'two' is not allowed: it takes a value of type int"), ([], "nothing to combine")],
)
def test_nothing_starts_with_a_wrong_value_or_with_none(parameters: list[str], says: str, tmp_path: Path) -> None:
    out = CliRunner().invoke(
        main, ["sweep", str(notebook(tmp_path / "tiny.ipynb")), *parameters, "--out", str(tmp_path / "o")]
    )
    assert out.exit_code == 2
    assert says in out.stderr
    assert not (tmp_path / "o").exists()


def test_the_comparison_by_hand(tmp_path: Path) -> None:
    """Each claim once, over all combinations that made it; what is not there has no link; nothing is taken for HTML."""

    def claims(measured: str, verdict: Any) -> Claims:
        return Claims("n", (Claim("P", "a < b", "s", measured, verdict),))

    source = tmp_path / "n.ipynb"
    executions = [
        Execution(source, {"k": 1, "s": "<i>"}, tmp_path / "a.ipynb", claims=claims("0.5", "inconclusive")),
        Execution(source, {"k": 16, "s": "u"}, tmp_path / "b.ipynb", claims=claims("0.7", "contradicted")),
        Execution(source, {"k": 64, "s": "u"}, tmp_path / "c.ipynb", problem="it fell"),
    ]
    assert to_text(executions).splitlines() == [
        " k    s  claims",
        " 1  <i>  1 inconclusive",
        "16    u  1 contradicted",
        "64    u  failed: it fell",
    ]
    page = to_html("n", executions)
    assert page.count("P: a &lt; b") == 1
    assert "<i>" not in page
    assert "href" not in page
    assert page.index("0.5") < page.index("0.7")
    assert '<td class="bad">failed: it fell</td>' in page


def test_what_decides_the_outcome_is_part_of_its_name(tmp_path: Path) -> None:
    """The notebook, its parameters, the code that draws, and no other file; the code that draws is that of what is installed."""
    source, drawing = notebook(tmp_path / "tiny.ipynb"), tmp_path / "draws.py"
    drawing.write_text("one")
    pages = Pages(drawing, (drawing,))
    name = Execution.of(source, {"x": 1}, tmp_path, pages).target
    (tmp_path / "other.py").write_text("one")
    assert Execution.of(source, {"x": 1}, tmp_path, pages).target == name
    assert Execution.of(source, {"x": 2}, tmp_path, pages).target != name
    drawing.write_text("two")
    assert Execution.of(source, {"x": 1}, tmp_path, pages).target != name
    installed = Pages.installed()
    assert installed.program in installed.sources
    assert {file.parent.name for file in installed.sources} >= {"widgets"}


@pytest.mark.slow
@pytest.mark.processes
def test_all_notebooks_side_by_side_and_one_page_of_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``reproduce --all``: what fails is named and the rest goes on; what is done is not run again; one page has all claims."""
    (tmp_path / "notebooks").mkdir()
    _, second = (notebook(tmp_path / "notebooks" / f"{k}.ipynb") for k in ("01_one", "02_two"))
    second.write_text(second.read_text().replace("x: int = 1", "x: int = 2"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["reproduce", "--all"])
    assert done.exit_code == 1, done.output
    assert re.search(r"01_one: done in \d+ s", done.stdout)
    assert re.search(r"failed: 02_two: cell \d raised ValueError: two & no more", done.stderr)
    page = (tmp_path / "runs/notebooks/claims.html").read_text()
    assert "1 contradicted</b>" in page
    assert "1 of a" in page
    assert "two &amp; no more" in page
    second.write_text(second.read_text().replace("x: int = 2", "x: int = 3"))
    again = CliRunner().invoke(main, ["reproduce"])
    assert again.exit_code == 0, again.output
    assert "01_one: already done" in again.stdout
    page = (tmp_path / "runs/notebooks/claims.html").read_text()
    assert "1 contradicted, 1 inconclusive</b>" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert all((tmp_path / "runs/notebooks" / link).exists() for link in re.findall(r'href="([^"]+)"', page))
    named = CliRunner().invoke(main, ["reproduce", "01_one", "--all"])
    assert named.exit_code == 2
