"""Checks that a run warns of, or ends with: tensors without a holder that is up, and numbers that are not finite."""

from __future__ import annotations

from lab.engine.fleet import Fleet
from lab.engine.stack import Stack
from lab.events import Warned

EVERYTHING = "everything"


def nobody_holds(fleet: Fleet, t: int, known: set[str]) -> tuple[list[Warned], set[str]]:
    """Return a warning, if not all are in ``known``, about tensors whose holders are all down, and the names of these."""
    up = fleet.up
    if not any(up):
        message = f"from step {t} on no worker is up: steps go by and nothing is trained until one is back"
        return [] if EVERYTHING in known else [Warned(t, message)], {EVERYTHING}
    lost = [b for b in fleet.layout.blocks if not any(up[w] for w in b.everywhere)]
    names = list(dict.fromkeys(name.rpartition(".")[0] or name for b in lost for name in b.names))
    if not set(names) - known:
        return [], set(names)
    down = ", ".join(str(w) for w, u in enumerate(up) if not u)
    message = (
        f"from step {t} on nobody who is up holds {len(names)} parts of the model ({names[0]}, …; workers down: {down}): the run "
        "goes on with their last agreed copy"
    )
    return [Warned(t, message)], set(names)


def not_finite(params: Stack, t: int) -> list[str]:
    """The beginning of a sentence about each block of a worker that holds a number that is not finite."""
    return [
        f"{block.group} parameters of worker {block.holders[row]} are not finite after step {t}: "
        for block, x in zip(params.layout.blocks, params.blocks, strict=True)
        for row, ok in enumerate(x.isfinite().all(1).tolist())
        if not ok
    ]
