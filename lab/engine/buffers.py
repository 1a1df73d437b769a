"""What modules keep beside their parameters and training moves, such as the running means of a BatchNorm.

They are each worker's own and never travel while a run goes on. Whoever looks at the agreed model sees their means, and a
checkpoint has those of every worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.world import World


def moved(fleet: Fleet) -> dict[int, dict[str, Tensor]]:
    """By worker here and name, the buffers that are no longer what the model began with."""
    found: dict[int, dict[str, Tensor]] = {}
    for w in fleet.mine if fleet.device.type != "meta" else ():
        for name, x in fleet.modules[w].named_buffers(remove_duplicate=False):
            if name in fleet.constants and not torch.equal(x, fleet.constants[name]):
                found.setdefault(w, {})[name] = x
    return found


@torch.no_grad()
def means(fleet: Fleet, up: Sequence[bool], world: World) -> dict[str, Tensor]:
    """At the first process, the mean over those that are up of every buffer that has moved anywhere; of whole numbers, the largest.

    All processes call it. Equal copies have themselves for a mean.
    """
    here = moved(fleet)
    names = sorted(
        {
            name
            for names in world.all_gather_json(sorted({n for named in here.values() for n in named}))
            for name in names
        }
    )
    if not names:
        return {}
    own = {w: dict(fleet.modules[w].named_buffers(remove_duplicate=False)) for w in fleet.mine}
    all_of_them = {
        w: {
            name: own[w].get(name, fleet.constants[name]) if w in own else fleet.constants[name].clone()
            for name in names
        }
        for w in range(fleet.num_workers)
    }
    copies = world.gather_to_server(all_of_them)
    some = [w for w in copies if up[w]] or list(copies)
    return {name: _mean(torch.stack([copies[w][name] for w in some])) for name in names if world.first}


def _mean(copies: Tensor) -> Tensor:
    if not copies.is_floating_point():
        return copies.amax(0) if copies.dtype != torch.bool else copies.any(0)
    return copies.to(torch.float32 if copies.device.type == "mps" else torch.float64).mean(0).to(copies.dtype)


@contextmanager
def untouched(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Forward passes inside leave the buffers of these modules as they were."""
    before = [(x, x.clone()) for module in modules for x in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, value in before:
                x.copy_(value)


@torch.no_grad()
def put_back_(fleet: Fleet, buffers: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Buffers of workers here, from a checkpoint."""
    for w in [w for w in buffers if w in fleet.mine]:
        own = dict(fleet.modules[w].named_buffers(remove_duplicate=False))
        for name, value in buffers[w].items():
            own[name].copy_(value)
