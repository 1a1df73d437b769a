"""Where samples come from, and anchors: samples of one domain that nobody trains on, and nobody is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from lab.data.splits import evenly_spaced
from lab.data.tasks import scores
from lab.ground.errors import RecipeError, one_of

MOST = 16  # domains that are told one by one
OTHERS = "others"


def told_apart(names: Sequence[str], of: np.ndarray, kept: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and domains of samples with `MOST` of them at most: those that are ``kept``, the largest, and others.

    Returns the names, and what becomes of each domain, int ``[names]``: its place among them.
    """
    if len(names) <= MOST:
        return tuple(names), np.arange(len(names))
    size = np.bincount(of, minlength=len(names))
    first = sorted(range(len(names)), key=lambda d: (names[d] not in kept, -size[d], d))[: MOST - 1]
    place = np.full(len(names), MOST - 1)
    place[sorted(first)] = np.arange(MOST - 1)
    return (*(names[d] for d in sorted(first)), OTHERS), place


def number(names: Sequence[str], name: str, what: str) -> int:
    """The number of a domain. Raises RecipeError where there is none of this name; ``what`` named it."""
    if name not in names:
        some = names if len(names) <= MOST else [*names[: MOST - 1], "…"]
        raise RecipeError(one_of(what, name, some))
    return list(names).index(name)


def set_apart(of: np.ndarray, document: np.ndarray, target: int, num: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Anchors among held-out samples, and which of these are left to score a model on: int each.

    Every other document of the target domain is for anchors, ``num`` samples evenly spaced among those of all of them; nothing of these
    documents is scored. Of a single document the first half is for anchors.

    Parameters
    ----------
    of, document
        of each held-out sample: its domain, and the document that it begins in.

    Raises
    ------
    RecipeError
        where there are not so many, or nothing is left.
    """
    mine = np.flatnonzero(of == target)
    documents, at = np.unique(document[mine], return_inverse=True)
    pool = mine[at % 2 == 0] if len(documents) > 1 else mine[: len(mine) // 2]
    if len(pool) < num:
        raise RecipeError(
            f"weighting.anchors = {num}: {name!r} has {len(pool)} held-out samples for anchors (every other of its documents): ask for at "
            "most as many, or use weighting.source=train"
        )
    return pool[evenly_spaced(len(pool), num, "anchor")], np.setdiff1d(np.arange(len(of)), pool)


def taken_off(of: np.ndarray, target: int, num: int, name: str) -> np.ndarray:
    """Anchors among samples to train on, evenly spaced in their domain, int. Raises RecipeError where it has not more than so many."""
    mine = np.flatnonzero(of == target)
    if len(mine) <= num:
        raise RecipeError(f"weighting.anchors = {num}: {name!r} has {len(mine)} samples to train on: ask for fewer")
    anchors: np.ndarray = mine[evenly_spaced(len(mine), num, "anchor")]
    return anchors


@dataclass(frozen=True)
class ByDomain:
    """The loss of a model on validation rows, domain by domain."""

    batches: Sequence[tuple[Tensor, Tensor]]
    names: tuple[str, ...]
    of: np.ndarray  # int, the domain of each row, in order

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``loss of <domain>``: nats per token, the mean over the targets of its rows."""
        found = np.concatenate([scores.nats_of_rows(model, *batch).numpy() for batch in self.batches])
        count = np.concatenate([(targets >= 0).sum(1).numpy() for _, targets in self.batches])
        sums, counts = (np.bincount(self.of, x, len(self.names)) for x in (found, count))
        return {f"loss of {n}": float(s / c) for n, s, c in zip(self.names, sums, counts, strict=True) if c}
