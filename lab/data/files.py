"""Files of text: finding them, telling whether they are what they were, and reading them little at a time.

What is trusted: a file whose path, size, time of change, time of change of its inode (``ctime``, which no ordinary program
can set back) and inode number are what they were is not read again. A clock has ticks, so a file that was changed less
than two seconds before it was looked at is not trusted yet. Not noticed is then only what goes around the file system's
own times: the disk written to directly, or a machine whose clock was set back to the same nanosecond.
"""

from __future__ import annotations

import codecs
import fnmatch
import glob
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.ground.errors import RecipeError
from lab.ground.files import sha256_of, working_folder

MOST = 250_000  # files and folders that are looked at for one path
CHUNK = 1 << 20  # bytes that are read at a time
SETTLED_NS = 2_000_000_000  # since its last change, until a file is known by its stamp
BOM = codecs.BOM_UTF8
OTHER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}

Stamp = tuple[str, int, int, int, int]


def expanded(path: str, what: str) -> Path:
    """The absolute path of a name; ``what`` it is for. Raises RecipeError for the home of a user that there is not."""
    return working_folder() / with_home(path, what)


def with_home(path: str, what: str) -> Path:
    """A path with ``~`` and ``~name`` written out."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = path.split("/")[0]
        raise RecipeError(
            f"{what}: {path!r} cannot be found, there is no home of {name!r}: write the path in full"
        ) from None


def stamp(path: Path | str) -> Stamp:
    """(path, size in bytes, time of change in ns, that of its inode in ns, inode) of a file."""
    stat = os.stat(path)
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def settled(stamps: Iterable[Sequence[Any]]) -> bool:
    """Whether all the files had been left alone for a while when their stamps were taken, just now."""
    newest = max((s[3] for s in stamps), default=0)
    return newest < time.time_ns() - SETTLED_NS


# --- finding ----------------------------------------------------------------------------------------------------------


class Finder:
    """Finds what a path names: a file, the files of a folder, or those that a glob fits. Looks at so many entries at most."""

    def __init__(self, what: str):
        self.what, self.seen = what, 0  # words for the error; entries so far

    def below(self, folder: Path) -> list[Path]:
        """All files below a folder, by name; hidden ones, and folders that are links, are not looked into."""
        found = []
        for entry in self._entries(folder, strict=True):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                found += self.below(folder / entry.name)
            elif os.path.isfile(entry.path):
                found.append(folder / entry.name)
        return found

    def fits(self, pattern: str) -> list[Path]:
        """The files that a glob fits, as `glob.glob` has it: ``**`` is any number of folders, none of them hidden."""
        path = with_home(pattern, self.what)
        base = Path(path.anchor) if path.anchor else working_folder()
        parts = [p for p in path.parts if p != path.anchor]
        return sorted(p for p in set(self._fits(base, parts)) if os.path.isfile(p))

    def _fits(self, base: Path, parts: Sequence[str]) -> Iterator[Path]:
        if not parts:
            yield base
            return
        head, rest = parts[0], parts[1:]
        if head == "**":
            for folder in self._folders(base, set()):
                yield from self._fits(folder, rest or ["*"])
        elif glob.has_magic(head):
            for entry in self._entries(base):
                if fnmatch.fnmatchcase(entry.name, head) and (head.startswith(".") or not entry.name.startswith(".")):
                    yield from self._fits(base / entry.name, rest)
        elif os.path.lexists(base / head):
            yield from self._fits(base / head, rest)

    def _folders(self, folder: Path, known: set[tuple[int, int]]) -> Iterator[Path]:
        """A folder and all below it, each once, whatever links lead to it."""
        try:
            stat = os.stat(folder)
        except OSError:
            return
        if (stat.st_dev, stat.st_ino) in known:
            return
        known.add((stat.st_dev, stat.st_ino))
        yield folder
        for entry in self._entries(folder):
            if not entry.name.startswith(".") and os.path.isdir(entry.path):
                yield from self._folders(folder / entry.name, known)

    def _entries(self, folder: Path, strict: bool = False) -> list[os.DirEntry[str]]:
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self.seen += 1
                    if self.seen > MOST:
                        raise RecipeError(
                            f"{self.what} has more than {MOST:,} files and folders to look at: name a smaller folder, or "
                            "put the texts together in fewer files"
                        )
                    found.append(entry)
        except OSError:
            if strict:
                raise
            return []
        return sorted(found, key=lambda entry: entry.name)


# --- what they hold ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What is in a file.

    digest
        SHA-256 of ``validation``, a zero byte and the text (its bytes without a byte order mark); empty where it is not text.
    chars
        characters of the text; 0 where there is nothing but white space.
    problem
        why it is not text, empty where it is.
    """

    digest: str
    chars: int
    problem: str = ""

    @property
    def fraction(self) -> float:
        """A fixed number in [0, 1) for the text: that of `lab.data.corpora.fraction`."""
        return int(self.digest[:16], 16) / 2**64


def scan(path: Path | str, read: Callable[[int], object] = lambda size: None) -> Scan:
    """Read a file through, as far as it is UTF-8 text. ``read`` is told how many bytes were read each time."""
    digest, decoder = hashlib.sha256(b"validation\0"), codecs.getincrementaldecoder("utf-8")()
    chars, blank, at = 0, True, 0
    with open(path, "rb") as file:
        while True:
            data = file.read(CHUNK)
            read(len(data))
            if not at:
                mark = next((name for mark, name in OTHER_MARKS.items() if data.startswith(mark)), None)
                if mark is not None:
                    return Scan("", 0, f"{mark}, not UTF-8")
                data = data.removeprefix(BOM)
            if b"\0" in data:
                return Scan("", 0, "has zero bytes, so no text")
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                return Scan("", 0, f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
            digest.update(data)
            chars += len(text)
            blank = blank and not text.strip()
            if not data:
                break
            at += len(data)
    return Scan(digest.hexdigest(), 0 if blank else chars)


def text_of(path: Path | str, known: Scan) -> Iterator[str]:
    """The text of a file in pieces, without a byte order mark. Raises RecipeError where it is not what the scan found."""
    digest, decoder = hashlib.sha256(b"validation\0"), codecs.getincrementaldecoder("utf-8")()
    first = True
    try:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                data, first = data.removeprefix(BOM) if first else data, False
                digest.update(data)
                yield decoder.decode(data)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        digest = hashlib.sha256()
    if digest.hexdigest() != known.digest:
        raise RecipeError(f"{str(path)!r} was changed while it was read: try again when nobody writes it")


def scans(
    paths: Sequence[Path], memory: Path | None = None, read: Callable[[int], object] = lambda size: None
) -> list[Scan]:
    """What is in each of the files; those that a file of ``memory`` knows by their stamps are not read again."""
    return [Scan(*found) for found in _looked(paths, memory, lambda path: list(vars(scan(path, read)).values()), read)]


def digests(paths: Sequence[Path], memory: Path | None = None) -> list[str]:
    """The SHA-256 of each of the files, whatever is in them; ``memory`` as for `scans`."""
    return [found[0] for found in _looked(paths, memory, lambda path: [sha256_of(path)])]


def _looked(
    paths: Sequence[Path],
    memory: Path | None,
    look: Callable[[Path], list[Any]],
    read: Callable[[int], object] = lambda size: None,
) -> list[list[Any]]:
    """What ``look`` sees in each of the files, or what ``memory`` says that it saw."""
    known = _recall(memory)
    out: dict[str, list[Any]] = {}
    found: list[list[Any]] = []
    news = False
    for path in paths:
        name, *now = stamp(path)
        was = known.get(name)
        if was is not None and was[0] == now:
            read(now[0])
        else:
            was = [now, *look(path)]
            news = True
        if settled([(name, *now)]):
            out[name] = was
        found.append(was[1:])
    if memory is not None and (news or len(out) != len(known)):
        replace_whole(memory, json.dumps(out).encode(errors="surrogatepass"))
    return found


def _recall(memory: Path | None) -> dict[str, list[Any]]:
    """What `_looked` wrote, under the stamps of that time; nothing where it is missing or torn."""
    try:
        known = json.loads(memory.read_bytes()) if memory is not None else {}
        return known if all(len(seen[0]) == 4 and isinstance(seen[1], str) for seen in known.values()) else {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def replace_whole(path: Path, data: bytes) -> None:
    """Write a file of the cache so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
