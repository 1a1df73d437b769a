"""How much faster a step gets when experts are ghosts (skip-token). Measured, not modelled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from lab.ground.seeds import generator
from lab.models.moe import MoE


def step_seconds_by_ghosts(
    model: MoE, ghosts: Sequence[int], *, vocab_size: int = 64, batch: tuple[int, int] = (16, 64), rounds: int = 9
) -> dict[int, float]:
    """Seconds of a forward and backward pass when so many experts of every layer are not resident; medians of `rounds_by_ghosts`."""
    took = rounds_by_ghosts(model, ghosts, vocab_size=vocab_size, batch=batch, rounds=rounds)
    return {g: statistics.median(seconds) for g, seconds in took.items()}


def rounds_by_ghosts(
    model: MoE, ghosts: Sequence[int], *, vocab_size: int = 64, batch: tuple[int, int] = (16, 64), rounds: int = 9
) -> dict[int, list[float]]:
    """Seconds of a forward and backward pass in each round, when so many experts of every layer are not resident.

    The shapes are the same throughout, and the variants take turns, so that a busy machine slows all of them alike.

    Parameters
    ----------
    model
        with ``skip_token``; routers choose among all experts, and a chosen ghost costs nothing.
    batch
        sequences and tokens of each.
    """
    ids = torch.randint(vocab_size, (batch[0], batch[1] + 1), generator=generator(0, "ghosts"))
    modules = {}
    for g in ghosts:
        held = [list(range(g, model.num_experts))] * model.num_layers
        modules[g] = model.build(vocab_size, batch[1], 0, held)
    took: dict[int, list[float]] = {g: [] for g in ghosts}
    for _ in range(rounds + 1):
        for g, module in modules.items():
            module.zero_grad(set_to_none=False)
            before = time.perf_counter()
            module.loss(ids[:, :-1], ids[:, 1:]).backward()  # type: ignore[operator]
            took[g].append(time.perf_counter() - before)
    return {g: seconds[1:] for g, seconds in took.items()}  # the first round warms up
