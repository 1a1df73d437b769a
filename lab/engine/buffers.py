"""What modules keep beside their parameters and training moves, such as the running means of a BatchNorm.

They lie in the modules and not in stacks, each worker's own; a checkpoint has those of every worker. What is sent of them is
the affair of a run (`lab.runs.buffers`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.engine.fleet import Fleet


def moved(fleet: Fleet) -> dict[int, dict[str, Tensor]]:
    """Return, by worker of this process and by name, the buffers that differ from the model's initial ones."""
    here = {w: fleet.modules[w].named_buffers(remove_duplicate=False) for w in fleet.mine if not fleet.dry}
    first = fleet.constants
    return {w: {n: x for n, x in own if n in first and not torch.equal(x, first[n])} for w, own in here.items()}
