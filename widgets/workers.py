"""Who is up, down, late, sampled, slow? What became of the scenario."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lab.events import Ended, Event, Seated, Sent, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.growing import MANY, Growing
from widgets.answers import plural
from widgets.pictures import Bars, Lines, Note, Picture, Series
from widgets.sync_calendar import MISSED, extend
from widgets.timelines import Calendar, Marks
from widgets.view import View

MAX_ROWS = 64  # workers that are shown
MAX_BARS = 16
# What a worker may be doing, with its colour in the palette.
COMPUTES, SLOWLY, DOWN, LATE, UNSAMPLED = "computes", "computes slowly", "down", "not there yet", "not sampled"
TOO_SLOW, EMPTY = "too slow for the round", "no client there"
LOOKS = {COMPUTES: 2, SLOWLY: 1, DOWN: 3, LATE: 5, UNSAMPLED: 6, TOO_SLOW: 1, EMPTY: 4}
TURNS = "step {x}: {y} of the clients that were asked\n{name}"


@dataclass(eq=False, repr=False)
class Workers(View):
    """A row for every worker: what it does in each step, faint as the scenario foresees it, and when it is told what it missed.

    Where clients take turns in many rows, how many of them do what: a row is somebody else's in every round.

    recipe
        of the run to come, so that the scenario is there before it starts.
    """

    title = "Who is there?"
    reads = (Started, Seated, Stepped, Sent, Ended)

    recipe: Recipe | None = None
    spans: list[dict[str, tuple[list[int], list[int]]]] = field(default_factory=list, init=False)
    plan: list[dict[str, tuple[list[int], list[int]]]] = field(default_factory=list, init=False)
    told: list[Growing] = field(default_factory=list, init=False)
    last: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.recipe is not None:
            self._begin(self.recipe)

    def _begin(self, recipe: Recipe) -> None:
        num, scenario = recipe.num_workers, recipe.scenario
        self.slow, self.steps, self.last = scenario.slow, recipe.steps, 0
        self.turns = recipe.clients.take_turns(num)
        self.seated: Seated | None = None
        self.step, self.counts = Growing(), dict[str, Growing]()
        up_TW = scenario.trace(num, recipe.steps, recipe.seed).numpy()
        unsampled = replace(scenario, sample=None).trace(num, recipe.steps, recipe.seed).numpy() & ~up_TW
        self._unsampled_TW = unsampled
        self.plan = [{} if self.turns else self._planned(w, up_TW[:, w]) for w in range(num)]
        self.spans = [{} for _ in range(num)]
        self.told = [Growing() for _ in range(num)]

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(Recipe.recorded(event.recipe))
            case Seated():
                self.seated = event
            case Stepped():
                self.last = event.step
                self._step(event.step, [x is not None for x in event.loss_W])
            case Sent() if event.op == "broadcast":
                for w in event.workers:
                    if not len(self.told[w]) or self.told[w][-1] != event.step:
                        self.told[w].append(event.step)

    def _step(self, t: int, up_W: list[bool]) -> None:
        doing = [self._doing(t, w, up) for w, up in enumerate(up_W)]
        for w, what in enumerate(doing):
            extend(*self.spans[w].setdefault(what, ([], [])), t)
        if self.turns:
            for what in doing:
                if what not in self.counts:
                    self.counts[what] = Growing([0] * len(self.step))
            self.step.append(t)
            for what, count in self.counts.items():
                count.append(doing.count(what))

    def _doing(self, t: int, w: int, up: bool) -> str:
        if up:
            return SLOWLY if self.slow.get(w, 1.0) > 1 else COMPUTES
        if self._unsampled_TW[t - 1, w]:
            return UNSAMPLED
        if self.seated is not None and w >= len(self.seated.clients):
            return EMPTY
        if self.seated is not None and w in self.seated.late:
            return TOO_SLOW
        return DOWN if self.turns or COMPUTES in self.spans[w] or SLOWLY in self.spans[w] else LATE

    def _planned(self, w: int, up_T: np.ndarray) -> dict[str, tuple[list[int], list[int]]]:
        """What `_step` makes of all steps, at once."""
        works = SLOWLY if self.slow.get(w, 1.0) > 1 else COMPUTES
        has_worked = np.maximum.accumulate(up_T)
        runs = np.select([up_T, self._unsampled_TW[:, w], has_worked], [works, UNSAMPLED, DOWN], LATE)
        edges = np.flatnonzero(runs[1:] != runs[:-1])
        first, last = [1, *(edges + 2).tolist()], [*(edges + 1).tolist(), len(runs)]
        out: dict[str, tuple[list[int], list[int]]] = {}
        for a, b in zip(first, last, strict=True):
            spans = out.setdefault(str(runs[a - 1]), ([], []))
            spans[0].append(a)
            spans[1].append(b)
        return out

    def answer(self) -> str:
        if not self.spans:
            return "No run yet, and no recipe to look ahead with."
        num = len(self.spans)
        known = self.spans if self.last else self.plan
        steps = {what: sum(_length(*w[what]) for w in known if what in w) for what in LOOKS}
        when = f"Until step {self.last:,} of {self.steps:,}" if self.last else f"In the plan of {self.steps:,} steps"
        if not self.last and self.turns:
            return f"No step yet; clients take turns in {num:,} rows."
        away = [f"{what} for {steps[what]:,}" for what in LOOKS if what not in (COMPUTES, SLOWLY) and steps[what]]
        slow = f"; {steps[SLOWLY]:,} steps were slow" if steps[SLOWLY] else ""
        done, of = steps[COMPUTES] + steps[SLOWLY], sum(steps.values())
        if self.quiet:
            return f"{when} nothing happened: all {plural(num, 'worker')} computed in every step."
        return f"{when}, {done:,} of {of:,} steps of {plural(num, 'worker')} were taken{'; ' * bool(away)}{', '.join(away)}{slow}."

    def pictures(self) -> list[Picture]:
        if not self.spans:
            return [Note("Who does what?", "No run yet, and no recipe to look ahead with.")]
        if self.quiet:
            return []
        num = len(self.spans)
        if self.turns and num > MANY:
            lines = [Series(what, self.step, count, colour=LOOKS[what]) for what, count in self.counts.items()]
            return [Lines("How many do what?", "local step", f"of {num} workers", lines, hover=TURNS)]
        marks = [m for w in range(min(num, MAX_ROWS)) for m in self._marks(w)]
        title = "Who does what?" + (f" The first {MAX_ROWS} of {num} workers" if num > MAX_ROWS else "")
        rows = [f"w{w}" for w in range(min(num, MAX_ROWS))]
        tall = 30 if num <= 16 else 16
        out: list[Picture] = [Calendar(title, "local step", rows, marks, self.steps, self.last or None, tall)]
        if num <= MAX_BARS:
            out.append(self._taken())
        return out

    @property
    def quiet(self) -> bool:
        """Whether every worker computes in every step, so far and in the plan."""
        return not self.turns and not any({*spans} - {COMPUTES} for spans in (*self.spans, *self.plan))

    def _marks(self, w: int) -> list[Marks]:
        out = []
        for spans, faint in ((self.plan[w], True), (self.spans[w], False)):
            for what, (first, last) in spans.items():
                known = [(max(a, self.last + 1), b) for a, b in zip(first, last, strict=True) if b > self.last]
                known = known if faint else list(zip(first, last, strict=True))
                lane = (0.15, 0.85) if what in (COMPUTES, SLOWLY) else (0.35, 0.65)
                a, b = [a for a, _ in known], [b for _, b in known]
                out.append(Marks(w, what, a, b, colour=LOOKS[what], faint=faint, lane=lane))
        out.append(Marks(w, MISSED, self.told[w], colour=0, lane=(0.0, 1.0)))
        return out

    def _taken(self) -> Bars:
        """Local steps that each worker has taken."""
        names, taken, labels = [], [], []
        for w, spans in enumerate(self.spans):
            num = sum(_length(*spans[what]) for what in (COMPUTES, SLOWLY) if what in spans)
            slow = f", each {self.slow[w]:g}× as long" if w in self.slow else ""
            names.append(f"w{w}")
            taken.append(float(num))
            labels.append(f"{num} of {self.last}{slow}")
        return Bars(
            "How many steps did each take?", "local steps", names, taken, labels, colours=[LOOKS[COMPUTES]] * len(names)
        )


def _length(first: list[int], last: list[int]) -> int:
    return int(np.sum(last) - np.sum(first)) + len(first)
