"""Who computes, who talks, and which state travels when? The dry run's plan, filled in as the run goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lab.events import Ended, Event, Sent, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.growing import Growing
from widgets.answers import plural
from widgets.forecasts import forecast
from widgets.pictures import Note, Picture
from widgets.timelines import Calendar, Marks
from widgets.view import View

MAX_ROWS = 12  # workers with a row each; more share one
COMPUTES, MISSED = "computes", "receives what it missed"
MAX_NAMED = 4  # states in one sentence
GREY = 6  # of the palette


@dataclass(eq=False, repr=False)
class SyncCalendar(View):
    """A row for every worker: when it computes, and a stroke for every state that it sends.

    recipe
        of the run to come: its dry run is there faintly, before the run starts and while it goes on.
    """

    title = "Who talks when?"
    reads = (Started, Stepped, Sent, Ended)

    recipe: Recipe | None = None
    done: _Days = field(default_factory=lambda: _Days(), init=False)
    plan: _Days | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.recipe is not None:
            self.plan = _Days.of(forecast(self.recipe).events())

    def fold(self, event: Event) -> None:
        if isinstance(event, Started):
            self.done = _Days()
        self.done.add(event)

    def answer(self) -> str:
        days = self.done if self.done.rows else self.plan
        if days is None or not days.rows:
            return "No run yet, and no recipe to look ahead with."
        if not self.done.last and self.plan is not None and self.plan.rows:
            days = self.plan
        times = {"what was missed" if state == MISSED else state: num for state, num in days.times.items()}
        each = [
            f"{name} {'at' if k else 'travels at'} {plural(num, 'step')}" for k, (name, num) in enumerate(times.items())
        ]
        when = (
            f"In the plan of {days.steps:,} steps" if days is self.plan else f"By step {days.last:,} of {days.steps:,}"
        )
        more = f" and {len(each) - MAX_NAMED} more" if len(each) > MAX_NAMED else ""
        return f"{when}, {', '.join(each[:MAX_NAMED]) or 'nothing has travelled'}{more}."

    def pictures(self) -> list[Picture]:
        known = self.done if self.done.rows else self.plan
        if known is None or not known.rows:
            return [Note("Who computes, who talks?", "No run yet, and no recipe to look ahead with.")]
        states = list(dict.fromkeys([*(self.plan.states if self.plan else ()), *self.done.states]))
        planned = self.plan.marks(states, faint=True) if self.plan else []
        last = max(known.steps, self.plan.steps if self.plan else 0, 1)
        tall = 34 if len(known.rows) > 1 else 60
        now = self.done.last or None
        marks = [*planned, *self.done.marks(states)]
        return [Calendar("Who computes, who talks?", "local step", known.rows, marks, last, now, tall)]


class _Days:
    """A run as spans of computing and strokes of talking, by row."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.states: list[str] = []
        self.steps, self.last, self.num_workers = 0, 0, 0
        self.spans: list[tuple[list[int], list[int]]] = []  # of each row: first steps, last steps
        self.talks: defaultdict[tuple[int, str], Growing] = defaultdict(Growing)
        self.times: dict[str, int] = {}  # steps at which each travelled
        self._travelled: dict[str, int] = {}  # the last of them
        self._seen: dict[tuple[int, str], int] = {}  # when this row last did that
        self._up: list[bool] = []  # which rows compute at present, and the ends of their spans
        self._ends: list[list[int]] = []

    @classmethod
    def of(cls, events: Iterable[Event]) -> _Days:
        days = cls()
        for event in events:
            days.add(event)
        return days

    def add(self, event: Event) -> None:
        match event:
            case Started():
                num, self.steps = int(event.recipe["num_workers"]), int(event.recipe["steps"])
                self.rows = [f"w{w}" for w in range(num)] if num <= MAX_ROWS else [f"{num} workers"]
                self.spans = [([], []) for _ in self.rows]
            case Stepped():
                up = [x is not None for x in event.loss_W]
                if up != self._up or event.step != self.last + 1:
                    rows = up if len(self.rows) > 1 else [any(up)]
                    self._up, self._ends = (
                        up,
                        [last for (_, last), is_up in zip(self.spans, rows, strict=True) if is_up],
                    )
                    for (first, last), is_up in zip(self.spans, rows, strict=True):
                        if is_up:
                            extend(first, last, event.step)
                else:
                    for last in self._ends:
                        last[-1] = event.step
                self.last = event.step
            case Sent():
                what = MISSED if event.op == "broadcast" else event.state
                if self._travelled.get(what) != event.step:
                    self._travelled[what] = event.step
                    self.times[what] = self.times.get(what, 0) + 1
                for row in event.workers if len(self.rows) > 1 else (0,):
                    if self._seen.get((row, what)) != event.step:
                        self._seen[row, what] = event.step
                        self.talks[row, what].append(event.step)
                        if what not in self.states:
                            self.states.append(what)

    def marks(self, states: list[str], faint: bool = False) -> list[Marks]:
        """Computing is a thin bar on top of a row; below it every state has a lane of its own."""
        out = []
        for row, (first, last) in enumerate(self.spans):
            out.append(Marks(row, COMPUTES, list(first), list(last), colour=GREY, faint=faint, lane=(0.1, 0.3)))
            high = 0.6 / max(1, len(states))
            for k, state in enumerate(states):
                at = self.talks.get((row, state))
                if at is not None:
                    lane = (round(0.32 + high * k, 3), round(0.32 + high * (k + 1), 3))
                    out.append(Marks(row, state, at, colour=k % GREY, faint=faint, lane=lane))
        return out


def extend(first: list[int], last: list[int], step: int) -> None:
    """Add a step to spans that are lists of first and last steps."""
    if last and last[-1] == step - 1:
        last[-1] = step
    else:
        first.append(step)
        last.append(step)
