"""Rounds (`lab.methods.rounds`) of a server that has labels and trains, with clients that have none.

The server's own examples are `State.labelled` (``server.labelled`` of a recipe). It trains before the first round, and after every mean over
its clients; a round in which nobody is up does not take place. One process does it, that of the server, and the others learn of it when
their workers fetch. Clients never look at their own targets: what they learn from is worked out from their inputs.

Legend: C classes, n labelled examples of each, B examples of a batch, p dimensions of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.data.augmented import Augmentation
from lab.data.tasks.task import IGNORED
from lab.engine.comm import Communicator
from lab.engine.fleet import saved_buffers
from lab.engine.optim import Optimizer, step_
from lab.engine.state import State, has_numbers
from lab.ground.config import config
from lab.ground.errors import Diverged, RecipeError
from lab.ground.seeds import derive, generator
from lab.ground.seeds.draws import Draws
from lab.methods.rounds import Weight, beginning, hand_in_

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a module, on inputs and their labels


@config
class ServerTraining:
    """How the server trains on its own examples: each time its turn comes, with a fresh optimizer.

    first, steps
        of its optimizer: before the first round, and after every round.
    per_class
        examples of every class in a batch, drawn anew for every step; 0, or no fewer than there are: all of them.
    optimizer
        follows the recipe's schedule.
    augmentation
        of its batches.
    seed
        of batches and augmentation.
    """

    first: Annotated[int, Field(ge=0)] = 100
    steps: Annotated[int, Field(ge=0)] = 10
    per_class: Annotated[int, Field(ge=0)] = 0
    optimizer: Optimizer = Field(
        default_factory=lambda: Optimizer("SGD", 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4})
    )
    augmentation: Augmentation = Field(default_factory=Augmentation)
    seed: Annotated[int, Field(ge=0)] = 0


def begin_(s: State) -> None:
    """The server's model in ``s.shared``; in ``s.facts`` how many steps it has taken, and its loss in the last of them.

    Raises RecipeError where there are no labels, and for a model with buffers that training moves: those that moved at the server would
    be lost.
    """
    if s.labelled is None:
        raise RecipeError(
            "this method learns from labels that the server has: set server.labelled, how many examples of every class (8, for example), and data"
        )
    names = [*saved_buffers(s.fleet.modules[0])] if s.fleet.modules else []
    if names:
        raise RecipeError(
            f"the server trains here, and the model has buffers that training moves ({names[0]}): use one without (model.norm=group)"
        )
    s.shared["params"] = beginning(s.fleet)
    s.facts |= {"server_steps": 0, "server_loss": 0.0}


def end_round_(
    s: State, comm: Communicator, t: int, weight: Weight, plan: ServerTraining, objective: Objective
) -> None:
    """The server takes the mean over those that are up, and trains on."""
    hand_in_(s, comm, weight)
    train_(s, comm, t, plan, plan.steps, objective)


def train_(s: State, comm: Communicator, t: int, plan: ServerTraining, steps: int, objective: Objective) -> None:
    """So many steps of the server's model down ``objective``. Raises Diverged where its loss is no number any more."""
    if not steps or not has_numbers(s):
        return
    loss = _trained(s, t, plan, steps, objective) if comm.world.first else 0.0
    loss = comm.world.all_gather_json(loss)[0]
    if not math.isfinite(loss):
        raise Diverged(
            f"the server's loss on its own examples is {loss} in step {t}: try a smaller learning rate (method.server.optimizer.lr)"
        )
    s.facts |= {"server_steps": s.facts["server_steps"] + steps, "server_loss": loss}


def _trained(s: State, t: int, plan: ServerTraining, steps: int, objective: Objective) -> float:
    """The same, at the server; the loss of its last step."""
    agreed = s.shared["params"]
    grads = agreed.zeros_like()
    optimizer = plan.optimizer.over(agreed, grads)
    module = s.fleet.whole_model(agreed).train()
    for name, p in module.named_parameters():
        if name in agreed.layout.place:
            p.requires_grad_().grad = grads[name][0]
    loss = torch.zeros(())
    draws = True  # whether the model draws random numbers (dropout), which takes a little on every operation
    for k, (inputs, targets) in enumerate(_batches(s, t, plan, steps)):
        torch._foreach_zero_(grads.blocks)
        drawn = Draws(derive(plan.seed, "server", t, k))
        with drawn if draws else nullcontext():
            loss = objective(module, inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
        draws = draws and (drawn.forward or drawn.backward)
        step_(optimizer, plan.optimizer.lr * s.schedule(t), agreed, [True])
    return float(loss.detach())


def _batches(s: State, t: int, plan: ServerTraining, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs ``[B, *]`` and labels ``[B]``, class by class."""
    assert s.labelled is not None
    inputs, targets = s.labelled
    num = targets.shape[1]
    for k in range(steps):
        x, y = inputs, targets
        if 0 < plan.per_class < num:
            g = generator(plan.seed, "server batch", t, k)
            which = torch.stack([torch.randperm(num, generator=g, device="cpu")[: plan.per_class] for _ in targets])
            classes = torch.arange(len(which))[:, None]  # [C, 1] with [C, n of a batch]
            x, y = x[classes, which], y[classes, which]
        yield plan.augmentation(x.flatten(0, 1), plan.seed, "server view", t, k), y.flatten()


def of_task(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The task's own loss."""
    return module.loss(inputs, targets)  # type: ignore[operator, no-any-return]


def confident(logits: Tensor, threshold: float) -> Tensor:
    """The likeliest class of each row ``[B, C]``, int64 ``[B]``; −100 where its probability is below the threshold."""
    probability, likeliest = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).max(1)
    return likeliest.where(probability >= threshold, IGNORED)


def loss_on(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The task's loss over the examples that have a label: their mean; 0, with a gradient of 0, where none has one."""
    if bool((labels != IGNORED).any()):
        return of_task(module, inputs, labels)
    return 0.0 * of_task(module, inputs, labels.clamp(min=0))
