"""Where, how precisely and how much at a time: none of it may change a run, but for rounding."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.optim import Optimizer
from lab.engine.vectorised import Vectorised
from lab.events import Event, Stepped, to_json
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.methods.ddp import DDP
from lab.models.lora import LoRA
from lab.models.shape import Shape
from lab.processes.peers import join
from lab.recipes.compute import SMALL, Compute, vectorised
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet, check_memory
from lab.runs.data import tokens_that_count
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support import ROOT
from tests.support.bench import close, flat
from tests.support.cases import EXPERTS, ON_A_DEVICE, STORM, of_four
from tests.support.launched import cut_off
from tests.support.listed import LISTED
from tests.support.recipes import TINY, corpus, recipe
from tests.support.stories import read, same, story, tell

CPU = torch.device("cpu")
EQUAL = LoRA(ranks=(2, 2, 2, 2))


def run(recipe: Recipe) -> list[Event]:
    return [e for e in story(Trainer(recipe, corpus=corpus()).events()) if e.kind != "started"]


def plain(events: list[Event]) -> list[Any]:
    return [json.loads(to_json(e)) for e in events]


# --- a batch in parts ------------------------------------------------------------------------------------------------


def batch() -> tuple[Tensor, Tensor]:
    """Six rows of eight; of some no target counts, of others a few."""
    g = generator(0, "batch")
    ids, targets = torch.randint(0, 8, (2, 6, 8), generator=g)
    targets[torch.rand(6, 8, generator=g) < 0.4] = -100
    targets[2:4] = -100
    return ids, targets


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_parts_of_a_batch_have_its_gradient(parts: int) -> None:
    """Also where they are of unequal size, and where one has no target that counts."""
    module = TINY.build(8, 8, seed=1).double()
    module.loss(*batch()).backward()  # type: ignore[operator]
    want = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
    module.zero_grad()
    total = 0.0
    for loss in Compute(accumulate=parts).losses(module.loss, *batch(), CPU, tokens_that_count):  # type: ignore[arg-type]
        loss.backward()
        total += loss.item()
    assert close(torch.cat([p.grad.flatten() for p in module.parameters()]), want)  # type: ignore[union-attr]
    assert total == pytest.approx(module.loss(*batch()).item(), abs=1e-12)  # type: ignore[operator]


def test_a_part_is_made_only_when_the_one_before_is_done() -> None:
    """Else nothing would be saved."""
    seen: list[int] = []

    def of(ids: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(ids))
        return ids.sum()

    parts = Compute(accumulate=3).losses(of, torch.ones(7, 2), torch.ones(7, 2), CPU, Tensor.numel)
    next(parts)
    assert seen == [3]
    list(parts)
    assert seen == [3, 2, 2]


MIXTURE = EXPERTS | {
    "model": dataclasses.replace(EXPERTS["model"], balance=0.0)
}  # else each part has a balance of its own


@pytest.mark.parametrize(
    "whole",
    [
        of_four(LISTED["des_loc"], batch_size=3, scenario=STORM),
        of_four(LISTED["fomoe"], batch_size=3, **MIXTURE),
        of_four("prelort", batch_size=3, lora=LoRA(ranks=(1, 2, 4, 2))),
    ],
    ids=["des_loc", "experts", "prelort"],
)
def test_a_run_with_cut_batches_is_the_same_run(whole: Recipe) -> None:
    """But for what routers are seen to do: that is what they did in the last pass."""
    one, two = ([e for e in run(r) if e.kind != "routed"] for r in (whole, whole.but(compute={"accumulate": 2})))
    assert same(plain(one), plain(two), 1e-10)


# --- mixed precision -------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(True)  # another test of this process may have left one
    try:
        yield Accelerator(mixed_precision="bf16", cpu=True)
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.parametrize("vectorised", [False, True])
def test_bf16_is_that_of_accelerate(vectorised: bool, accelerator: Accelerator) -> None:
    """One worker and plain SGD, against a model and an optimizer that Accelerate has prepared: bit for bit.

    Through `vmap` products are batched, which round otherwise.
    """
    sgd = DDP(inner=Optimizer("SGD", 0.5), max_norm=None)
    mine = recipe(sgd, num_workers=1, dtype="float32", compute={"mixed_precision": "bf16", "vectorised": vectorised})
    trainer = Trainer(mine, corpus=corpus())
    losses = [e.loss_W[0] for e in trainer.events() if isinstance(e, Stepped)]

    module = mine.model.build(corpus().vocab_size, mine.context, mine.seed)
    before = flat(module).clone()
    model, optimizer = accelerator.prepare(module, torch.optim.SGD(module.parameters(), lr=0.5))
    theirs = []
    for t in range(1, mine.steps + 1):
        ids, targets = trainer.setup.data.batches.get(0, t)
        loss = module.criterion(model(ids), targets)  # type: ignore[operator]
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        theirs.append(loss.item())
    got = torch.cat([trainer.fleet.params[n][0].flatten() for n, _ in module.named_parameters()])
    if vectorised:
        assert losses == pytest.approx(theirs, rel=5e-3)
        assert float((got - flat(module)).norm() / (flat(module) - before).norm()) < 0.05
    else:
        assert losses == theirs
        assert torch.equal(got, flat(module))


def test_bf16_is_for_computing_alone() -> None:
    """Parameters, gradients, states and what travels stay float32: the ledger of both runs is the same, losses are not."""
    wide = of_four(LISTED["des_loc"], dtype="float32")
    narrow = wide.but(compute={"mixed_precision": "bf16"})
    trainers = [Trainer(r, corpus=corpus()) for r in (wide, narrow)]
    one, two = ([e for e in t.events() if isinstance(e, Stepped)] for t in trainers)
    assert [to_json(r) for r in trainers[0].comm.ledger] == [to_json(r) for r in trainers[1].comm.ledger]
    assert {b.dtype for s in trainers[1].state.local.values() for b in s.blocks} == {torch.float32}
    assert one[-1].loss_W != two[-1].loss_W
    assert one[-1].loss_W == pytest.approx(two[-1].loss_W, rel=0.02)


def test_experts_follow_bf16() -> None:
    """Their gradient by hand sees bfloat16, and gives back the dtype of the parameters."""
    wide = of_four(LISTED["fomoe"], dtype="float32", **EXPERTS)
    one, two = (
        [e for e in run(r) if isinstance(e, Stepped)] for r in (wide, wide.but(compute={"mixed_precision": "bf16"}))
    )
    assert one[-1].loss_W != two[-1].loss_W
    assert one[-1].loss_W == pytest.approx(two[-1].loss_W, rel=0.02)


# --- all workers at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "apart",
    [
        of_four(LISTED["des_loc"]),
        of_four("ddp", scenario=STORM),
        of_four("des_loc", lora=EQUAL),
        of_four(LISTED["streaming_diloco"], model="nano", context=16),
    ],
    ids=["des_loc", "workers down", "adapters", "nano"],
)
def test_all_workers_at_once_are_each_by_itself(apart: Recipe) -> None:
    assert same(plain(run(apart)), plain(run(apart.but(compute={"vectorised": True}))), 1e-10)


@pytest.mark.parametrize(
    ("apart", "why"),
    [
        (of_four("des_loc", model=dataclasses.replace(TINY, dropout=0.2)), "dropout"),
        (of_four(LISTED["fomoe"], **EXPERTS), "a model with experts"),
        (of_four("prelort", lora=EQUAL), "the nested loss of prelort"),
        (of_four("des_loc", lora=LoRA(ranks=(1, 2, 4, 2))), "all hold the same tensors"),
    ],
    ids=["dropout", "experts", "prelort", "ranks"],
)
def test_what_cannot_be_done_at_once_is_refused_before_it_begins(apart: Recipe, why: str) -> None:
    with pytest.raises(RecipeError, match=rf"compute\.vectorised = true.*{why}"):
        Trainer(apart.but(compute={"vectorised": True}), corpus=corpus())


def test_a_model_that_cannot_be_followed() -> None:
    """By itself the lab then lets each worker compute alone; who asked for it hears why."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
            return (self.weight * ids).sum() if ids.sum() > 0 else self.weight.sum()

    fleet = Fleet(lambda worker: Branches(), 2)
    for required in (False, True):
        all_at_once = Vectorised(fleet, Compute().precision, required)
        with pytest.raises(RecipeError, match="does not work here: leave it out") if required else nullcontext():
            assert all_at_once.backward(lambda workers: (torch.ones(len(workers), 1, 2),) * 2) is None
    with pytest.raises(RecipeError, match="a loss of its own"):
        Vectorised(fleet, Compute().precision, True).backward(
            lambda workers: (torch.ones(len(workers), 1, 2),) * 2, own_loss=True
        )


def test_when_the_lab_does_so_by_itself() -> None:
    """On a device that is none (``meta``), for small models; never on a CPU, never for cut batches."""

    def chosen(device: str = "meta", tokens: int = 512, **compute: Any) -> bool:
        fleet = build_fleet(recipe(), Shape(256, recipe().context), device)
        found = vectorised(fleet, Compute(**compute), tokens)
        return found is not None and not found.required

    assert chosen()
    assert not chosen("cpu")
    assert not chosen(accumulate=2)
    assert not chosen(vectorised=False)
    few = int(SMALL / build_fleet(recipe(), Shape(256, recipe().context), "meta").num_params())
    assert chosen(tokens=few - 1)
    assert not chosen(tokens=few + 1)


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On what Accelerate finds on a machine without GPUs."""
    out = tmp_path_factory.mktemp("here")
    for name, r in ON_A_DEVICE.items():
        tell(Trainer(r, corpus=corpus()).events(RunFolder(out / name)), out, name)
    return out


BEGUN_HERE = ("des_loc outer, storm", "experts that move, outer", "lordo error feedback")


@pytest.fixture(scope="module")
def far(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("far")
    for name in BEGUN_HERE:
        cut_off(here / name, out / name)
    env = os.environ | {"ACCELERATE_TORCH_DEVICE": "far:0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_device", str(out)],
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_DEVICE)
def test_a_run_on_another_device_is_the_same_run(name: str, here: Path, far: Path) -> None:
    """Every event, on a device that refuses what a GPU would refuse (`far`); three go on from checkpoints of the CPU."""
    # Near zero |u|^(β − 1) makes more of a weight's last digits.
    assert same(read(here, name), read(far, name), 1e-7 if name == "sparsyfed" else 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", BEGUN_HERE)
def test_a_checkpoint_of_another_device_resumes_on_the_cpu(name: str, here: Path, far: Path, tmp_path: Path) -> None:
    shutil.copytree(far / name, tmp_path / "whole")
    cut_off(tmp_path / "whole", tmp_path / name)
    events = story(Trainer(ON_A_DEVICE[name], corpus=corpus()).events(RunFolder(tmp_path / name)))
    assert same(read(here, name), plain(events), 1e-10)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"compute\.device = 'cuda', but Accelerate finds nothing better than cpu"):
        Trainer(recipe(compute={"device": "cuda"}), corpus=corpus())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compute": {"accumulate": 3}}, r"accumulate = 3 cuts a batch of 2 .* at most 2"),
        ({"compute": {"accumulate": 2, "vectorised": True}}, r"leave out one"),
        ({"compute": {"mixed_precision": "bf16"}}, r"for dtype float32, not float64"),
        ({"compute": {"device": "mps"}}, r"'mps' has no float64"),
        ({"compute": {"device": "gpu"}}, r"compute\.device = 'gpu'"),
        ({"compute": {"mixed_precision": "fp16"}}, r"compute\.mixed_precision = 'fp16'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe().but(**fields)


def test_every_process_wants_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses two processes on one GPU, later and less plainly."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(RecipeError, match=r"4 processes on this machine and 2 GPUs: use 2 processes"):
        join(4, device="auto")


def test_memory_is_asked_of_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU its own, for one worker at a time; less for batches in parts."""
    large = recipe(model="mini", batch_size=1000, context=1000, num_workers=2, dtype="float32")

    def asked(**compute: Any) -> float:
        with pytest.raises(RecipeError, match=r"are free on cuda.*compute\.accumulate") as refused:
            check_memory(large.but(compute=compute), Shape(256, large.context), 2, torch.device("cuda"))
        return float(re.findall(r"([\d.]+) for the activations", str(refused.value))[0])

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000, 1_000_000))
    assert asked(vectorised=True) == pytest.approx(2 * asked(), rel=0.01)
    assert asked(accumulate=4) == pytest.approx(asked() / 4, abs=0.1)
