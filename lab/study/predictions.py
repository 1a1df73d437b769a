"""What learners predicted and how their exercises stand: kept in their notebooks, gathered from a folder of them.

::

    metadata.isthmus_predictions    of a notebook: {question: [prediction, …]}, oldest first; stays when cells are run again or cleared
    application/vnd.isthmus.prediction+json    in the output that answers a question: the prediction that it shows
    application/vnd.isthmus.checked+json       in the output of an exercise: what its check said last

A front end that lets pages write into the notebook (JupyterLab, Notebook 7) keeps both; any other that saves outputs, the last two.
What is read here was written by somebody else: nothing of it is executed, and what is not as it should be is left out and counted.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.ground.errors import RecipeError, plain
from lab.study.tables import html_table

KEPT = "isthmus_predictions"  # key in the metadata of a notebook
MIME, CHECKED = "application/vnd.isthmus.prediction+json", "application/vnd.isthmus.checked+json"
EQUAL, NEAR = 0.02, 0.25  # relative: a prediction so close is called right, or close


@dataclass(frozen=True)
class Prediction:
    """What somebody said before they saw the answer.

    question
        its title, which is its name.
    said, truth
        both numbers, or both among the options of the question.
    unit
        of the numbers.
    at
        when, as ISO 8601 in UTC, to the second.

    Raises
    ------
    ValueError
        for anything else, as from a notebook that was edited by hand.
    """

    question: str
    said: float | str
    truth: float | str
    unit: str
    at: str

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.question, self.unit, self.at)):
            raise ValueError("question, unit and time are texts")
        if isinstance(self.said, str) != isinstance(self.truth, str):
            raise ValueError("a word is held against a word, a number against a number")
        for value in (self.said, self.truth):
            if isinstance(value, bool) or not (
                isinstance(value, str) or (isinstance(value, int | float) and 0 < value < math.inf)
            ):
                raise ValueError(f"{value!r} is no prediction")
        if datetime.fromisoformat(self.at).tzinfo is None:
            raise ValueError("a time without a time zone")

    @property
    def how(self) -> str:
        """``right`` (of numbers: within 2 %), ``close`` (within 25 %) or ``not so``."""
        if isinstance(self.said, str) or isinstance(self.truth, str):
            return "right" if self.said == self.truth else "not so"
        off = abs(self.said / self.truth - 1)
        return "right" if off <= EQUAL else "close" if off <= NEAR else "not so"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Any) -> Prediction:
        """Raises ValueError for what is none."""
        names = {field.name for field in fields(cls)}
        if not isinstance(kept, Mapping) or not names <= kept.keys():
            raise ValueError(f"a prediction has {', '.join(sorted(names))}")
        return cls(**{name: kept[name] for name in names})


def now() -> str:
    """This moment, as predictions keep it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Row:
    """One line of the table: ``who`` asked what, what they said first, what is so, ``how`` it was, when, and what their notebook is.

    Of an exercise ``how`` is what its check said last, and ``hint`` the first of its hints; it has no other entries. ``tries``: how many
    predictions there are, of which the first counts.
    """

    who: str
    asked: str
    said: str
    truth: str
    how: str
    at: str
    tries: int
    hint: str
    notebook: str


@dataclass(frozen=True)
class HandedIn:
    """A table of what notebooks hold. ``left_out``: notebooks, and entries of them, that could not be read, a line each."""

    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """All of it in a sentence."""
        predicted = [row for row in self.rows if row.tries]
        exercises = [row for row in self.rows if not row.tries]
        right = sum(row.how in ("right", "close") for row in predicted)
        solved = sum(row.how == "Right" for row in exercises)
        people = len({row.who for row in self.rows})
        return (
            f"{people} learner{'s' * (people != 1)}: {right} of {len(predicted)} first predictions right or close, "
            f"{solved} of {len(exercises)} exercises solved."
        )

    def to_text(self) -> str:
        """For a terminal."""
        lines = [HEAD, *([plain(str(x), 60) for x in astuple(row)] for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(HEAD))]
        table = ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*table, self.answer, *(f"left out: {plain(line)}" for line in self.left_out)])

    def to_csv(self) -> str:
        """For a spreadsheet, which takes no text of a learner for a formula."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEAD)
        for row in self.rows:
            writer.writerow([f"'{x}" if isinstance(x, str) and x.startswith(FORMULA) else x for x in astuple(row)])
        return out.getvalue()

    def _repr_html_(self) -> str:
        table = html_table(HEAD, [[str(x) for x in astuple(row)] for row in self.rows], style="text-align:left")
        notes = "".join(f"<li>left out: {html.escape(line)}</li>" for line in self.left_out)
        return f"<p><b>{html.escape(self.answer)}</b></p>{table}<ul>{notes}</ul>"


HEAD = [field.name for field in fields(Row)]
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def predictions(notebook: Mapping[str, Any]) -> tuple[list[Prediction], int]:
    """Those that a notebook (its parsed JSON) holds, oldest first, and how many entries are none."""
    kept = notebook.get("metadata", {}).get(KEPT, {})
    lists = [*kept.values()] if isinstance(kept, Mapping) else [kept]
    found = [x for each in lists for x in (each if isinstance(each, list) else [each])]
    found += [data[MIME] for _, data in _outputs(notebook) if MIME in data]
    good, bad = dict[tuple[str, str], Prediction](), 0
    for entry in found:
        try:
            one = Prediction.from_json(entry)
            good.setdefault((one.question, one.at), one)
        except (ValueError, TypeError):
            bad += 1
    return sorted(good.values(), key=lambda one: datetime.fromisoformat(one.at)), bad


def gather(folder: str | Path) -> HandedIn:
    """What the notebooks below a folder hold, by learner.

    Who it is says the place: the first folder below ``folder`` (``anna/10_lesson_1_rarely.ipynb``), or else the name of the file.

    Raises
    ------
    RecipeError
        for a folder that is not there, or has no notebook in it.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not files:
        raise RecipeError(f"no notebooks in {folder}: give the folder that they were handed in to")
    rows, left_out = list[Row](), list[str]()
    for file in files:
        place = file.relative_to(folder)
        who = place.parts[0] if len(place.parts) > 1 else place.stem
        try:
            notebook = json.loads(file.read_text(encoding="utf-8-sig"))
            made, bad = list(_rows(who, place.stem, notebook)), predictions(notebook)[1]
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            left_out.append(f"{place}: {type(error).__name__}, it is no notebook that can be read")
            continue
        rows += made
        left_out += [f"{place}: {bad} entries that are no predictions"] if bad else []
    return HandedIn(tuple(rows), tuple(left_out))


def _rows(who: str, name: str, notebook: Mapping[str, Any]) -> Iterator[Row]:
    by_question: dict[str, list[Prediction]] = {}
    for one in predictions(notebook)[0]:
        by_question.setdefault(one.question, []).append(one)
    for question, (first, *more) in by_question.items():
        said, truth = (x if isinstance(x, str) else f"{x:.4g} {first.unit}".strip() for x in (first.said, first.truth))
        yield Row(who, question, said, truth, first.how, first.at, 1 + len(more), "", name)
    last = {}
    for cell, data in _outputs(notebook):
        told = data.get(CHECKED)
        if isinstance(told, Mapping) and "solution" not in cell["metadata"].get("tags", []):
            last[str(told.get("exercise"))] = told
    for exercise, told in last.items():
        hints = told.get("hints")
        hint = str(hints[0]) if isinstance(hints, list) and hints else ""
        yield Row(who, f"exercise: {exercise}", "", "", str(told.get("verdict")), "", 0, hint, name)


def _outputs(notebook: Mapping[str, Any]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Cells, and what each of their outputs holds by MIME type."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            yield cell, output.get("data", {})
