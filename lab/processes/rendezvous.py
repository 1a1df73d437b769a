"""How a launcher and its processes find each other on one machine: through a file of their own, without a port.

torchelastic's own ways open a port to every network that the machine is in, and one of them loads pickles from whatever it finds
behind it. Here the launcher needs nobody, so its store is in its own memory, and its processes are told of a file that only their user
can reach. `launch` works so. ``torchrun`` and Accelerate's launchers do with ``--rdzv-backend isthmus`` (``pyproject.toml`` tells them).
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lab.ground.errors import LabError, RecipeError

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousParameters

NAME = "isthmus"  # for torchelastic
LONGEST = 50  # bytes of the folder for temporary ones: the name of a Unix socket has room for little more than 100
LEFT_SECONDS = 3600.0  # what is younger may be that of a process which only another container can see
PATIENCE_SECONDS = 0.02  # between two looks


def create(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make the rendezvous; torchelastic calls this for a rendezvous of this name."""
    from lab.processes.one_machine import OneMachine  # and with it torchelastic, which takes a second

    return OneMachine(parameters, NAME, new_file)


def creator() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Return `create`; torchelastic calls this to find the rendezvous of other packages."""
    return create


def register() -> None:
    """Make the name known to torchelastic, also where this package is not installed."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(NAME, create)


# --- files to meet in ------------------------------------------------------------------------------------------------


def own_folder() -> Path:
    """A folder that nobody but this user can look into or write to.

    Raises
    ------
    RecipeError
        if somebody else has put something in its place.
    """
    base = tempfile.gettempdir()
    path = Path(base if len(os.fsencode(base)) < LONGEST else "/tmp") / f"isthmus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise RecipeError(
            f"{path} is not a folder that you alone can reach: remove it, or set TMPDIR to another place for such folders"
        )
    return path


def new_file(word: str) -> Path:
    """A name for a file that this process holds while it lives. What dead processes have left behind is removed."""
    folder = own_folder()
    for path, _ in _files(folder, alive=False):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFT_SECONDS:
                path.unlink()
    return folder / f"{word}-{os.getpid()}-{_began(os.getpid())}"


def file_of_first(port: int, index: int, timeout_seconds: float) -> Path:
    """The file in which the processes of a launcher that is not ours meet: the first one makes it, the others look for it.

    Raises
    ------
    RecipeError
        if the first process of another run that goes on has the same port.
    LabError
        if the first one does not come.
    """
    folder, word = own_folder(), f"port-{port}"
    others = [path for path, w in _files(folder, alive=True) if w == word]
    if index == 0:
        mine = new_file(word)
        if set(others) - {mine}:
            raise RecipeError(
                f"another run on this machine goes on under MASTER_PORT={port}: give this one another port"
            )
        mine.unlink(missing_ok=True)
        mine.touch(mode=0o600)
        return mine
    until = time.monotonic() + timeout_seconds
    while not others:
        if time.monotonic() > until:
            raise LabError(f"the first process of this run did not come within {timeout_seconds:g} s")
        time.sleep(PATIENCE_SECONDS)
        others = [path for path, w in _files(folder, alive=True) if w == word]
    return others[0]


def _files(folder: Path, alive: bool) -> Iterator[tuple[Path, str]]:
    """Files of processes that are still there, or are not; with the word that each was made with."""
    for path in folder.iterdir():
        parts = path.name.rsplit("-", 2)
        with contextlib.suppress(ValueError):
            word, pid, began = parts[0], int(parts[1]), int(parts[2])
            there = _began(pid)
            if (there is not None and abs(there - began) <= 2) == alive:
                yield path, word


def _began(pid: int) -> int | None:
    """When a process began, to a second or two (the clock that this is read from may be set); None if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time())
    except psutil.NoSuchProcess:
        return None
