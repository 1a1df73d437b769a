"""Loops of one's own, beside the run of the lab that has the same recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lab.data.training_data import TrainingData
from lab.events import Drifted, Event, Sent, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.attached import Attached
from lab.runs.trainer import Trainer
from tests.support.recipes import corpus


def labs_own(recipe: Recipe, **options: Any) -> tuple[Trainer, list[Event]]:
    """The lab's run of a recipe, and its events."""
    trainer = Trainer(recipe, corpus=corpus(), **options)
    return trainer, list(trainer.events())


def modules(recipe: Recipe, num: int, vocab_size: int) -> list[nn.Module]:
    """So many modules with the first values that the workers of this recipe have."""
    dtype: Any = getattr(torch, recipe.dtype)
    made: Any = recipe.model
    return [made.build(vocab_size, recipe.context, recipe.seed).to(dtype) for _ in range(num)]


def backward(models: Sequence[Any], data: TrainingData, t: int, mine: Iterable[int]) -> list[Tensor]:
    """Losses of the batches that the workers have in local step ``t`` of the lab's run; their gradients are at the parameters."""
    losses = []
    for model, w in zip(models, mine, strict=True):
        loss = model.loss(*data.batches.get(w, t))
        loss.backward()
        losses.append(loss)
    return losses


def loop(sync: Attached, data: TrainingData, until: int) -> None:
    """A plain loop, up to a local step."""
    for t in range(sync.t + 1, until + 1):
        losses = backward(sync.modules, data, t, sync.fleet.mine)
        sync.step(losses)
        sync.zero_grad()


def differences(trainer: Trainer, sync: Attached) -> list[str]:
    """The tensors of this process in which an own loop differs from the lab's run by a single bit; none."""
    found = []
    for kind in ("local", "shared"):
        theirs, ours = getattr(trainer.state, kind), getattr(sync.run_state, kind)
        found += [f"{kind} {name}" for name in theirs.keys() ^ ours.keys()]
        for name in theirs.keys() & ours.keys():
            pairs = zip(theirs[name].blocks, ours[name].blocks, strict=True)
            found += [f"{kind} {name} {i}" for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
    return found


def seen(events: Iterable[Event]) -> list[Event]:
    """What both say: losses (without the clock), what was sent, and how far the workers were apart when they met."""
    kept = [e for e in events if isinstance(e, Stepped | Sent | Drifted)]
    return [Stepped(e.step, e.loss_W, e.lr, 0.0) if isinstance(e, Stepped) else e for e in kept]
