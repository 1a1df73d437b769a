"""What can be measured on a running fleet, beyond losses and bytes. Computed only when asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lab.events import Event
from lab.fleet import Stack
from lab.recipe import Recipe
from lab.run import Trainer


@torch.no_grad()
def relative_change(now: Stack, before: Stack) -> float:
    """‖now − before‖ / ‖before‖ over all tensors and workers."""
    change = sum(float((a - b).square().sum()) for a, b in zip(now.blocks, before.blocks, strict=True))
    size = sum(float(b.square().sum()) for b in before.blocks)
    return (change / size) ** 0.5 if size else float("nan")


def rates_of_change(
    recipe: Recipe, every: int = 64, each: Callable[[Event], None] = lambda event: None
) -> dict[str, list[tuple[int, float]]]:
    """How far each state moves in ``every`` local steps, relative to its size, along a run of the recipe.

    ``each`` is called with every event, to show how far it is.

    Returns
    -------
    by state, pairs (local step, ‖s_t − s_{t−every}‖ / ‖s_{t−every}‖).
    """
    trainer = Trainer(recipe)
    before: dict[str, Stack] = {}
    out: dict[str, list[tuple[int, float]]] = {}
    for event in trainer.events():
        each(event)
        if event.kind == "stepped" and trainer.t % every == 0:
            for name, stack in trainer.state.local.items():
                if name in before:
                    out.setdefault(name, []).append((trainer.t, relative_change(stack, before[name])))
                before[name] = stack.clone()
    return out
