"""torchelastic's rendezvous where a launcher is alone: it has nobody to wait for, and no port. See `lab.processes.rendezvous`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from lab.ground.errors import RecipeError
from lab.processes.environment import STORE

_GENERATIONS = itertools.count(1)  # of processes that this one has started


class OneMachine(RendezvousHandler):
    """Names a new file to each generation of processes, in an environment variable that they inherit.

    ``backend`` is the name that torchelastic knows it by, ``new_file(word)`` a name for a file that only this user can reach.
    """

    def __init__(self, parameters: RendezvousParameters, backend: str, new_file: Callable[[str], Path]):
        self.backend, self.new_file = backend, new_file
        if parameters.max_nodes != 1:
            raise RecipeError(f"the rendezvous {backend!r} is for one machine: use 'static' for {parameters.max_nodes}")
        self.run_id, self.closed = parameters.run_id, False
        self.file: Path | None = None

    def get_backend(self) -> str:
        return self.backend

    def next_rendezvous(self) -> RendezvousInfo:
        self._remove()
        self.file = self.new_file(f"run{next(_GENERATIONS)}")
        os.environ[STORE] = str(self.file)
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("127.0.0.1", 0))

    def is_closed(self) -> bool:
        return self.closed

    def set_closed(self) -> None:
        self.closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        self._remove()
        self.set_closed()
        return True

    def _remove(self) -> None:
        os.environ.pop(STORE, None)
        if self.file is not None:
            self.file.unlink(missing_ok=True)
