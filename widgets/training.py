"""Training from a notebook: one line that says how far it is, and the columns at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.display import display

from lab.columns import Columns
from lab.events import Ended, Evaluated, Event, Sent, Started, Stepped
from lab.plan import human
from lab.recipe import Recipe
from lab.run import train


class _Line:
    """Text that shows itself and can be changed, a few times a second at most."""

    def __init__(self) -> None:
        self.text, self.shown = "", 0.0
        self.handle: Any = display({"text/plain": "…"}, raw=True, display_id=True)

    def say(self, text: str, now: bool = False) -> None:
        self.text = text
        if now or time.monotonic() - self.shown > 0.5:
            self.handle.update({"text/plain": text}, raw=True)
            self.shown = time.monotonic()


def train_all(recipes: Mapping[str, Recipe], runs: str | Path = "runs") -> dict[str, Columns]:
    """Train recipes one after another; each is written to ``runs/<id>/`` and read from there if it is finished already.

    Returns the columns of each under its label.
    """
    line, done, out = _Line(), [], {}
    width = max(len(name) for name in recipes)
    for k, (name, recipe) in enumerate(recipes.items(), start=1):
        began, sent, loss, tokens = time.monotonic(), 0, float("nan"), 0
        first = 0

        def show(event: Event) -> None:
            nonlocal sent, loss, tokens, first
            match event:
                case Started():
                    tokens = event.tokens_per_step
                case Sent():
                    sent += sum(event.payload_bytes.values()) * len(event.workers)
                case Evaluated():
                    loss = event.loss
                case Stepped():
                    first = first or event.step
                    spent = time.monotonic() - began
                    left = spent / event.step * (recipe.steps - event.step)
                    up = [x for x in event.loss_W if x is not None]
                    now = sum(up) / len(up) if up else float("nan")
                    line.say(
                        "\n".join(
                            [
                                *done,
                                f"{name:<{width}}  {k} of {len(recipes)}: step {event.step}/{recipe.steps}, loss {now:.3f}, "
                                f"{tokens * event.step / max(spent, 1e-9):,.0f} tokens/s, {human(sent)} sent, {left:.0f} s left",
                            ]
                        )
                    )
                case Ended():
                    pass

        out[name] = train(recipe, Path(runs) / recipe.id, each=show)
        seconds = sum(out[name].seconds)
        done.append(f"{name:<{width}}  {recipe.steps} steps, validation {loss:.4f}, {human(sent)} sent, {seconds:.0f} s")
        line.say("\n".join(done), now=True)
    return out
