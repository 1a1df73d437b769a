"""The outer step that DiLoCo introduced and others take over: an optimizer on the agreed parameters.

The mean pseudo-gradient Δ = E[shared − local] is the gradient of the outer optimizer; afterwards every worker goes on from
the new shared parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lab.comm import Communicator
from lab.methods.state import State
from lab.optim import Optimizer, states


def init_outer(s: State, outer: Optimizer) -> None:
    """The shared parameters (where all workers start) and the outer optimizer over them."""
    s.shared["params"] = s.local["params"].first()
    s.optimizers["outer"] = outer.over(s.shared["params"])


@torch.no_grad()
def outer_step_(s: State, comm: Communicator, weights_W: Sequence[float] | None = None) -> None:
    """Average the pseudo-gradients, step the outer optimizer, and let every worker that is up continue from the result."""
    if not any(s.fleet.up):
        return
    # E[local − shared] = −Δ
    moved = comm.mean(s.local["params"], "params", minus=s.shared["params"], weights_W=weights_W)
    optimizer = s.optimizers["outer"]
    for i, (leaf, m) in enumerate(zip(optimizer.param_groups[0]["params"], moved.blocks, strict=True)):
        if not m.is_meta:
            nobody = not s.local["params"].rows(i, s.fleet.up)
            leaf.grad = None if nobody else m.neg_()  # held by nobody who is up: it stays as it was agreed
    optimizer.step()
    s.shared.update(states(optimizer, s.shared["params"]))
    s.local["params"].copy_(s.shared["params"], s.fleet.up)
