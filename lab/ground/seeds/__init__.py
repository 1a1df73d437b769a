"""Every random draw has its own generator, made from the run's seed and its purpose. There is no global generator.

Two derivations, each for a library of its own: `generator` is torch's (models, methods, scenarios), `numpy_generator` numpy's
(which text goes to whom, in which order). Both are the same on every machine and in every process. What modules draw by
themselves is in `lab.ground.seeds.draws`. Torch is imported only where a generator of its own is asked for: text is read without it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(0, "coin", t)``."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator of torch on the CPU for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """A generator of numpy for one purpose, e.g. ``numpy_generator(0, "epoch", worker, epoch)``, from 256 bits of SHA-256."""
    digest = hashlib.sha256(repr((int(seed), purpose, *map(int, ids))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def uniform(seed: int, *purpose: str | int) -> float:
    """One number in [0, 1)."""
    import torch

    return torch.rand((), generator=generator(seed, *purpose), dtype=torch.float32, device="cpu").item()
