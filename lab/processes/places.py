"""Places that all processes of a run can reach: a folder, or whatever `fsspec` opens by a URL. Files in them appear whole, or not at all.

A file that is put into a folder is written aside and renamed. Object stores (and memory) show an object when all of it is there;
other file systems behind a URL are treated like folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from lab.ground.errors import RecipeError, shown
from lab.ground.files import located, open_plain

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*|[A-Za-z][A-Za-z0-9+.-]+::.*")
WHOLE_BY_THEMSELVES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "tos", "r2", "memory"}


class Place(Protocol):
    """Files by name. A name is made of words with ``/`` between them, and comes from this process, never from what it has read."""

    first_seconds: float  # between the first two looks for a file that is not there yet
    most_seconds: float  # between any two
    both_ways: bool  # whether one thread may put while another reads

    def put(self, name: str, data: bytes, lasting: bool = False) -> None:
        """Write a file, in the place of one that may be there. ``lasting``: return when it will survive the machine.

        Raises OSError, or whatever else a file system raises.
        """

    def get(self, name: str, most_bytes: int | None = None) -> bytes | None:
        """Read a file; of one that is longer than ``most_bytes`` the first of them and one more. None where there is none."""

    def names(self, folder: str) -> list[str]:
        """Return the names of all files in a folder and in those below, in order; of temporary ones as well."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""


class Folder:
    """A folder, perhaps on a network mount."""

    first_seconds, most_seconds, both_ways = 0.001, 0.1, True

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def put(self, name: str, data: bytes, lasting: bool = False) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with open(aside, "xb") as f:
                f.write(data)
                if lasting:
                    f.flush()
                    os.fsync(f.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def get(self, name: str, most_bytes: int | None = None) -> bytes | None:
        try:
            with open_plain(self.path / name) as f:
                return f.read(-1 if most_bytes is None else most_bytes + 1)
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        found = (Path(at) / name for at, _, files in os.walk(self.path / folder) for name in files)
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def remove(self, names: Iterable[str]) -> None:
        above: set[Path] = set()
        for name in names:
            (self.path / name).unlink(missing_ok=True)
            above.add((self.path / name).parent)
        for folder in sorted(above, reverse=True):
            with contextlib.suppress(OSError):  # something is in it
                while folder != self.path:
                    folder.rmdir()
                    folder = folder.parent


class Store:
    """What `fsspec` opens by a URL."""

    first_seconds, most_seconds = 0.01, 2.0

    def __init__(self, fs: Any, root: str, url: str):
        self.fs, self.root = fs, root.rstrip("/")
        self.url = re.sub(r"//[^/@]*@", "//", url)  # without a password
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
        self.renames = not protocols & WHOLE_BY_THEMSELVES
        self.both_ways = bool(getattr(fs, "async_impl", False))  # then it has a thread and connections of its own

    def __str__(self) -> str:
        return self.url

    def put(self, name: str, data: bytes, lasting: bool = False) -> None:
        path = f"{self.root}/{name}"
        if not self.renames:
            self.fs.pipe_file(path, data)
            return
        folder = path.rpartition("/")[0]
        aside = f"{folder}/.{uuid.uuid4().hex}.tmp"
        self.fs.makedirs(folder, exist_ok=True)
        self.fs.pipe_file(aside, data)
        self.fs.mv(aside, path)

    def get(self, name: str, most_bytes: int | None = None) -> bytes | None:
        try:
            end = None if most_bytes is None else most_bytes + 1
            data: bytes = self.fs.cat_file(f"{self.root}/{name}", start=0, end=end)
            return data
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(f"{self.root}/{folder}")
        except FileNotFoundError:
            return []
        start = len(self.root.lstrip("/")) + 1
        return sorted(path.lstrip("/")[start:] for path in found)

    def remove(self, names: Iterable[str]) -> None:
        paths = [f"{self.root}/{name}" for name in names]
        try:
            if paths:
                self.fs.rm(paths)  # one request, where the store has one for many
        except FileNotFoundError:
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(path)


def place(text: str) -> Place:
    """A folder, or a URL of `fsspec` (``s3://bucket/runs``, ``sftp://host/path``).

    Raises
    ------
    RecipeError
        for a URL that cannot be opened here.
    """
    if not URL.fullmatch(text):
        return Folder(located(text))
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(text, use_listings_cache=False)
    except ImportError as error:  # it says what to install
        raise RecipeError(f"mailbox {_named(text)}: {error}") from None
    except ValueError:
        raise RecipeError(
            f"mailbox {_named(text)}: there is no such kind of URL here: use a folder, or one of fsspec's, as s3://bucket/runs"
        ) from None
    except Exception as error:  # whatever the package raises that opens it
        raise RecipeError(f"mailbox {_named(text)} cannot be opened ({type(error).__name__}: {error})") from None
    return Store(fs, root, text)


def _named(url: str) -> str:
    return shown(re.sub(r"//[^/@]*@", "//", url))
