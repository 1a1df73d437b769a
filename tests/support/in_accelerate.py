"""One of two processes in which a loop with Accelerate trains by an attached method, and then the lab by the recipe of that.

torchrun … -m tests.support.in_accelerate; says how a model that `prepare` has wrapped is refused.
"""

from __future__ import annotations

import os
import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

import lab
from lab.ground.errors import RecipeError
from lab.runs.trainer import Trainer
from tests.support.own_loop import differences, modules, seen
from tests.support.recipes import SHORT, corpus, recipe


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Halves of the batches of the lab's run: a loader of two processes deals them out in turn."""

    def __init__(self, trainer: Trainer):
        self.recipe, self.batches = trainer.recipe, trainer.setup.data.batches  # type: ignore[union-attr]

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.num_workers * self.recipe.batch_size

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        half, row = divmod(i, self.recipe.batch_size // 2)
        passes, worker = divmod(half, self.recipe.num_workers)
        t, part = divmod(passes, 2)
        ids, targets = self.batches.get(worker, t + 1)
        row += part * self.recipe.batch_size // 2
        return ids[row], targets[row]


def accumulated() -> None:
    """Two passes a step are `compute.accumulate = 2`; parameters, states, losses and ledger are the lab's to the last bit."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    r = recipe(SHORT, num_workers=2, batch_size=4, compute={"accumulate": 2}, eval_every=0)
    own = Trainer(r, corpus=corpus())
    (model,) = modules(r, 1, own.setup.data.vocab_size)  # type: ignore[union-attr]
    model = accelerator.prepare_model(model, evaluation_mode=True)
    sync = lab.attach(model, r.method, steps=r.steps)
    loader, optimizer = accelerator.prepare(DataLoader(Rows(own), batch_size=2), sync)
    for ids, targets in loader:
        with accelerator.accumulate(model):
            loss = model.loss(ids, targets)
            sync.note(loss / 2)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    sync.close()
    trainer = Trainer(r, corpus=corpus(), world=sync.world)
    events = list(trainer.events())
    assert sync.t == r.steps
    assert differences(trainer, sync) == []
    assert seen(sync.events) == seen(events)


def wrapped() -> None:
    accelerator = Accelerator(cpu=True)
    try:
        lab.attach(accelerator.prepare(nn.Linear(2, 2)))
    except RecipeError as error:
        print(error, flush=True)
    model = nn.Linear(2, 2)
    sync = lab.attach(model)
    before = model.weight.detach().clone()
    ddp = accelerator.prepare(model)
    ddp(torch.ones(2, 2)).sum().backward()
    try:
        sync.step()
    except RecipeError as error:
        print(error, flush=True)
    assert torch.equal(model.weight, before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    accumulated()
    wrapped()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that is taken down in order (pytorch/pytorch#179291)
