"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """A numpy generator for one (seed, purpose, ids), e.g. ``generator(0, "epoch", worker, epoch)``.

    The name is hashed with SHA-256, so streams of different purposes are independent and the same in every process.
    """
    digest = hashlib.sha256(repr((int(seed), purpose, *map(int, ids))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
