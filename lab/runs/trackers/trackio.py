"""trackio: a database of one's own, without an account; ``trackio show --project isthmus`` shows it.

Where it writes is trackio's own matter: ``TRACKIO_DIR``, or ``TRACKIO_SPACE_ID`` for a Space of Hugging Face. What fails while it writes it says
itself, and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio


class Trackio:
    def __init__(self, project: str):
        self.project = project

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        self.run = trackio.init(
            self.project,
            name,
            config=dict(recipe),
            resume="allow" if resume else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        last: int = self.run._next_step - 1  # it knows, for its own databases and for those elsewhere
        return max(0, last)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step)

    def note(self, text: str, step: int, warning: bool) -> None:
        level = trackio.AlertLevel.WARN if warning else trackio.AlertLevel.INFO
        self.run.alert("Isthmus", text, level, step)

    def finish(self, status: str) -> None:
        self.run.finish()


def made(place: str) -> Trackio:
    return Trackio(place)
