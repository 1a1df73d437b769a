"""What a run will send, without going through all of its steps: a calendar that knows which steps are alike.

A dry run has no numbers, so what local step t sends follows from what the method asks of t (``t % 32 == 0``), from who is
up, and from which states there are. `calendar` hands the method a `Step`, which answers like an integer and notes down the
questions with their answers. All steps that would have got the same answers send the same; only the first of them is
executed. A million steps of DES-LOC with three periods are four kinds of steps.

A step whose number is used for anything but such questions (a coin, a draw of partners) is executed itself. Methods are
frozen and keep what they remember in `State`, so nothing else can tell two steps apart; the learning rate is taken not to
decide what is sent.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from lab.costs.network import Bill, Meter, Network, Turn
from lab.events import Sent

Over = Callable[[np.ndarray], Any]  # a value that follows from the number of the step, for many of them, ``[n] -> [n]``
CHUNK = 4096  # steps looked at together: what a change of state makes worthless


class Asked:
    """What was asked of the number of one step."""

    def __init__(self) -> None:
        self.questions: list[tuple[Over, bool]] = []
        self.all = True  # nothing else was done with it

    def alike(self, steps: np.ndarray) -> np.ndarray:
        """Which of these steps would have got the same answers, bool ``[n]``."""
        at = np.arange(len(steps))
        for over, answer in self.questions:
            at = at[_of(over, steps[at]).astype(bool) == answer]
        same = np.zeros(len(steps), dtype=bool)
        same[at] = True
        return same


def _of(over: Over, steps: np.ndarray) -> np.ndarray:
    try:
        return np.broadcast_to(over(steps), steps.shape)
    except OverflowError:  # a period beyond 64 bits
        return np.broadcast_to(over(steps.astype(object)), steps.shape)


class Step:
    """The number of a local step, or what was computed from it, for `Asked` to know of."""

    def __init__(self, value: Any, asked: Asked, over: Over = lambda steps: steps):
        self._value, self._asked, self._over = value, asked, over

    def _with(self, f: Callable[..., Any], *others: Any) -> Step:
        overs = [x._over if isinstance(x, Step) else (lambda steps, x=x: x) for x in others]
        values = [x._value if isinstance(x, Step) else x for x in others]
        over: Over = lambda steps: f(self._over(steps), *(other(steps) for other in overs))  # noqa: E731
        return Step(f(self._value, *values), self._asked, over)

    def _answer(self, f: Callable[..., Any], *others: Any) -> bool:
        found = self._with(f, *others)
        self._asked.questions.append((found._over, bool(found._value)))
        return bool(found._value)

    def _used(self) -> Any:
        """The plain number, for whatever else is to be done with it."""
        self._asked.all = False
        return self._value

    def __divmod__(self, other: Any) -> tuple[Step, Step]:
        return self // other, self % other

    def __bool__(self) -> bool:
        return self._answer(operator.ne, 0)

    def __hash__(self) -> int:
        return hash(self._used())

    def __index__(self) -> int:
        return int(self._used())

    def __int__(self) -> int:
        return int(self._used())

    def __float__(self) -> float:
        return float(self._used())

    def __repr__(self) -> str:
        return repr(self._used())

    def __format__(self, spec: str) -> str:
        return format(self._used(), spec)

    def __truediv__(self, other: Any) -> Any:
        return self._used() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._used()

    def __pow__(self, other: Any) -> Any:
        return self._used() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self._used()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._used(), name)


def _operators() -> None:
    def value(f: Callable[..., Any], turned: bool = False) -> Callable[..., Step]:
        ordered = (lambda a, b: f(b, a)) if turned else f
        return lambda self, *other: self._with(ordered, *other)

    def answer(f: Callable[..., Any]) -> Callable[..., bool]:
        return lambda self, other: self._answer(f, other)

    for name in ("add", "sub", "mul", "floordiv", "mod"):
        setattr(Step, f"__{name}__", value(getattr(operator, name)))
        setattr(Step, f"__r{name}__", value(getattr(operator, name), turned=True))
    for name in ("neg", "abs"):
        setattr(Step, f"__{name}__", value(getattr(operator, name)))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Step, f"__{name}__", answer(getattr(operator, name)))


_operators()


@dataclass(frozen=True)
class Calendar:
    """What is sent in each local step.

    ``kinds`` are the different steps there are, as the `Sent` records of one (whose ``step`` is 0); step t is of the kind
    ``which_T[t − 1]``, int ``[steps]``.
    """

    kinds: tuple[tuple[Sent, ...], ...]
    which_T: np.ndarray

    @classmethod
    def of(cls, records: Iterable[Sent], steps: int) -> Calendar:
        """Of a ledger, record by record."""
        made, which = Kinds(), np.zeros(steps, dtype=np.int32)
        made.index(())
        for step, same in groupby(records, key=lambda r: r.step):
            which[step - 1] = made.index(tuple(same))
        return cls(tuple(made.kinds), which)

    @cached_property
    def times(self) -> list[int]:
        """How many steps there are of each kind."""
        return np.bincount(self.which_T, minlength=len(self.kinds)).tolist()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Sent]:
        """All records, as the ledger of the run will have them."""
        sends = np.array([bool(kind) for kind in self.kinds])[self.which_T]
        for i in np.flatnonzero(sends).tolist():
            for record in self.kinds[self.which_T[i]]:
                yield replace(record, step=i + 1)

    def total_bytes(self, worker: int) -> int:
        """Payload bytes of one worker, on its own link."""
        return sum(
            times * record.bytes_each
            for times, kind in zip(self.times, self.kinds, strict=True)
            for record in kind
            if worker in record.workers and not record.level
        )

    def price(
        self,
        network: Network,
        *,
        num_workers: int,
        compute_seconds: float = 0.0,
        slow: dict[int, float] | None = None,
        turns: Sequence[Turn] = (),
    ) -> Bill:
        """What it costs on a network, as `lab.costs.network.Network.price` says of the records, each kind of step looked at once."""
        meter = Meter(network, num_workers, compute_seconds, slow, turns)
        seconds, _ = meter.through(np.arange(1, len(self.which_T) + 1), self.which_T, self.kinds)
        return meter.bill(np.concatenate([[0.0], seconds]))


class Kinds:
    """Steps sorted by what they send. Those that send the same are of one kind, which is kept once, with ``step`` 0."""

    def __init__(self) -> None:
        self.kinds: list[tuple[Sent, ...]] = []
        self.bytes_all: list[int] = []  # of each kind: payload of all workers
        self._known: dict[Any, int] = {}

    def index(self, records: Sequence[Sent]) -> int:
        """The kind of a step that sends this."""
        key = tuple([(r.op, r.state, r.workers, r.level, *r.payload_bytes.items()) for r in records])
        kind = self._known.get(key)
        if kind is None:
            kind = self._known[key] = len(self.kinds)
            self.kinds.append(tuple(replace(r, step=0) for r in records))
            self.bytes_all.append(sum(r.bytes_all for r in records))
        return kind


class DryRun(Protocol):
    """A dry run (`lab.runs.dry.DryRun`), as far as it is needed here."""

    @property
    def up_TW(self) -> np.ndarray:
        """Who is up in each local step, bool ``[steps, workers]``; there may be more columns of what tells steps apart."""

    def dry_step(self, number: int, t: Any) -> list[Sent]:
        """Local step ``number``, which the method gets as ``t``: what was sent."""

    def skip_to(self, up: list[bool]) -> None:
        """Go on as if steps had passed in which nothing changed but who is up: one of the rows of ``up_TW``."""

    def who(self) -> Any:
        """Who was up in the step before, and who holds the present state; to be compared and hashed, as is `structure`."""

    def structure(self) -> Any:
        """Whatever else decides, beside its number, what a step sends: which states there are, which expert is where."""


def calendar(run: DryRun) -> Calendar:
    """The calendar of a dry run that has not begun."""
    up_TW, kinds = run.up_TW, Kinds()
    which_T = np.zeros(len(up_TW), dtype=np.int32)
    known: dict[Any, list[tuple[Asked, int | None]]] = defaultdict(list)  # None: each of them has to be executed

    def execute(t: int) -> tuple[Asked, int]:
        asked = Asked()
        which_T[t - 1] = kind = kinds.index(run.dry_step(t, Step(t, asked)))
        return asked, kind

    def go_through(first: int, end: int) -> None:
        """Steps ``first`` to ``end`` − 1, in all of which the same workers are up."""
        while first < end:
            now = up_TW[first - 1].tolist()
            key = (run.structure(), run.who(), tuple(now))
            steps = np.arange(first, min(end, first + CHUNK))
            todo = np.ones(len(steps), dtype=bool)  # not known yet, or to be executed
            unknown = todo.copy()
            for asked, kind in known[key]:
                _note(asked, kind, steps, which_T, todo, unknown)
            first = int(steps[-1]) + 1
            for t in steps.tolist():
                i = t - int(steps[0])
                if not todo[i]:
                    continue
                asked, kind = execute(t)
                if run.structure() != key[0]:  # what was known holds no longer
                    first = t + 1
                    break
                if unknown[i]:
                    known[key].append((asked, kind if asked.all else None))
                    _note(*known[key][-1], steps, which_T, todo, unknown)
            else:
                run.skip_to(now)

    changes = 2 + np.flatnonzero((up_TW[1:] != up_TW[:-1]).any(1))
    for first, end in zip([1, *changes.tolist()], [*changes.tolist(), len(up_TW) + 1], strict=True):
        go_through(first, first + 1)  # who is back gets in this step what it missed
        go_through(first + 1, end)
    return Calendar(tuple(kinds.kinds), which_T)


def _note(
    asked: Asked, kind: int | None, steps: np.ndarray, which_T: np.ndarray, todo: np.ndarray, unknown: np.ndarray
) -> None:
    """What is known now of those among ``steps`` of which nothing was."""
    at = np.flatnonzero(unknown)
    at = at[asked.alike(steps[at])]
    unknown[at] = False
    if kind is not None:
        which_T[steps[at] - 1] = kind
        todo[at] = False
