"""`lab.attach` to a trainer of ``transformers``, in one process: what its loop may do, and what is refused (several: `tests.processes`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

import lab
from lab.events import Started, Stepped
from lab.ground.errors import RecipeError
from lab.runs.attach_trainer import SyncCallback
from tests.support import tiny_llama
from tests.support.in_trainer import Cut, InOrder

ROWS = [{"input_ids": row, "labels": row} for row in (torch.arange(9) + torch.arange(64)[:, None]) % 256]
INNER = {"name": "AdamW", "lr": 1e-2, "options": {"betas": [0.9, 0.999], "weight_decay": 0.0}}


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    tiny_llama.write(folder)
    return folder


@pytest.fixture(autouse=True)
def draws_of_its_own() -> Iterator[None]:
    """A trainer seeds every global generator."""
    import random

    import numpy as np

    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002


def trainer(files: Path, out: Path, **arguments: Any) -> Trainer:
    args: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    args |= {"disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2, "max_grad_norm": 0.0} | arguments
    model = AutoModelForCausalLM.from_pretrained(files)
    return InOrder(model=model, args=TrainingArguments(output_dir=str(out), **args), train_dataset=ROWS)


def parameters(made: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2},
        {"gradient_accumulation_steps": 3},
        {"max_grad_norm": 0.1},
        {"bf16": True},
    ],
    ids=lambda a: next(iter(a)),
)
def test_one_worker_is_the_trainer_as_it_was(arguments: dict[str, Any], model_files: Path, tmp_path: Path) -> None:
    """The same optimizer, attached or not: the same bits, under its scheduler, accumulation, clipping and precision; and its loss."""
    plain = trainer(model_files, tmp_path / "plain", optim="adamw_torch_fused", logging_steps=1, **arguments)
    plain.train()
    own = trainer(model_files, tmp_path / "own", logging_steps=1, **arguments)
    sync = lab.attach(own, "local_sgd", sync_every=100, inner=INNER, max_norm=None)
    own.train()
    assert all(torch.equal(a, b) for a, b in zip(parameters(plain), parameters(own), strict=True))
    logged = [row for row in own.state.log_history if "loss" in row]
    assert [row["learning_rate"] for row in logged] == [
        row["learning_rate"] for row in plain.state.log_history if "loss" in row
    ]
    said = [e.loss for e in sync.events if isinstance(e, Stepped)]
    assert said == pytest.approx([row["loss"] for row in logged], rel=1e-3)


def test_it_goes_on_from_the_trainers_own_checkpoint(model_files: Path, tmp_path: Path) -> None:
    """One process needs no folder: the trainer's checkpoint has all; what it writes is a model that can be loaded."""
    whole = trainer(model_files, tmp_path / "whole")
    lab.attach(whole, "diloco", sync_every=3, inner=INNER)
    whole.train()
    first = trainer(model_files, tmp_path / "cut", save_strategy="steps", save_steps=4)
    first.add_callback(Cut())
    lab.attach(first, "diloco", sync_every=3, inner=INNER)
    with pytest.raises(Cut.Off):
        first.train()
    again = trainer(model_files, tmp_path / "cut", save_strategy="steps", save_steps=4)
    sync = lab.attach(again, "diloco", sync_every=3, inner=INNER)
    again.train(resume_from_checkpoint=True)
    assert sync.t == 6
    assert [type(e) for e in sync.events[:2]] == [Started, Stepped]
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(again), strict=True))
    again.save_model(str(tmp_path / "saved"))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(parameters(again), loaded.parameters(), strict=True))


def test_a_trainer_and_a_folder_that_are_not_at_the_same_step(model_files: Path, tmp_path: Path) -> None:
    """One line, before anything trains."""
    first = trainer(model_files, tmp_path / "out", save_strategy="steps", save_steps=4)
    first.add_callback(Cut())
    lab.attach(first, "diloco", folder=tmp_path / "run")
    with pytest.raises(Cut.Off):
        first.train()
    again = trainer(model_files, tmp_path / "out")
    lab.attach(again, "diloco", folder=tmp_path / "run")
    with pytest.raises(RecipeError, match="the loop goes on after step 0, and the attached run is at step 4"):
        again.train()


REFUSED = {
    "another optimizer": "an optimizer of its own",
    "model_init": "model_init",
    "torch_compile": "torch_compile=True",
    "auto_find_batch_size": "auto_find_batch_size=True",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_said_in_one_line(case: str, model_files: Path, tmp_path: Path) -> None:
    made = trainer(model_files, tmp_path, **({case: True} if "_size" in case or "compile" in case else {}))
    if case == "another optimizer":
        made.create_optimizer()
    elif case == "model_init":
        made.model_init = lambda: made.model
    with pytest.raises(RecipeError, match=f"the trainer has {REFUSED[case]}") as error:
        lab.attach(made, "diloco")
    assert "\n" not in str(error.value)


def test_the_callback_is_there_and_the_model_is_not_wrapped(model_files: Path, tmp_path: Path) -> None:
    made = trainer(model_files, tmp_path)
    sync = lab.attach(made, "diloco")
    assert sum(isinstance(c, SyncCallback) for c in made.callback_handler.callbacks) == 1
    made.train()
    assert type(made.model_wrapped) is LlamaForCausalLM
    assert made.args.average_tokens_across_devices is False
    assert sync.stream.ended is not None
    assert {group for record in sync.ledger for group in record.payload_bytes} <= {
        "norm",
        "embed",
        "attn",
        "mlp",
        "head",
    }
