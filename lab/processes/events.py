"""Events of a run whose workers are spread over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from lab.engine.world import World
from lab.events import Drifted, Event, Stepped


def with_all_workers(events: Sequence[Event], mine: Sequence[int], world: World) -> list[Event]:
    """The same events with the losses and distances of all workers: each process knows those of its own, who are in a row."""
    known = [[x[w] for w in mine] for event in events for x in _by_worker(event)]
    whole = (list(chain(*parts)) for parts in zip(*world.all_gather_json(known), strict=True))
    out: list[Event] = []
    for event in events:
        match event:
            case Stepped():
                event = replace(event, loss_W=next(whole))
            case Drifted():
                event = replace(event, to_mean_W=next(whole), to_shared_W=next(whole))
        out.append(event)
    return out


def _by_worker(event: Event) -> tuple[list[float | None], ...]:
    match event:
        case Stepped():
            return (event.loss_W,)
        case Drifted():
            return (event.to_mean_W, event.to_shared_W)
    return ()
