"""Events of a run whose workers are spread over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from lab.engine.world import World
from lab.events import Event


def with_all_workers(events: Sequence[Event], mine: Sequence[int], world: World) -> list[Event]:
    """Return the same events with the values of all workers in every list by worker (a field ``…_W``).

    Each process knows those of its own workers, who follow each other. All processes call it with the same events.
    """
    if world.num == 1:
        return list(events)
    names = [[n for n, x in vars(event).items() if n.endswith("_W") and isinstance(x, list)] for event in events]
    known = [[getattr(event, n)[w] for w in mine] for event, of_it in zip(events, names, strict=True) for n in of_it]
    whole = (list(chain(*parts)) for parts in zip(*world.all_gather_json(known), strict=True))
    joined: list[dict[str, Any]] = [{n: next(whole) for n in of_it} for of_it in names]
    return [replace(event, **lists) for event, lists in zip(events, joined, strict=True)]
