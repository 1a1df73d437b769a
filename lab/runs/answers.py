"""What installed packages have to say of a run in sentences with numbers: the questions of their views, and the answers.

A sentence belongs to the view whose picture it is true of, and the lab names no package that draws: views are found by the entry
point ``isthmus.answers``, as what shows runs in notebooks is (``isthmus.displays``). Each is a function of the events of one run that
returns questions with their answers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points

from lab.events import Event

ANSWERS = "isthmus.answers"
WIDTH = 118  # letters of a line

Answers = Callable[[Iterable[Event]], list[tuple[str, str]]]


def answered(events: Callable[[], Iterable[Event]]) -> list[tuple[str, str]]:
    """Questions and answers of all that is installed; none where nothing is, or where it cannot be loaded here."""
    out: list[tuple[str, str]] = []
    for point in entry_points(group=ANSWERS):
        try:
            answers: Answers = point.load()
        except ImportError:  # what draws may not be there in full: a run needs none of it
            continue
        out += answers(events())
    return out


def lines(answers: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """For a terminal: each question with its answer behind it, broken where it is long."""
    out: list[str] = []
    for question, answer in answers:
        out += textwrap.wrap(f"{question} {answer}", WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
    return out
