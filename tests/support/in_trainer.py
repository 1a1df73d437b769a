"""One of two processes in which Hugging Face's `Trainer` trains by an attached method, and then the lab by the recipe of that.

torchrun … tests/support/in_trainer.py FOLDER, where ``FOLDER/model`` is the model. Says what differs; nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import lab
from lab.events import Event, Sent, Stepped
from lab.ground.errors import RecipeError
from lab.models.gpt import cross_entropy
from lab.recipes.recipe import Recipe
from lab.runs import trainer as labs
from lab.runs.attached import Attached
from lab.runs.data import training_data
from lab.runs.folder import RunFolder
from tests.support.recipes import TEXT, corpus

METHODS: dict[str, dict[str, Any]] = {
    "diloco": {"sync_every": 3},
    "des_loc": {"sync_every": {"params": 2, "exp_avg": 3, "exp_avg_sq": 4}},
}


def recipe(method: str, model: Path) -> Recipe:
    named = {"name": method} | METHODS[method]
    return Recipe.of(
        {"method": named, "model": f"hf:{model}", "corpus": TEXT, "num_workers": 2, "steps": 6, "eval_every": 0}
        | {"batch_size": 2, "context": 8, "checkpoint_every": 0}
    )


class Examples(Dataset[dict[str, Tensor]]):
    """The batches of the lab's run, step by step and worker by worker, as examples in a row: the k-th batch is that of worker k % N."""

    def __init__(self, r: Recipe):
        self.recipe, self.batches = r, training_data(r, corpus()).batches

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.num_workers * self.recipe.batch_size

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        k, row = divmod(i, self.recipe.batch_size)
        t, worker = divmod(k, self.recipe.num_workers)
        ids, targets = self.batches.get(worker, t + 1)
        return {"input_ids": ids[row], "labels": targets[row]}


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The lab's targets are shifted already."""
    return cross_entropy(outputs.logits, labels)


def made(r: Recipe, model: Path, out: Path, **arguments: Any) -> Trainer:
    args: dict[str, Any] = {"max_steps": r.steps, "per_device_train_batch_size": r.batch_size, "use_cpu": True}
    args |= {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "report_to": "none", "disable_tqdm": True}
    args |= {"save_strategy": "no", "logging_steps": 3} | arguments
    net = AutoModelForCausalLM.from_pretrained(model)
    options = TrainingArguments(output_dir=str(out), **args)
    return InOrder(model=net, args=options, train_dataset=Examples(r), compute_loss_func=loss_of)


def attach(trainer: Trainer, method: str, folder: Path) -> Attached:
    return lab.attach(trainer, method, folder=folder, **METHODS[method])


def same_as_the_labs(method: str, out: Path) -> None:
    """Parameters, losses and ledger of both; batches are those that the trainer's loader gives this process."""
    r = recipe(method, out / "model")
    trainer = made(r, out / "model", out / method)
    sync = attach(trainer, method, out / f"{method}-run")
    trainer.train()
    events = check(r, sync, trainer.model)
    assert [e.loss_W for e in sync.events if isinstance(e, Stepped)] == [
        e.loss_W for e in events if isinstance(e, Stepped)
    ]
    assert [e for e in sync.events if isinstance(e, Sent)] == [e for e in events if isinstance(e, Sent)]


def check(r: Recipe, sync: Attached, model: Any) -> list[Event]:
    """The events of the lab's run in these processes, whose parameters are the same to the last bit."""
    own = labs.Trainer(r, corpus=corpus(), world=sync.world)
    events = list(own.events())
    (worker,) = sync.fleet.mine
    for name, p in model.named_parameters():
        assert torch.equal(p, own.fleet.params.cell(f"model.{name}", worker)), name
    return events


class Cut(TrainerCallback):
    """Ends a trainer in the midst of training."""

    class Off(Exception):
        pass

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise self.Off


def goes_on(method: str, out: Path) -> None:
    """A trainer that was cut off after step 5 and goes on from its checkpoint of step 4 is one that never stopped."""
    r, place = recipe(method, out / "model"), out / f"{method}-cut"
    saving = {"save_strategy": "steps", "save_steps": 4}
    first = made(r, out / "model", place, **saving)
    first.add_callback(Cut())
    before = attach(first, method, place / "run")
    with contextlib.suppress(Cut.Off):
        first.train()
    again = made(r, out / "model", place, **saving)
    sync = attach(again, method, place / "run")
    assert (before.t, sync.t) == (5, 4)
    again.train(resume_from_checkpoint=True)
    check(r, sync, again.model)
    if sync.world.first:
        steps = [e.step for e in RunFolder(place / "run").events() if isinstance(e, Stepped)]
        assert steps == [1, 2, 3, 4, 5, 6]


def refused(out: Path) -> None:
    """In one line, before anything trains."""
    r = recipe("diloco", out / "model")
    said = []
    for arguments in ({"torch_compile": True}, {"auto_find_batch_size": True}):
        try:
            attach(made(r, out / "model", out / "no", **arguments), "diloco", out / "no-run")
        except RecipeError as error:
            said.append(str(error))
    own = made(r, out / "model", out / "no")
    own.create_optimizer()
    try:
        attach(own, "diloco", out / "no-run")
    except RecipeError as error:
        said.append(str(error))
    print("\n".join(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for method in METHODS:
        same_as_the_labs(method, out)
        goes_on(method, out)
    refused(out)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that is taken down in order (pytorch/pytorch#179291)
