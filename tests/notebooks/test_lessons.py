"""The four lessons: what each has, that its minutes are twenty, that its exercises begin open and its solutions are right."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from lab.study.teaching import OPEN, Checked
from tests.support import ROOT

LESSONS = sorted((ROOT / "notebooks").glob("10_lesson_*.ipynb"))
EXERCISES = {"10_lesson_1_rarely": 1, "10_lesson_2_links": 2, "10_lesson_3_less": 2, "10_lesson_4_who": 2}


def cells_of(lesson: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def slide(cell: dict[str, Any]) -> str:
    return cell["metadata"].get("slideshow", {}).get("slide_type", "-")


def test_there_are_four() -> None:
    assert [lesson.stem for lesson in LESSONS] == list(EXERCISES)


def test_questions_have_names_of_their_own() -> None:
    """By which predictions are kept and gathered."""
    code = [cell["source"] for lesson in LESSONS for cell in cells_of(lesson) if cell["cell_type"] == "code"]
    titles = [re.search(r'Question\(\s*f?"([^"]+)"', source) for source in code]
    found = [title[1] for title in titles if title]
    assert len(found) == sum("Question(\n" in source for source in code) == len({*found}) == 16


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_what_a_lesson_has(lesson: Path) -> None:
    """Three goals, twenty minutes, questions that ask before they show, whys, a sentence to take home, what to read next."""
    cells = cells_of(lesson)
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    minutes = [int(n) for text in texts for n in re.findall(r"^## .*\((\d+) min", text, re.M)]
    assert sum(minutes) == 20, minutes
    assert len(re.findall(r"^- ", texts[0], re.M)) == 3
    assert "Twenty minutes" in texts[0]
    whys = [cell["source"] for cell in cells if "<details><summary>Why" in cell["source"]]
    assert len(whys) >= 3
    assert all(
        "</details>" in why and "\n\n" in why.replace("\\n", "\n") for why in whys
    )  # folded: it would tell the answer
    assert [text for text in texts if "**Go on:**" in text and "**At home:**" in text]
    asked = [k for k, cell in enumerate(cells) if "Question(\n" in cell["source"]]
    before = {k - 1 for k in asked}  # the form comes when what it asks for is known
    assert all("secret=True" in cells[k]["source"] for k in before if "train_all(" in cells[k]["source"])
    assert len(asked) >= 4
    for k in asked:
        before = next(cell for cell in reversed(cells[:k]) if cell["cell_type"] == "markdown")
        assert "**Predict:**" in before["source"]
        assert cells[k]["source"].startswith("# Unfold this cell")
        assert cells[k]["metadata"]["jupyter"] == {"source_hidden": True}
    assert any("live.panel(" in cell["source"] or "again.panel(" in cell["source"] for cell in cells)
    assert any('f"**So:** ' in cell["source"] for cell in cells)
    assert f'"{lesson.stem}"' in cells[-1]["source"]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_slides_ask_before_they_answer(lesson: Path) -> None:
    """Every cell says what it is on slides; an answer comes after a click; no solution is shown."""
    cells = cells_of(lesson)
    assert {slide(cell) for cell in cells} <= {"slide", "subslide", "fragment", "skip", "-"}
    for cell in cells:
        if "Question(\n" in cell["source"]:
            assert slide(cell) == "fragment"
        if "solution" in cell["metadata"].get("tags", []) or "parameters" in cell["metadata"].get("tags", []):
            assert slide(cell) == "skip"
    assert sum(slide(cell) == "slide" for cell in cells) >= 7


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_links_lead_somewhere(lesson: Path) -> None:
    links = [link for cell in cells_of(lesson) for link in re.findall(r"\]\(([^)#]+\.(?:ipynb|md))", cell["source"])]
    assert len(links) >= 3
    assert [link for link in links if not (lesson.parent / link).is_file()] == []


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_exercises_are_open_and_solutions_right(lesson: Path) -> None:
    """Cell by cell as they stand in the notebook: answers begin open, each solution passes its check and is folded."""
    cells = cells_of(lesson)
    paper = Recipe.of("des_loc_13B")
    names: dict[str, Any] = {"paper": paper, "copy": plan(paper).states[0].bytes_each}
    (imports,) = (cell["source"] for cell in cells if "\nimport lab\n" in f"\n{cell['source']}")
    exec(imports.partition("\n\nseed_list")[0], names)
    verdicts = []
    for cell in cells:
        source = cell["source"]
        needed = source.startswith(("exercise = ", "control = ")) or source.splitlines()[-1].startswith("check_")
        if cell["cell_type"] != "code" or not needed:
            continue
        *body, last = ast.parse(source).body
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if not isinstance(last, ast.Expr):
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
            continue
        told = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        if isinstance(told, Checked):
            is_solution = "solution" in cell["metadata"].get("tags", [])
            assert is_solution == ("source_hidden" in cell["metadata"].get("jupyter", {})) == source.startswith("# Sol")
            assert told.exercise
            verdicts.append((is_solution, told.verdict))
    assert verdicts == [(False, OPEN), (True, "Right")] * EXERCISES[lesson.stem]
