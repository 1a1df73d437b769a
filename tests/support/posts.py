"""Several sites in one process, each on a thread of its own: for what they say to each other, without a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch.distributed as dist

from lab.processes.mailbox import Mailbox
from lab.processes.messages import Seal
from lab.processes.places import Folder, Place
from lab.processes.post import Post

T = TypeVar("T")
RUN = "0123456789abcdef"


def posts(place: Place | Path, num: int, secret: bytes | None = None, seconds: float = 5.0) -> list[Post]:
    there = Folder(place) if isinstance(place, Path) else place
    return [Post(there, Seal(RUN, secret), p, num, seconds, note=lambda line: None) for p in range(num)]


def together(sites: Sequence[Post], do: Callable[[Mailbox, int], T]) -> list[T]:
    """What each site has of ``do(group, index)``, all at the same time."""
    groups = [Mailbox(site.index, range(site.num), site) for site in sites]
    with ThreadPoolExecutor(len(sites)) as pool:
        return [f.result() for f in [pool.submit(do, group, p) for p, group in enumerate(groups)]]


def by(root: int) -> Any:
    return SimpleNamespace(rootRank=root)


SUM = SimpleNamespace(reduceOp=dist.ReduceOp.SUM)
