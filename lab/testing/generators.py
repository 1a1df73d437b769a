"""The global generators of this process: whether anything has drawn from them, and as they were afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch


class Drawn(Protocol):
    def __call__(self, reseed: bool = False) -> str:
        """Which global generator has moved, in words; empty if none has. ``reseed``: all are given other seeds from here on."""


@contextmanager
def own_generators() -> Iterator[Drawn]:
    """Inside, a function says which global generator has moved; afterwards all are as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002

    def drawn(reseed: bool = False) -> str:
        moved = ""
        if random.getstate() != states[2]:
            moved = "the global generator of Python's random"
        if repr(np.random.get_state()) != repr(states[1]):  # noqa: NPY002
            moved = "numpy's global generator"
        if not torch.equal(torch.get_rng_state(), states[0]):
            moved = "torch's global generator"
        if reseed:
            torch.manual_seed(1)
            np.random.seed(1)  # noqa: NPY002
            random.seed(1)
        return moved

    try:
        yield drawn
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
