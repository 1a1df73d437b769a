"""Weights & Biases: to one's account, or with ``WANDB_MODE=offline`` into the folder ``wandb``, for ``wandb sync`` to send later.

The id of a run there is its name here. What is offline cannot be asked how far it has come: of a run that goes on, the newest of its
files has all steps, and is the one to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb


class WeightsAndBiases:
    def __init__(self, project: str):
        self.project = project

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        self.run = wandb.init(
            project=self.project,
            id=name,
            name=name,
            config=dict(recipe),
            resume="allow" if resume else None,
            reinit="create_new",  # several runs at a time
            settings=wandb.Settings(silent=True, console="off"),
        )
        last: int = self.run.step - 1  # its step is the one that comes next
        return max(0, last)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def note(self, text: str, step: int, warning: bool) -> None:
        if warning:
            self.run.alert("Isthmus", text, level="WARN")
        else:
            self.run.log({"knobs": text}, step=step)

    def finish(self, status: str) -> None:
        self.run.finish(exit_code=1 if status == "failed" else 0)


def made(place: str) -> WeightsAndBiases:
    return WeightsAndBiases(place)
