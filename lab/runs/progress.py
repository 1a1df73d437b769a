"""A run so far, in one line: what a terminal, a cell, a panel and whoever executes a notebook say while it goes on."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from lab.costs.network import duration, human
from lab.events import Ended, Evaluated, Event, KnobChanged, Sent, Started, Stepped

FILE = "ISTHMUS_PROGRESS_FILE"  # environment variable: where a notebook that trains reports how far it is
RECENT = 64  # steps from whose pace the time that is left follows


class Progress:
    """A fold of a run's events; feed it all of them. ``steps`` are those of the recipe.

    ``loss`` is that of the last step in words, with how many workers are up where not all are; ``validation`` in nats per token (None before there is one),
    ``bytes_sent`` the payload of all workers, ``seconds`` what all steps took here.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic):
        self.steps, self._clock = steps, clock
        self._begin(None)

    def _begin(self, started: Started | None) -> None:
        self.started = started
        self.ended: Ended | None = None
        self.step, self.bytes_sent, self.seconds = 0, 0, 0.0
        self.loss = ""
        self.validation: float | None = None
        self.tokens_per_second = 0.0  # of the last step in this process; 0 where nobody was up
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # when steps were done, and which

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(event)
            case Stepped():
                tokens = self.started.tokens_per_step * event.num_up / len(event.loss_W) if self.started else 0
                self.tokens_per_second = tokens / event.seconds if event.seconds else 0.0
                some = 0 < event.num_up < len(event.loss_W)
                up = f" ({event.num_up} of {len(event.loss_W)} workers up)" if some else ""
                self.step, self.loss = event.step, event.words + up
                self.seconds += event.seconds
                self._recent.append((self._clock(), event.step))
            case Sent():
                self.bytes_sent += event.bytes_all
            case Evaluated():
                self.validation = event.loss
            case KnobChanged() if event.knob == "paused":
                self._recent.clear()  # how long somebody thinks says nothing of what is left
            case Ended():
                self.ended = event

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last steps, evaluations included; None where that is not known, or nothing is left."""
        if self.ended is not None or len(self._recent) < 2:
            return None
        (began, first), (now, last) = self._recent[0], self._recent[-1]
        return (now - began) / (last - first) * (self.steps - last)

    def present(self) -> str:
        """The part after the step count, for progress bars: ``loss 2.513, 81,920 tokens/s, 12.8 MB sent by all``."""
        counted = self.started.counted if self.started else "tokens"
        known = self.ended is None and self.loss and (self.started is None or self.started.tokens_per_step)
        speed = [f"{self.tokens_per_second:,.0f} {counted}/s"] if known else []
        return ", ".join([*([self.loss] if self.loss else []), *self._validation(), *speed, self._sent()])

    def text(self) -> str:
        """All of it: ``step 12 of 2,000, loss 2.513, 81,920 tokens/s, 12.8 MB sent by all, 40 s left``."""
        parts = [self._step(), self.present(), *self._left()]
        if self.ended is not None and self.ended.message:
            parts.append(self.ended.message)
        return ", ".join(parts)

    def summary(self) -> str:
        """One line on a run that is over: ``2,000 steps, validation 2.4991, 12.8 MB sent by all, 80 s``."""
        return ", ".join([f"{self.step:,} steps", *self._validation(), self._sent(), duration(round(self.seconds))])

    def pace(self) -> str:
        """How far it is, and nothing of what came of it: ``step 12 of 2,000, 40 s left``."""
        return ", ".join([self._step(), *self._left()])

    def _step(self) -> str:
        return f"step {self.step:,} of {self.steps:,}"

    def _left(self) -> list[str]:
        left = self.seconds_left
        return [] if left is None else [f"{duration(round(left))} left"]

    def _validation(self) -> list[str]:
        return [] if self.validation is None else [f"validation {self.validation:.4f}"]

    def _sent(self) -> str:
        return f"{human(self.bytes_sent)} sent by all"


def report(line: str) -> None:
    """Write ``line`` to the file named by `FILE`, which `lab.study` reads while it executes a notebook; without one, nothing."""
    if file := os.environ.get(FILE):
        Path(file).write_text(line, encoding="utf-8")
