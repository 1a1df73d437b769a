"""Events of a run whose workers are spread over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lab.engine.world import World
from lab.events import Event

VALUE_BYTES = 28  # a float64 in JSON is no longer, with what is around it


def with_all_workers(events: Sequence[Event], mine: Sequence[int], world: World) -> list[Event]:
    """Return the same events with the values of all workers in every list by worker (a field ``…_W``).

    Each process knows those of its own workers. All processes that are there call it with the same events; of workers of others nothing
    is known (None).
    """
    if world.num == 1:
        return list(events)
    names = [[n for n, x in vars(event).items() if n.endswith("_W") and isinstance(x, list)] for event in events]
    own = [[getattr(event, n)[w] for w in mine] for event, of_it in zip(events, names, strict=True) for n in of_it]
    parts = world.all_gather_json([mine[0], own], VALUE_BYTES * (1 + len(own) * len(mine)))
    known = {w0 + i: [values[i] for values in of_p] for w0, of_p in parts for i in range(len(mine))}
    nothing = [None] * len(own)
    whole = iter(zip(*(known.get(w, nothing) for w in range(world.num * len(mine))), strict=True))
    joined: list[dict[str, Any]] = [{n: list(next(whole)) for n in of_it} for of_it in names]
    return [replace(event, **lists) for event, lists in zip(events, joined, strict=True)]
