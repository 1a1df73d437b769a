"""Work that is not a training run, written down: settings, and events that views fold as they fold those of a run.

::

    runs/records/<kind>-<hash>/
        settings.json       everything needed to do it again
        events.jsonl        one event a line, each with a checksum (`lab.runs.lines`), `CellDone` at the end of each cell
        files/              tensors that cells have left for later ones, each with its SHA-256
        lock                held by the process that writes

A **cell** is a piece of the work with a name, such as one seed of one method. What a cell yields counts once the whole cell is
there, so whoever is killed and begins again does the cells that are missing, and no other. Cells come in the order in which they are
listed, and may look at what earlier ones have left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import to_jsonable_python
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from lab.events import CellDone, Event, read, to_bytes
from lab.ground.errors import Damaged
from lab.ground.files import damage, shown, write_atomically, write_with_digest
from lab.runs.folder import UNREADABLE, held, writing
from lab.runs.lines import Log, pieces
from lab.runs.stored import ENDING, read_small, rounded, store, write_small

PLACE = "records"  # within a folder of runs
AGAIN = "the same call, or command"


class Settings(Protocol):
    """A frozen dataclass of what makes JSON (`lab.ground.config.config`)."""

    @property
    def kind(self) -> str: ...  # what work it is, in one word; a ClassVar


Work = Callable[["Record"], Iterable[Event]]
"""What a cell does: yields its events; the record has those of the cells before."""


class Record:
    """One piece of work on disk, to be read; `fill` writes it.

    events
        of all whole cells, in order; while it is filled, also those of the cell that is being done.
    cells
        seconds that each whole cell took, by its name.
    stored
        the events of a record that is kept in small form (`fill`): nothing is read from ``path``, where tensors may be missing.
    """

    def __init__(self, path: str | Path, stored: Iterable[Event] | None = None):
        self.path = Path(path)
        self.events: list[Event] = [*(stored or ())]
        self.cells = {event.cell: event.seconds for event in self.events if isinstance(event, CellDone)}
        self._whole_bytes = 0
        if stored is None:
            self._read()

    def _read(self) -> None:
        """Raises Damaged for the first line that is not what was written; a cell without its end is left out."""
        file, cell, place = self.path / "events.jsonl", list[Event](), 0
        for piece in pieces(file) if file.exists() else ():
            for number, line in enumerate(piece.lines.splitlines(keepends=True), piece.number):
                place += len(line)
                try:
                    (event,) = read(line)
                except UNREADABLE:
                    raise Damaged(
                        f"{file}: line {number:,} is damaged: remove {self.path}, and it is done anew"
                    ) from None
                cell.append(event)
                if isinstance(event, CellDone):
                    self.events += cell
                    self.cells[event.cell] = event.seconds
                    self._whole_bytes, cell = place, []

    @property
    def settings(self) -> dict[str, Any]:
        """What ``settings.json`` says. Raises Damaged."""
        try:
            found = json.loads((self.path / "settings.json").read_bytes())
            return dict(found)
        except (OSError, *UNREADABLE) as error:
            raise Damaged(
                f"{self.path / 'settings.json'} cannot be read ({error}): remove {self.path}, and it is done anew"
            ) from None

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Leave tensors for later cells, and for whoever reads the record."""
        data = as_bytes({key: value.detach().contiguous() for key, value in tensors.items()})
        with writing(self.path, go_on=AGAIN):
            (self.path / "files").mkdir(exist_ok=True)
            write_with_digest(self.path / "files" / f"{name}.safetensors", data)

    def kept(self, name: str) -> dict[str, Tensor]:
        """What a cell has left under that name. Raises Damaged."""
        file = self.path / "files" / f"{name}.safetensors"
        problem = damage(file) if file.exists() else "it is missing"
        try:
            if problem is None:
                return load_file(file)
        except (SafetensorError, *UNREADABLE) as error:
            problem = str(error)
        raise Damaged(f"{file} cannot be used ({problem}): remove {self.path}, and it is done anew")

    def do(self, cells: Mapping[str, Work], tell: Callable[[Event], None]) -> None:
        """Do those that are missing, and write them down. For `fill`, which has the lock."""
        with writing(self.path, go_on=AGAIN):
            log = Log(self.path / "events.jsonl", self._whole_bytes)
        with contextlib.closing(log):
            for name, work in cells.items():
                if name in self.cells:
                    continue
                begun = time.perf_counter()
                for event in work(self):
                    self._add(event, log, tell)
                self.cells[name] = time.perf_counter() - begun
                self._add(CellDone(len(self.cells), name, self.cells[name]), log, tell)
                with writing(self.path, go_on=AGAIN):
                    log.flush(sync=True)

    def _add(self, event: Event, log: Log, tell: Callable[[Event], None]) -> None:
        log.append(to_bytes(event))
        self.events.append(event)
        tell(event)


def identity(settings: Settings, inputs: Mapping[str, Any] | None = None) -> str:
    """Its kind, and eight digits of a hash of all settings, and of what else the work hangs on."""
    text = json.dumps(_plain(settings, inputs), sort_keys=True)
    return f"{settings.kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def fill(
    settings: Settings,
    cells: Mapping[str, Work],
    runs: str | Path = "runs",
    *,
    inputs: Mapping[str, Any] | None = None,
    stored: str | Path = "",
    again: bool = False,
    tell: Callable[[Event], None] = lambda event: None,
) -> Record:
    """Do the cells that the record of these settings does not have yet, and return it.

    Parameters
    ----------
    inputs
        plain JSON values that settings only name, such as the recipe of a preset: with others it is another record.
    stored
        a folder of whole records in small form (`lab.runs.stored`), without tensors: what is there is read and not done, what is done is added.
    again
        all of them, whatever is there.
    tell
        called with every event, first with those that are there: a view, or a line of progress.

    Raises
    ------
    Busy
        if another process writes it.
    Damaged
        where it is not what was written.
    LabError
        where it cannot be written.
    """
    path = Path(runs) / PLACE / identity(settings, inputs)
    plain = _plain(settings, inputs)
    small = store(stored) / f"{path.name}{ENDING}" if stored else None
    if small is not None and small.exists() and not again:
        return _told(Record(path, _stored(small, plain, cells)), tell)
    with writing(path, go_on=AGAIN):
        path.mkdir(parents=True, exist_ok=True)
    with held(path):
        with writing(path, go_on=AGAIN):
            if again:
                (path / "events.jsonl").unlink(missing_ok=True)
            write_atomically(path / "settings.json", json.dumps(plain, indent=1).encode())
        record = _told(Record(path), tell)
        record.do(cells, tell)
    if small is not None:
        with writing(small.parent, go_on=AGAIN):
            write_small(small, json.dumps(plain).encode(), rounded(record.events))
    return record


def _told(record: Record, tell: Callable[[Event], None]) -> Record:
    for event in record.events:
        tell(event)
    return record


def _stored(file: Path, settings: dict[str, Any], cells: Mapping[str, Work]) -> list[Event]:
    """Of a record in small form. Raises Damaged where it is none of these settings, or has not all cells."""
    first, events = read_small(file)
    whole = cells.keys() <= {event.cell for event in events if isinstance(event, CellDone)}
    if json.loads(first) != settings or not whole:
        raise Damaged(
            f"{shown(file)} {'is a record of other settings' if whole else 'is only part of a record'}: remove it, and it is made anew"
        )
    return events


def _plain(settings: Settings, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    values: dict[str, Any] = to_jsonable_python(settings)
    return {"kind": settings.kind} | values | ({} if inputs is None else {"inputs": dict(inputs)})
