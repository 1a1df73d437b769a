"""What was turned by hand? The knobs of a run, live or replayed, and from which step to which they stood elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lab.events import Ended, Event, KnobChanged, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.knobs import KNOBS, at_start, named_network
from widgets.answers import plural
from widgets.pictures import Note, Picture
from widgets.timelines import Calendar, Marks
from widgets.view import View

ROWS = {"lr": "learning rate", "sync_every": "sync periods", "down": "killed", "network": "link", "paused": "paused"}


@dataclass(eq=False, repr=False)
class Knobs(View):
    """A row for every knob that was turned, with a bar for as long as it stood elsewhere than in the recipe."""

    title = "What was turned by hand?"
    reads = (Started, Stepped, KnobChanged, Ended)

    recipe: Recipe | None = field(default=None, init=False)
    last: int = field(default=0, init=False)
    turned: dict[str, list[tuple[int, Any]]] = field(default_factory=dict, init=False)  # by knob: first step, value

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.recipe, self.last, self.turned = Recipe.recorded(event.recipe), 0, {}
            case Stepped():
                self.last = event.step
            case KnobChanged():
                turns = self.turned.setdefault(event.knob, [])
                if turns and turns[-1][0] == event.step and event.knob != "paused":
                    turns.pop()  # no step was taken with it
                turns.append((event.step, event.value))

    def answer(self) -> str:
        if self.recipe is None or not self.turned:
            return "No knob was turned: every one is where the recipe has it."
        spans = [m for p in self.pictures() if isinstance(p, Calendar) for m in p.marks]
        names = ", ".join(ROWS[k] for k in KNOBS if k in self.turned)
        says = f"{plural(len(self.turned), 'knob')} turned by hand ({names}), elsewhere than in the recipe {plural(len(spans), 'time')}"
        return says + (f", first from step {min(m.steps[0] for m in spans):,} on." if spans else ".")

    def pictures(self) -> list[Picture]:
        if self.recipe is None or not self.turned:
            return [Note("Which knob stood where?", "Every knob is where the recipe has it.")]
        knobs = [knob for knob in KNOBS if knob in self.turned]
        marks: list[Marks] = []
        for row, knob in enumerate(knobs):
            steps = [step for step, _ in self.turned[knob]]
            ends = [*(step - 1 for step in steps[1:]), max(self.last, steps[-1])]
            for (first, value), to in zip(self.turned[knob], ends, strict=True):
                if words := self._words(self.recipe, knob, value):
                    looks = next((m.colour for m in marks if m.name == words), len({m.name for m in marks}))
                    marks.append(Marks(row, words, [first], [max(first, to)], colour=looks))
        return [Calendar("Which knob stood where?", "local step", [ROWS[k] for k in knobs], marks, self.recipe.steps)]

    def _words(self, recipe: Recipe, knob: str, value: Any) -> str:
        """What a knob was turned to; nothing if that is where it stood at first."""
        first = at_start(recipe, knob)
        if value == first:
            return ""
        match knob:
            case "lr":
                return f"learning rate × {value:.3g}"
            case "sync_every" if isinstance(value, dict):
                return ", ".join(f"{state} every {n}" for state, n in value.items() if n != first.get(state))
            case "sync_every":
                return f"a sync every {value}"
            case "down":
                return f"worker{'s' * (len(value) > 1)} {', '.join(map(str, value))} down"
            case "network":
                return named_network(value) or "another link"
        return "waits"
