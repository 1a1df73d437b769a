"""TensorBoard: event files in a folder of their own for each run; ``tensorboard --logdir runs/tensorboard`` shows them.

All values of a local step are one record, so a step is there as a whole or not at all, also after the process was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard.summary import text as of_text

from lab.ground.files import located

FLUSH_SECONDS = 10  # until what was written can be seen


class TensorBoard:
    """``folder`` has one folder for each run, with the run's name."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        here = self.folder / name
        before = sorted(here.glob("events.out.tfevents.*"))
        last = max((_last_step(file) for file in before), default=0) if resume else 0
        _let_a_second_pass(before)
        self.writer = EventFileWriter(str(here), flush_secs=FLUSH_SECONDS)
        if before and not last:  # of another run of this name: whoever reads them forgets them from step 0 on
            self._write(0, session_log=SessionLog(status=SessionLog.START))
        if not last:
            self._write(0, summary=of_text("recipe", f"```json\n{json.dumps(recipe, indent=1)}\n```"))
        return last

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._write(step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]))

    def note(self, text: str, step: int, warning: bool) -> None:
        self._write(step, summary=of_text("warnings" if warning else "knobs", text))

    def finish(self, status: str) -> None:
        self.writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self.writer.add_event(Event(wall_time=time.time(), step=step, **what))


def _last_step(file: Path) -> int:
    """The last step of which an event file has values; what was torn off at its end is left out."""
    steps = [event.step for event in map(Event.FromString, RawEventFileLoader(str(file)).Load()) if _has_values(event)]
    return max(steps, default=0)


def _let_a_second_pass(files: Sequence[Path]) -> None:
    """Until a new file has a later name than these: readers take them by their names, which begin with a second."""
    newest = max((int(file.name.split(".")[3]) for file in files), default=0)
    time.sleep(min(1.0, max(0.0, newest + 1 - time.time())))


def _has_values(event: Event) -> bool:
    return any(value.WhichOneof("value") == "simple_value" for value in event.summary.value)


def made(place: str) -> TensorBoard:
    return TensorBoard(located(place))
