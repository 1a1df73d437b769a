"""What names of files are relative to: the working directory in which a run began, wherever cells change to meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from lab.errors import LabError

_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


def working_folder() -> Path:
    """What names of files are relative to: where the run of this thread began, or else the working directory."""
    try:
        return _FOLDER.get() or Path.cwd()
    except FileNotFoundError:
        raise LabError("the working directory is not there any more: change to one that is (os.chdir)") from None


def located(name: str | Path) -> Path:
    """An absolute path (``~`` is the home folder)."""
    return working_folder() / Path(name).expanduser()


def shown(path: Path) -> str:
    """A path as it is written where one stands."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):
        return str(path)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside, and in what is called from there, names of files are relative to this folder, wherever others change to."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)
