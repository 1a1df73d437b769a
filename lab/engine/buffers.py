"""What modules keep beside their parameters and training moves, such as the running means of a BatchNorm.

They are each worker's own and never travel while a run goes on; a checkpoint has those of every worker.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lab.engine.fleet import Fleet


def moved(fleet: Fleet) -> dict[int, dict[str, Tensor]]:
    """Return, by worker of this process and by name, the buffers that differ from the model's initial ones."""
    found: dict[int, dict[str, Tensor]] = {}
    for w in fleet.mine if not fleet.dry else ():
        for name, x in fleet.modules[w].named_buffers(remove_duplicate=False):
            if name in fleet.constants and not torch.equal(x, fleet.constants[name]):
                found.setdefault(w, {})[name] = x
    return found


@torch.no_grad()
def put_back_(fleet: Fleet, buffers: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Restore the buffers of this process's workers from a checkpoint."""
    for w in [w for w in buffers if w in fleet.mine]:
        own = dict(fleet.modules[w].named_buffers(remove_duplicate=False))
        for name, value in buffers[w].items():
            own[name].copy_(value)
