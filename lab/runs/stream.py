"""Events of a loop that is driven from outside: in memory, in a folder, and to whoever takes them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from lab.engine.world import World
from lab.events import Ended, Event, Started, Stepped, Warned
from lab.ground.errors import Diverged
from lab.processes.events import with_all_workers
from lab.runs.columns import Columns
from lab.runs.shared_folder import SharedFolder
from lab.runs.track import Sink

_WRITING: WeakValueDictionary[Path, Stream] = WeakValueDictionary()  # by folder


def leave(path: Path) -> None:
    """What is attached in this process and writes to that folder does so no longer: its script, or cell, has begun anew."""
    before = _WRITING.pop(path, None)
    if before is not None and before.ended is None and before.folder is not None:
        before.ended = Ended(getattr(before.events[-1], "step", 0) if before.events else 0, "stopped", "")
        before.folder.close()


class Stream:
    """The events of a run, as its steps come: with the values of all workers once the processes have exchanged them.

    Parameters
    ----------
    each
        called with every event.
    sinks
        of trackers, which never stop the run.
    """

    def __init__(self, world: World, each: Callable[[Event], None] | None = None, sinks: Sequence[Sink] = ()):
        self.world, self.each, self.sinks = world, each, sinks
        self.folder: SharedFolder | None = None
        self.events: list[Event] = []
        self.notes: list[str] = []  # for the reader, at the next step
        self.begun = False
        self.ended: Ended | None = None
        self._pending: list[Event] = []  # since the processes last exchanged their losses
        self._columns, self._folded = Columns(), 0

    def write_to(self, folder: SharedFolder, path: Path, notes: Sequence[str]) -> None:
        """From now on also into a folder that is open; what it holds comes first."""
        self.folder = folder
        self.notes += notes
        _WRITING[path] = self
        weakref.finalize(self, folder.close)  # also where nobody ends it: what happened is on disk
        for event in folder.events():
            self.tell(event)

    def begin(self, started: Started) -> None:
        """Before the first step of a run; one that goes on in its folder has begun."""
        self.begun = True
        if not self.events:
            self._pending.append(started)

    def add(self, t: int, *events: Event) -> None:
        """Note what has happened in step ``t``."""
        self._pending += [Warned(t, note) for note in self.notes]
        self._pending += events
        self.notes = []

    def flush(self) -> None:
        """Exchange losses with the other processes, and write what is pending.

        Raises
        ------
        Diverged
            for a loss that is no finite number, in all processes alike.
        """
        pending, self._pending = self._pending, []
        pending = with_all_workers(pending, self.world.mine or (), self.world)
        for event in pending:
            if self.folder is not None:
                self.folder.append(event)
            self.tell(event)
        for event in pending:
            if isinstance(event, Stepped) and math.inf in event.loss_W:
                raise Diverged(
                    f"loss of worker {event.loss_W.index(math.inf)} is no finite number in step {event.step}: try a smaller learning "
                    "rate (method.inner.lr) or more warm-up"
                )

    def end(self, ended: Ended) -> None:
        """Nothing more will happen. Nothing is exchanged."""
        self.ended = ended
        if self.folder is not None:
            self.folder.append_end(ended)
            self.folder.close()
        self.tell(ended)

    def tell(self, event: Event) -> None:
        """Add an event that is in the folder by now. What goes wrong with a tracker comes before it, and is not in the folder."""
        for sink in self.sinks:
            sink.add(event)
            if isinstance(event, Ended):
                sink.close()
            while sink.problems:
                self._add(Warned(getattr(event, "step", 0), sink.problems.popleft()))
        self._add(event)

    def _add(self, event: Event) -> None:
        self.events.append(event)
        if self.each is not None:
            self.each(event)

    @property
    def columns(self) -> Columns:
        for event in self.events[self._folded :]:
            self._columns.add(event)
        self._folded = len(self.events)
        return self._columns
