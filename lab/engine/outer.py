"""The outer step that DiLoCo introduced and others take over: an optimizer on the agreed parameters.

The mean pseudo-gradient Δ = E[shared − local] is the gradient of the outer optimizer; afterwards every worker goes on from
the new shared parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer, states
from lab.engine.stack import Stack
from lab.engine.state import State


def init_outer(s: State, outer: Optimizer) -> None:
    """The shared parameters (where all workers start) and the outer optimizer over them."""
    s.shared["params"] = s.local["params"].first()
    s.optimizers["outer"] = outer.over(s.shared["params"])


@torch.no_grad()
def outer_step_(s: State, comm: Communicator, weights_W: Sequence[float] | None = None) -> None:
    """Average the pseudo-gradients, step the outer optimizer, and let every worker that is up continue from the result."""
    if any(s.fleet.up):  # E[local − shared] = −Δ
        follow_(s, comm.mean(s.local["params"], "params", minus=s.shared["params"], weights_W=weights_W))


@torch.no_grad()
def follow_(s: State, moved: Stack) -> None:
    """Step the outer optimizer along what is agreed of E[local − shared], which is used up; all who are up go on from the result."""
    descend_(s.optimizers["outer"], moved, s.fleet.up)
    s.shared.update(states(s.optimizers["outer"], s.shared["params"]))
    s.local["params"].copy_(s.shared["params"], s.fleet.up)


def descend_(optimizer: torch.optim.Optimizer, moved: Stack, up: Sequence[bool]) -> None:
    """One step of an outer optimizer; ``moved`` is E[local − shared] and is used up. What nobody who is up holds stays."""
    leaves, known = optimizer.param_groups[0]["params"], []
    for i, (leaf, m) in enumerate(zip(leaves, moved.blocks, strict=True)):
        if not m.is_meta:
            leaf.grad = m.neg_() if any(up[w] for w in moved.layout.blocks[i].everywhere) else None
        if leaf.grad is not None and optimizer.state.get(leaf):
            known.append((leaf, leaf.grad))
    if 0 < len(known) < sum(leaf.grad is not None for leaf in leaves):
        # Some move for the first time, those that nobody held until now: torch's fused SGD cannot take both at once.
        for leaf, _ in known:
            leaf.grad = None
        optimizer.step()
        for leaf in leaves:
            leaf.grad = None
        for leaf, grad in known:
            leaf.grad = grad
    optimizer.step()
