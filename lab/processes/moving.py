"""Experts that move between workers of different processes: rows come and go, and what is agreed about them comes along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import rows_apart, states
from lab.engine.stack import Block
from lab.engine.state import State
from lab.engine.world import World


def follow_rows(state: State, comm: Communicator, world: World) -> None:
    """Register `regrow_` with this fleet, to be called whenever blocks get other holders."""
    state.fleet.when_relabelled.append(partial(regrow_, state, comm, world))


@torch.no_grad()
def regrow_(
    state: State,
    comm: Communicator,
    world: World,
    before: Mapping[int, Block],
    rows: Mapping[int, Sequence[int | None]],
) -> None:
    """After blocks were given other holders (`lab.engine.fleet.Fleet.relabel_`): room for what has come here, none for what left.

    Shared states travel to the processes that hold a block now and did not know it: parameters, which are then sent to the
    workers and counted there, and outer momenta, which nobody counts, because they stay with the coordinator.

    Parameters
    ----------
    before
        what the blocks were.
    rows
        of each of them, the old row here that each new one takes over; None: one that came from elsewhere.
    """
    fleet, layout = state.fleet, state.fleet.layout
    moves: list[tuple[Sequence[int], Sequence[int], Tensor]] = []
    for i, old in before.items():
        now = layout.blocks[i]
        for stack in state.shared.values():
            if now.holders and not len(stack.blocks[i]):
                stack.blocks[i] = stack.blocks[i].new_empty(1, now.numel)
            moves.append((world.owners(old), now.everywhere, stack.blocks[i]))
    world.broadcast_newest_(moves)
    for i in before:
        for stack in state.shared.values() if not layout.blocks[i].holders else ():
            stack.blocks[i] = stack.blocks[i][:0].clone()
        world.note_up(layout.blocks[i], fleet.up, all_know=True)
    kept = [fleet.params, fleet.grads, *comm.residuals.values()]
    for i, was in rows.items():
        for stack in kept:
            stack.blocks[i] = _regrown(stack.blocks[i], was)
    for name, optimizer in state.optimizers.items():
        group = optimizer.param_groups[0]
        if name == "inner":
            group["params"] = _inner_leaves(state, optimizer, before, rows)
            state.local.update(states(optimizer, fleet.params))
        else:
            for i in before:
                group["params"][i] = _outer_leaf(state, optimizer, i)


def _regrown(x: Tensor, was: Sequence[int | None]) -> Tensor:
    out = x.new_zeros(len(was), x.shape[1])
    for row, old in enumerate(was):
        if old is not None:
            out[row] = x[old]
    return out


def _inner_leaves(
    state: State,
    optimizer: torch.optim.Optimizer,
    before: Mapping[int, Block],
    rows: Mapping[int, Sequence[int | None]],
) -> list[torch.nn.Parameter]:
    """Return the inner optimizer's new parameters (divided as in `lab.engine.optim`), with the states of rows that stayed."""
    fleet, rest = state.fleet, iter(optimizer.param_groups[0]["params"])
    leaves: list[torch.nn.Parameter] = []
    for i, block in enumerate(fleet.layout.blocks):
        held = before.get(i, block).holders
        old = [next(rest) for _ in range(len(held) if rows_apart(block, held) else 1)]
        if i not in rows:
            leaves += old
            continue
        was, x, g = rows[i], fleet.params.blocks[i], fleet.grads.blocks[i]
        for row in range(max(1, len(was))):
            part = slice(row, row + 1) if len(was) > 1 else slice(None)
            leaf = torch.nn.Parameter(x[part])
            leaf.grad, leaf.rows = g[part], block  # type: ignore[attr-defined]
            leaves.append(leaf)
            from_row = was[row] if was else None
            known = optimizer.state.get(old[from_row if len(old) > 1 else 0]) if from_row is not None else None
            if known:
                optimizer.state[leaf] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in known.items()}
        for leaf in old:
            optimizer.state.pop(leaf, None)
    return leaves


def _outer_leaf(state: State, optimizer: torch.optim.Optimizer, i: int) -> torch.nn.Parameter:
    """Return the outer optimizer's parameter for the ``i``-th shared block, with its states from ``state.shared``."""
    old = optimizer.param_groups[0]["params"][i]
    leaf = torch.nn.Parameter(state.shared["params"].blocks[i])
    known = optimizer.state.pop(old, None)
    if known:
        optimizer.state[leaf] = {k: state.shared[k].blocks[i] if k in state.shared else v for k, v in known.items()}
    return leaf
