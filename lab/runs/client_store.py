"""What clients keep between their turns, on disk: one file a round, with what those who took part have to keep.

::

    clients/round-<number>.safetensors   tensors ``[clients of the round, …]`` by key
    clients/round-<number>.json          which clients, size and SHA-256

A file is written whole or not at all, and never changed; the disk has to hold it when a checkpoint comes that needs it (`ClientStore.settle`), and is
not waited for in every round: a run that is taken up at a checkpoint reads the rounds until then and removes
later ones. The newest file with a client in it has what it keeps; files in which every client has a newer one are removed as soon as
no checkpoint can go back before them. Rows are read by memory mapping, so that it costs what is read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lab.ground.errors import Damaged
from lab.ground.files import damage, digest_beside, make_lasting, write_with_digest

Kept = Mapping[str, Tensor]  # of one client, by key
_FILE = re.compile(r"round-([0-9]+)\.safetensors")


class ClientStore:
    """``folder``: where its files lie; None: in a temporary folder, which goes with the store."""

    def __init__(self, folder: Path | None = None):
        self._temporary = tempfile.TemporaryDirectory(prefix="isthmus-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary is not None else Path(folder or "")
        self._where: dict[int, tuple[int, int]] = {}  # client -> round and row of its newest
        self._live: dict[int, int] = {}  # round -> clients whose newest it has
        self._over: dict[int, int] = {}  # rounds of which that is none, and since which round
        self._unsettled: list[int] = []  # rounds whose files the disk may not hold yet

    def needed(self) -> list[int]:
        """The rounds of whose files some client's newest is. Those of others may be gone as soon as the next round is over (`tidy`)."""
        return sorted(self._live.keys() - self._over.keys())

    def open(self, expected: Sequence[int], rounds: int) -> None:
        """Read which clients are in the files of the first so many rounds; remove later files.

        Raises
        ------
        Damaged
            naming a file that is not what was written, or one of the ``expected`` rounds that is not there.
        """
        missing = {*expected} - {number for number, _ in self._files()}
        if missing:
            raise Damaged(
                f"{self._file(min(missing))} is missing, which holds what clients of round {min(missing)} keep: put it back, or begin "
                "anew (lab run … --again)"
            )
        self._where, self._live, self._over = {}, {}, {}
        for number, file in self._files():
            if number >= rounds:
                file.with_suffix(".json").unlink(missing_ok=True)
                file.unlink(missing_ok=True)
                continue
            why = damage(file)
            about = digest_beside(file) or {}
            if why is not None or not isinstance(about.get("clients"), list):
                raise Damaged(
                    f"{file} holds what clients of round {number} keep, and is not what was written ({why}): put it back, or begin anew "
                    "(lab run … --again)"
                )
            self._note(number, about["clients"])

    def _files(self) -> list[tuple[int, Path]]:
        found = ((_FILE.fullmatch(file.name), file) for file in self.folder.glob("round-*.safetensors"))
        return sorted((int(match[1]), file) for match, file in found if match is not None)

    def _note(self, number: int, clients: Sequence[int]) -> None:
        for row, client in enumerate(clients):
            if client in self._where:
                former = self._where[client][0]
                self._live[former] -= 1
                if not self._live[former]:
                    self._over[former] = number
            self._where[client] = number, row
        self._live[number] = len(clients)

    def put(self, number: int, kept: Mapping[int, Kept]) -> None:
        """What these clients keep after a round (from 0)."""
        if not kept:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        clients = sorted(kept)
        tensors = {key: torch.stack([kept[c][key] for c in clients]).contiguous() for key in kept[clients[0]]}
        write_with_digest(self._file(number), save(tensors), {"clients": clients}, lasting=False)
        self._unsettled.append(number)
        self._note(number, clients)

    def settle(self) -> None:
        """Wait until the disk holds all that is there: whatever comes after this may rely on it."""
        files = [self._file(number) for number in self._unsettled if number in self._live]
        make_lasting(path for file in files for path in (file, file.with_suffix(".json")))
        self._unsettled = []

    def get(self, clients: Sequence[int], begins: str = "") -> dict[int, Kept]:
        """What these clients keep, of keys that begin so; those who never took part are left out."""
        found: dict[int, dict[str, Tensor]] = {}
        by_file: dict[int, list[tuple[int, int]]] = {}
        for client in clients:
            if client in self._where:
                number, row = self._where[client]
                by_file.setdefault(number, []).append((client, row))
        for number, rows in by_file.items():
            with safe_open(self._file(number), framework="pt") as f:
                for key in (key for key in f.keys() if key.startswith(begins)):  # noqa: SIM118
                    part = f.get_slice(key)
                    for client, row in rows:
                        found.setdefault(client, {})[key] = part[row : row + 1][0]
        return dict(found)

    def tidy(self, before: int) -> None:
        """Remove files of which every client had a newer one in the first so many rounds: no checkpoint goes back before them."""
        for number in [n for n, since in self._over.items() if since < before]:
            del self._live[number], self._over[number]
            self._file(number).unlink(missing_ok=True)
            self._file(number).with_suffix(".json").unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"round-{number}.safetensors"
