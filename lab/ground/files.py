"""Names of files, whole files or none, and files that vouch for themselves.

Names are relative to the working directory in which a run began, wherever cells change to meanwhile. A file is written whole or
not at all. What must be what was written has its SHA-256 in a small file beside it, or (a line of JSON) a checksum at its end.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from lab.ground.errors import Damaged, LabError

NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a named pipe would keep a reader for ever
SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"}\n')
SEAL_BYTES = len(b',"crc":"00000000"}\n')
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


def numbered(path: Path) -> Iterator[Path]:
    """``name``, ``name-2``, ``name-3``, … in the same folder, without end: names for what is not to take the place of another."""
    return itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside, and in what is called from there, names of files are relative to this folder, wherever others change to."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


# --- whole files ------------------------------------------------------------------------------------------------------


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raises Damaged for what is no file (a folder, a pipe, a device), or cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | NO_WAIT)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise Damaged(f"{path} is not a plain file: remove it, or put back the file that was there")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}") from None
    return os.fdopen(file, "rb")


def locked(path: Path) -> TextIO | None:
    """Open the file and hold an advisory lock on it, which the system drops when it is closed or the process dies.

    None where another process holds it. Where the platform has no such locks, nobody does. A link is refused. Raises OSError.
    """
    file = open(path, "a+", encoding="utf-8", opener=_no_link)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        return None
    return file


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def sha256_of(file: Path | str) -> str:
    """Of the bytes of a file, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """All or nothing, also when the machine goes down or the disk is full: temporary file, fsync, rename. ``mode``: less the umask."""
    _write({path: data}, mode=mode)


def make_lasting(files: Iterable[Path]) -> None:
    """Have the disk hold what was written without waiting for it."""
    for path in files:
        with open(path, "r+b") as f:
            os.fsync(f.fileno())


def _write(files: Mapping[Path, bytes], lasting: bool = True, mode: int = 0o666) -> None:
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, data in files.items():
            temporary[path].unlink(missing_ok=True)
            with open(temporary[path], "xb", opener=partial(os.open, mode=mode)) as f:
                f.write(data)
                f.flush()
                if lasting:
                    os.fsync(f.fileno())
        for path in files:
            os.replace(temporary[path], path)
    except BaseException:
        for left in temporary.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)
        raise


# --- files that vouch for themselves ----------------------------------------------------------------------------------


def seal(line: bytes, state: int = 0) -> tuple[bytes, int]:
    """A JSON object with its checksum and a line end; the state of the sum before it, and then after it."""
    start = line[:-1]
    crc = zlib.crc32(start, state)
    end = b',"crc":"%08x"}\n' % crc
    return start + end, zlib.crc32(end, crc)


def claimed(lines: bytes) -> int | None:
    """The checksum in the last of some whole lines, right or wrong; None where it has none."""
    found = SEAL.fullmatch(lines, len(lines) - SEAL_BYTES) if len(lines) > SEAL_BYTES else None
    return int(found[1], 16) if found else None


def is_sealed(line: bytes) -> bool:
    """Whether a file of one line matches its checksum."""
    return claimed(line) == zlib.crc32(line[:-SEAL_BYTES])


def digest_beside(file: Path) -> dict[str, Any] | None:
    """What is written beside a file: its digest and more; None where it is missing or damaged."""
    try:
        with open_plain(file.with_suffix(".json")) as f:
            line = f.read(1 << 26)
        found = json.loads(line)
    except (OSError, LabError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or ("crc" in found and not is_sealed(line)):
        return None
    return found


def damage(file: Path) -> str | None:
    """Why a file with a digest beside it cannot be trusted, None if it can."""
    digest = digest_beside(file)
    if digest is None or not {"bytes", "sha256"} <= digest.keys():
        return "its digest is missing or unreadable"
    try:
        size = file.stat().st_size
        if size != digest["bytes"]:
            return f"{size} bytes instead of {digest['bytes']}"
        with open_plain(file) as f:
            got = hashlib.file_digest(f, "sha256").hexdigest()
    except (OSError, LabError):
        return "it cannot be read"
    return None if got == digest["sha256"] else "its content does not match its SHA-256"


def write_with_digest(file: Path, data: bytes, about: Mapping[str, Any] | None = None, lasting: bool = True) -> None:
    """A file, and a ``.json`` beside it with its size, its SHA-256 and what else there is to say: both or none of them.

    ``lasting``: wait until the disk holds them; else `make_lasting` does, before anything relies on them.
    """
    digest = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    line, _ = seal(json.dumps(dict(about or {}) | digest).encode())
    _write({file: data, file.with_suffix(".json"): line}, lasting)
