"""Errors that are for users: each message is one line that says what was wrong, what is allowed and what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MOST_CHARACTERS = 1000  # of a message


def plain(text: str, most: int = MOST_CHARACTERS) -> str:
    """One line that a terminal shows as it stands: line ends and escape sequences written out, the middle left out if it is long.

    For whatever comes from a file or a user and is printed.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\xa0" else c.encode("unicode_escape").decode() for c in text)


class LabError(Exception):
    """Something went wrong that the user can act on. The command line, and a notebook, print the message alone: one line."""

    exit_code = 1

    def __init__(self, message: object = ""):
        super().__init__(plain(str(message)))

    def _render_traceback_(self) -> list[str]:  # what IPython asks for; the traceback itself is there as ever
        return [f"{type(self).__name__}: {self}"]


class RecipeError(LabError):
    """The input was wrong, found before anything started (exit code 2)."""

    exit_code = 2


class Damaged(RecipeError):
    """Something on disk is not what was written there. Nothing was changed."""


class Diverged(LabError):
    """A loss or a parameter stopped being a number."""


def shown(value: object, most: int = 100) -> str:
    """``repr(value)`` as it fits into a line: long text, lists and numbers are cut."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 4, most, most
    short.maxlist = short.maxtuple = short.maxdict = 12
    text = short.repr(value)
    return text if len(text) <= 2 * most else f"{text[:most]} … {text[-40:]}"


def one_of(what: str, got: object, allowed: Iterable[object]) -> str:
    """``unknown method 'deslok': use one of des_loc, diloco (did you mean 'des_loc'?)``"""
    names = [str(a) for a in allowed]
    close = difflib.get_close_matches(str(got)[:200], names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {what} {shown(str(got))}: use one of {', '.join(names)}{hint}"
