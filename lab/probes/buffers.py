"""Buffers of the agreed model: the means of those that training changes. Looking leaves the workers' own as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lab.engine.buffers import moved
from lab.engine.fleet import Fleet
from lab.engine.world import World


@torch.no_grad()
def means(fleet: Fleet, up: Sequence[bool], world: World) -> dict[str, Tensor]:
    """Return, at the first process, the mean over the workers that are up of every buffer that has changed (of integers, the maximum).

    All processes call it. The mean of equal copies is exactly that copy.
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
    """Context manager: forward passes inside do not change the buffers of these modules."""
    before = [(x, x.clone()) for module in modules for x in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, value in before:
                x.copy_(value)
