"""What was tried and how it came out: a table for a cell of a notebook, and one assertion for a test."""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Generic, Literal, TypeVar

from lab.ground.errors import LabError, plain
from lab.study.tables import html_table

S = TypeVar("S")
Outcome = Literal["passed", "failed", "not applicable"]
SIGN: dict[Outcome, str] = {"passed": "✓", "failed": "✗", "not applicable": "·"}


class Broken(Exception):
    """A law does not hold; the message says in one line which tensor, worker or step shows it."""


class NotApplicable(Exception):
    """A law says nothing about what is checked; the message is the reason."""


@dataclass(frozen=True)
class Finding:
    """How one law came out.

    tried
        what was done to see whether it holds.
    says
        of a failure, one line: what was wrong where, and what is usually the cause; of what is not applicable, why.
    """

    law: str
    tried: str
    outcome: Outcome
    says: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """What `lab.testing` found: a table in a notebook and in a terminal. Nothing is raised but by `assert_all`."""

    about: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Those that do not hold."""
        return tuple(f for f in self.findings if f.outcome == "failed")

    def assert_all(self) -> None:
        """For tests. Raises AssertionError with a line for each law that does not hold."""
        if self.failed:
            raise AssertionError("\n".join(f"{self.about}, {f.law}: {f.says}" for f in self.failed))

    def to_text(self) -> str:
        wide = max([len(f.law) for f in self.findings], default=0)
        lines = [self._summary()]
        for f in self.findings:
            lines.append(f"{SIGN[f.outcome]} {f.law:<{wide}}  {f.tried}")
            if f.says:
                lines.append(f"{'':<{wide + 4}}{f.outcome}: {f.says}")
        return "\n".join(lines)

    def _summary(self) -> str:
        num = {kind: sum(f.outcome == kind for f in self.findings) for kind in SIGN}
        return f"{self.about}: " + ", ".join(f"{n} {kind}" for kind, n in num.items() if n)

    def _repr_html_(self) -> str:
        head = ("", "Law", "Tried", "Outcome")
        rows = [(SIGN[f.outcome], f.law, f.tried, f.outcome + (f": {f.says}" if f.says else "")) for f in self.findings]
        return f"<p>{html.escape(self._summary())}</p>" + html_table(head, rows, "text-align:left;vertical-align:top")

    def __repr__(self) -> str:
        return self.to_text()


@dataclass(frozen=True)
class Law(Generic[S]):
    """Something that has to hold of a subject.

    tried
        what ``hold`` does, in a few words.
    cause
        what is usually wrong where it does not hold, and what to do.
    hold
        raises `Broken` where it does not hold, and `NotApplicable` where it says nothing.
    """

    name: str
    tried: str
    cause: str
    hold: Callable[[S], None]

    def check(self, subject: S, exceptions: Mapping[str, str] | None = None) -> Finding:
        """``exceptions``: laws that the subject does not claim, each with its reason. Raises nothing."""
        if exceptions and self.name in exceptions:
            return Finding(self.name, self.tried, "not applicable", exceptions[self.name])
        try:
            self.hold(subject)
        except NotApplicable as reason:
            return Finding(self.name, self.tried, "not applicable", str(reason))
        except Broken as wrong:
            return Finding(self.name, self.tried, "failed", f"{wrong}; {self.cause}")
        except Exception as error:
            return Finding(self.name, self.tried, "failed", of_error(error))
        return Finding(self.name, self.tried, "passed")


class Laws(list[Law[S]]):
    """The laws of one kind of subject, in the order in which they are tried; `law` adds one."""

    def law(self, name: str, tried: str, cause: str) -> Callable[[Callable[[S], None]], Law[S]]:
        """Decorator: makes a law of a function that raises `Broken`."""

        def add(hold: Callable[[S], None]) -> Law[S]:
            self.append(Law(name, tried, cause, hold))
            return self[-1]

        return add

    def names(self) -> list[str]:
        return [law.name for law in self]


def report(about: str, laws: Sequence[Law[S]], subject: S, exceptions: Mapping[str, str] | None = None) -> Report:
    """All laws, one after another. What the first of them, which says whether there is anything to try, refuses is tried no further."""
    first = laws[0].check(subject)
    rest = [law.check(subject, exceptions) for law in laws[1:]] if first.outcome == "passed" else []
    return Report(about, (first, *rest))


def refused(about: str, law: Law[Any], error: Exception) -> Report:
    """What cannot be tried at all, in the place of its first law."""
    return Report(about, (Finding(law.name, law.tried, "failed", of_error(error)),))


def named(given: Any) -> str:
    """What a user gave, in a word: a name, or that of a function or class; of a `functools.partial` what it is one of."""
    inner = given.func if isinstance(given, partial) else given
    if isinstance(inner, Mapping):
        inner = inner.get("name", inner.get("size", "with options"))
    if isinstance(inner, str):
        return inner
    return str(inner.__name__) if isinstance(inner, type | FunctionType) else type(inner).__name__


def of_error(error: BaseException) -> str:
    """An error in one line: its class, and where in the user's code it was raised, if it is none that is for users."""
    message = plain((str(error).strip().splitlines() or [""])[0], 400)
    if isinstance(error, LabError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _ours(f.filename)]
    where = f" ({own[-1].filename.rsplit('/', 1)[-1]}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {message}{where}"


def _ours(filename: str) -> bool:
    return any(f"/{part}/" in filename.replace("\\", "/") for part in ("lab", "site-packages", "concurrent", "torch"))


def words(names: Iterable[object]) -> str:
    """``a, b and c``."""
    *others, last = map(str, names)
    return f"{', '.join(others)} and {last}" if others else last
