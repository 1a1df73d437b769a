"""What notebooks keep of those who learn with them: found in metadata and outputs, gathered by learner, and nothing else taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.ground.errors import RecipeError
from lab.study.predictions import CHECKED, KEPT, MIME, Prediction, gather, now, predictions
from lab.study.teaching import check_outer_step

EARLY, LATE = "2026-11-30T10:00:00+00:00", "2026-11-30T11:30:00+01:00"  # the later one by half an hour


def one(said: Any = 12.0, at: str = EARLY, question: str = "How many?", truth: Any = 10.0) -> dict[str, Any]:
    return {"question": question, "said": said, "truth": truth, "unit": "GB", "at": at}


def cell(data: dict[str, Any], *tags: str) -> dict[str, Any]:
    output = {"output_type": "display_data", "data": {"text/plain": ""} | data, "metadata": {}}
    return {
        "cell_type": "code",
        "metadata": {"tags": [*tags]},
        "source": "",
        "outputs": [output],
        "execution_count": None,
    }


def notebook(kept: Any = None, *cells: dict[str, Any]) -> dict[str, Any]:
    return {"cells": [*cells], "metadata": {} if kept is None else {KEPT: kept}, "nbformat": 4, "nbformat_minor": 5}


def write(place: Path, content: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "truth", "how"),
    [
        (10, 10.1, "right"),
        (12, 10, "close"),
        (13, 10, "not so"),
        (5, 10, "not so"),
        ("a", "a", "right"),
        ("a", "b", "not so"),
    ],
)
def test_how_near_it_was(said: Any, truth: Any, how: str) -> None:
    assert Prediction("?", said, truth, "", EARLY).how == how


def test_there_and_back() -> None:
    made = Prediction("?", 3.0, 4.0, "B", now())
    assert Prediction.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    "kept",
    [
        None, 3, "text", [], {}, {"question": "?"}, one(said="12"), one(said=-1), one(said=0), one(said=True), one(said=float("inf")),
        one(said=float("nan")), one(said=[1]), one(at="yesterday"), one(at="2026-11-30T10:00:00"), one(at=3), one(question=None),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_no_prediction(kept: Any) -> None:
    """Whoever edits a notebook by hand cannot stop the table, and is counted."""
    with pytest.raises(ValueError):
        Prediction.from_json(kept)
    assert predictions(notebook({"How many?": [kept, one()]})) == ([Prediction(**one())], 1)


def test_metadata_and_outputs_are_one() -> None:
    """What both hold is there once; in order of time, whatever its zone; another question is another list."""
    kept = {"How many?": [one(9.0, LATE), one()], "Which?": [one("a", question="Which?", truth="b")]}
    found, bad = predictions(
        notebook(kept, cell({MIME: one(9.0, LATE)}), cell({MIME: one(4.0, "2026-12-01T10:00:00+00:00")}))
    )
    assert bad == 0
    assert [(p.question, p.said) for p in found] == [
        ("How many?", 12.0),
        ("Which?", "a"),
        ("How many?", 9.0),
        ("How many?", 4.0),
    ]
    assert predictions(notebook([one()]))[0] == [Prediction(**one())]
    assert predictions(notebook()) == ([], 0)


def test_a_class(tmp_path: Path) -> None:
    """By folder or by file; the first prediction counts; exercises by what their checks said last, without the solutions."""
    solved = check_outer_step(lambda *_: ...)._repr_mimebundle_()
    right = solved | {CHECKED: solved[CHECKED] | {"verdict": "Right", "hints": []}}
    asked = notebook({"How many?": [one(), one(10.0, LATE)]}, cell(right), cell(solved), cell(right, "solution"))
    write(tmp_path / "anna/10_lesson.ipynb", asked)
    write(tmp_path / "ben.ipynb", notebook({"How many?": [one(99.0)]}, cell({MIME: "nonsense"})))
    write(tmp_path / ".ipynb_checkpoints/ben.ipynb", asked)
    write(tmp_path / "torn/x.ipynb", '{"cells": [')
    write(tmp_path / "odd/x.ipynb", [1])
    found = gather(tmp_path)
    assert [(r.who, r.asked, r.said, r.truth, r.how, r.tries) for r in found.rows] == [
        ("anna", "How many?", "12 GB", "10 GB", "close", 2),
        ("anna", "exercise: outer step", "", "", "Not answered yet", 0),
        ("ben", "How many?", "99 GB", "10 GB", "not so", 1),
    ]
    assert found.rows[1].hint == "write the rule in place of the dots"
    assert found.answer == "2 learners: 1 of 2 first predictions right or close, 0 of 1 exercises solved."
    assert [line.split(":")[0] for line in found.left_out] == ["ben.ipynb", "odd/x.ipynb", "torn/x.ipynb"]
    assert found.answer in found._repr_html_()


def test_the_command(tmp_path: Path) -> None:
    """A table in the terminal, where escape sequences do nothing; a table for a spreadsheet, where formulas do nothing."""
    write(tmp_path / "a/x.ipynb", notebook({"q": [one("=1+1", question="\x1b[2J", truth="b")]}))
    shown = CliRunner().invoke(main, ["predictions", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.output
    assert "0 of 1 first predictions" in shown.output
    file = tmp_path / "class.csv"
    assert CliRunner().invoke(main, ["predictions", str(tmp_path), "--csv", str(file)]).exit_code == 0
    assert ",'=1+1," in file.read_text(encoding="utf-8-sig")
    (tmp_path / "empty").mkdir()
    none = CliRunner().invoke(main, ["predictions", str(tmp_path / "empty")])
    assert none.exit_code == 2
    with pytest.raises(RecipeError, match="no notebooks in"):
        gather(tmp_path / "nowhere")
