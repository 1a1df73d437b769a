"""Files of JSON lines that vouch for themselves: each line ends in a checksum over all that stands before it in its file.

::

    {"kind":"stepped","step":1, … ,"crc":"5a0c9d11"}

It is the CRC-32 of every byte up to it, earlier checksums included. So a flipped bit is noticed, and a line that is missing,
moved or of another file. A reader looks once at the bytes and never at the lines: where the last line of a piece is right, so
are those before it. Only where it is not does it go line by line, for the number of the first that is damaged. As a line gives the
state of the sum at its end, what follows can be checked from there: the end of a long file needs no beginning.

Files of earlier versions have no checksums. What is appended to them vouches for the old lines too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.ground.errors import Damaged
from lab.ground.files import NO_WAIT, SEAL, SEAL_BYTES, claimed, open_plain, seal

PIECE_BYTES = 1 << 22
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_MORE = re.compile(rb',"crc":"[0-9a-f]{8}"}[^\n]')  # a line end that has become something else


@dataclass(frozen=True)
class Vouched:
    """What somebody knows of the beginning of a file."""

    by: str
    num_bytes: int
    crc: int


@dataclass(frozen=True)
class Piece:
    """Some whole lines of a file; ``sealed``: the checksum in the last of them vouches for all."""

    number: int  # of its first line, from 1
    lines: bytes
    sealed: bool


def pieces(path: Path, vouched: Vouched | None = None) -> Iterator[Piece]:
    """All whole lines of a file, checked, some at a time. A last line without its end (the writer was killed) is left out.

    Raises
    ------
    Damaged
        with the number of the first line that is not what was written, when the lines before it have been given; at the end, where
        the file is shorter or other than ``vouched`` has it.
    FileNotFoundError
    """
    state = num_lines = num_bytes = 0
    sealed = False
    rest = b""
    with open_plain(path) as file:
        while data := file.read(PIECE_BYTES):
            lines, end, rest = (rest + data).rpartition(b"\n")
            lines += end
            if not lines:
                continue
            good = _good(lines, state, sealed)
            if good < len(lines):
                if good:
                    yield Piece(num_lines + 1, lines[:good], sealed or claimed(lines[:good]) is not None)
                raise _damaged(path, num_lines + lines[:good].count(b"\n") + 1, lines[good:], sealed)
            if vouched is not None and num_bytes < vouched.num_bytes <= num_bytes + len(lines):
                part = memoryview(lines)[: vouched.num_bytes - num_bytes]
                if zlib.crc32(part, state) != vouched.crc:
                    raise _not_counted_on(path, vouched)
            sealed = sealed or claimed(lines) is not None
            yield Piece(num_lines + 1, lines, sealed)
            state = zlib.crc32(lines, state)
            num_lines += lines.count(b"\n")
            num_bytes += len(lines)
    if _torn_otherwise(rest):
        raise Damaged(f"{path}: line {num_lines + 1:,} is damaged (it has no end)")
    if vouched is not None and num_bytes < vouched.num_bytes:
        raise Damaged(
            f"{path} has {num_bytes:,} of the {vouched.num_bytes:,} bytes that {vouched.by} counts on: "
            "put back the file that was there, or run it anew (`lab run … --again`)"
        )


def last_lines(path: Path, num_bytes: int, vouched: Vouched | None = None) -> list[bytes]:
    """The whole lines in about so many bytes at the end of a file, checked from the line before them. Raises as `pieces` does."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if vouched is not None:
            file.seek(max(0, vouched.num_bytes - SEAL_BYTES))
            end = file.read(SEAL_BYTES)
            found = SEAL.fullmatch(end)
            if found is None or zlib.crc32(end, int(found[1], 16)) != vouched.crc:
                for _ in pieces(path, vouched):  # it says why
                    pass
                raise _not_counted_on(path, vouched)
        start = max(0, size - num_bytes)
        file.seek(start)
        data = file.read(size - start)
    lines = data[: data.rfind(b"\n") + 1]
    torn = _torn_otherwise(data[len(lines) :])
    if start == 0:
        good = _good(lines, 0, False)
    else:
        first = lines.find(b"\n", lines.find(b"\n") + 1) + 1  # the end of the first whole one
        if first in (0, len(lines)):
            return last_lines(path, 8 * num_bytes)
        crc = claimed(lines[:first])
        state = zlib.crc32(lines[first - SEAL_BYTES : first], crc) if crc is not None else None
        lines = lines[first:]
        good = _good(lines, state, crc is not None)
    if good < len(lines) or torn:
        for _ in pieces(path):  # it says which
            pass
        raise Damaged(f"{path} is damaged near its end")
    return [line + b"\n" for line in lines.split(b"\n")[:-1]]


def _not_counted_on(path: Path, vouched: Vouched) -> Damaged:
    return Damaged(
        f"{path} is not what {vouched.by} counts on: put back the file that was there, or run it anew (`lab run … --again`)"
    )


def _torn_otherwise(rest: bytes) -> bool:
    """Whether a last line without its end is not the beginning of one, as a writer that is killed leaves it."""
    return _MORE.search(rest) is not None


def _good(lines: bytes, state: int | None, sealed: bool) -> int:
    """How many bytes of whole lines are right. ``state``: of the sum before them; None: not known, as no line has had one yet."""
    crc = claimed(lines)
    if crc is not None and state is not None and zlib.crc32(memoryview(lines)[:-SEAL_BYTES], state) == crc:
        return len(lines)
    if crc is None and not sealed and b',"crc":"' not in lines:
        return len(lines)
    place = good = 0
    while place < len(lines):
        end = lines.index(b"\n", place) + 1
        line = lines[place:end]
        crc = claimed(line)
        if crc is None:
            if sealed:
                return good
            state = zlib.crc32(line, state) if state is not None else None
        else:
            if state is not None and zlib.crc32(line[:-SEAL_BYTES], state) != crc:
                return good
            state, sealed = zlib.crc32(line[-SEAL_BYTES:], crc), True
        place = end
        good = place if sealed else good  # what has no checksum is vouched for by the next that has
    return place


def _damaged(path: Path, number: int, lines: bytes, sealed: bool) -> Damaged:
    line = lines[: lines.index(b"\n") + 1]
    if claimed(line) is None and not sealed:  # of an earlier version, before the first line with a checksum
        what = f"line {number:,} or one of those after it is damaged (the next checksum does not match)"
    elif claimed(line) is None:
        what = f"line {number:,} is damaged (it has no checksum)"
    else:
        what = f"line {number:,} is damaged, or does not belong there (its checksum does not match)"
    return Damaged(f"{path}: {what}")


class Log:
    """Appends lines to such a file. What was appended is in the file after `flush`; where that fails, none of it is.

    Parameters
    ----------
    keep_bytes
        to cut the file to first; None: to its last whole line.

    Raises
    ------
    OSError
        from every method that writes.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None):
        self.path = path
        self._waiting: list[bytes] = []
        self._state, self._sha256 = 0, hashlib.sha256()  # the state: those that wait included
        self.num_bytes = self._written = 0
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_nlink > 1:  # another name of the same file would change with it
                _own_copy(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK | NO_WAIT, 0o666)
        try:
            self.cut(keep_bytes)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, line: bytes) -> None:
        line, self._state = seal(line, self._state)
        self._waiting.append(line)

    def flush(self, sync: bool = False) -> None:
        """``sync``: on the disk as well, whatever happens to the machine."""
        data = b"".join(self._waiting)
        try:
            while data:
                done = os.write(self._file, data)
                self._sha256.update(data[:done])
                data = data[done:]
                self._written += done
            if sync:
                os.fsync(self._file)
        except OSError:
            self.cut(self.num_bytes)
            raise
        self._waiting.clear()
        self.num_bytes = self._written

    def cut(self, keep_bytes: int | None) -> None:
        """Take back all lines after so many bytes, also those that wait to be written. None: a line without its end."""
        self._waiting = []
        self._state, self._sha256 = 0, hashlib.sha256()
        self.num_bytes = 0
        size, whole = os.fstat(self._file).st_size, 0
        while self.num_bytes < (size if keep_bytes is None else keep_bytes):
            most = PIECE_BYTES if keep_bytes is None else min(PIECE_BYTES, keep_bytes - self.num_bytes)
            data = os.pread(self._file, most, self.num_bytes)
            if not data:
                raise OSError(0, f"it is shorter than {keep_bytes:,} bytes", str(self.path))
            self._state = zlib.crc32(data, self._state)
            self._sha256.update(data)
            if b"\n" in data:
                whole = self.num_bytes + data.rindex(b"\n") + 1
            self.num_bytes += len(data)
        if keep_bytes is None and whole < self.num_bytes:
            return self.cut(whole)
        if self.num_bytes < size:
            os.ftruncate(self._file, self.num_bytes)
        self._written = self.num_bytes

    @property
    def crc(self) -> int:
        """CRC-32 of all its bytes, as in `Vouched`."""
        return self._state

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes that were written."""
        return self._sha256.hexdigest()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            os.close(self._file)


def _own_copy(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open_plain(path) as old, open(temporary, "xb") as new:
            while data := old.read(PIECE_BYTES):
                new.write(data)
            new.flush()
            os.fsync(new.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
