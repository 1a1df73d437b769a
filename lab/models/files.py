"""Model files that others wrote, JSON and safetensors, read so that whatever is in them ends in one line.

A file may be a pipe, garbage, cut short, or claim to hold more than the machine can. So it is opened only if it is an
ordinary one, and the shapes of its tensors are known before any of them is read.
"""

from __future__ import annotations

import contextlib
import json
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.ground import files as places

MOST_JSON = 1 << 24  # bytes of a JSON file; those of large models have some ten thousand
MOST_HEADER = 1 << 25  # bytes of names and shapes in a safetensors file; 100,000 tensors have ten million


class Unreadable(ValueError):
    """Why a file cannot be used, in a few words: the caller says which one, and what to do."""


def located(path: str | Path) -> Path:
    """The absolute path, with ``~`` filled in. Raises Unreadable where there is no such user, or no such path can be."""
    try:
        place = places.located(path)
        place.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise Unreadable(in_one_line(error)) from None
    return place


def check_ordinary(path: Path) -> None:
    """Raises Unreadable unless this is a file that has an end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise Unreadable(f"there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise Unreadable(in_one_line(error)) from None
    if not stat.S_ISREG(mode):
        raise Unreadable(f"{path.name} is {'a folder' if stat.S_ISDIR(mode) else 'no ordinary file'}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises Unreadable for anything else."""
    check_ordinary(path)
    try:
        if path.stat().st_size > MOST_JSON:
            raise Unreadable(f"{path.name} has {path.stat().st_size:,} bytes, more than any of its kind")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name}: {in_one_line(error)}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{path.name} holds no JSON object")
    return found


class Tensors:
    """Named tensors of an open safetensors file: all names and shapes, and a tensor when it is asked for."""

    def __init__(self, file: Any, name: str):
        self.file, self.name = file, name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._floating: dict[str, bool] = {}
        for key in file.keys():  # noqa: SIM118
            part = file.get_slice(key)
            self.shapes[key] = tuple(part.get_shape())
            self._floating[key] = str(part.get_dtype()).startswith(("F", "BF"))

    def __getitem__(self, name: str) -> Tensor:
        """Raises Unreadable for values that are no finite real numbers."""
        try:
            value: Tensor = self.file.get_tensor(name)
        except Exception as error:  # the library has no common class for what can be wrong here
            raise Unreadable(f"{self.name}: {name}: {in_one_line(error)}") from None
        if not self._floating[name] or not torch.isfinite(value if value.itemsize > 1 else value.float()).all():
            raise Unreadable(f"{self.name}: {name} holds what is no finite real number")
        return value


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """The tensors of a safetensors file. Raises Unreadable where it is none, also for one that claims more than it has."""
    from safetensors import safe_open

    check_ordinary(path)
    try:
        with open(path, "rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > min(MOST_HEADER, path.stat().st_size - 8):
            raise Unreadable("its header says that it is longer than it can be")
        file = safe_open(path, framework="pt")
        tensors = Tensors(file, path.name)
    except Exception as error:  # the library has no common class for what can be wrong here
        raise Unreadable(f"{path.name}: {in_one_line(error)}") from None
    with file:
        yield tensors


def in_one_line(error: BaseException, length: int = 200) -> str:
    """What an error says, without line breaks and what a terminal would obey."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    words = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return words if len(words) <= length else words[: length - 1] + "…"


def shown(value: object) -> str:
    """A value from a file, cut short for a message."""
    return reprlib.repr(value)
