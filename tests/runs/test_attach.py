"""`lab.attach` in one process: a loop of one's own equals the lab's to the last bit, is written down like a run, and refuses by name."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lab
from lab.cli import main
from lab.engine.optim import Optimizer
from lab.engine.state import Grad, State
from lab.events import Checkpointed, Ended, Evaluated, Event, Started, Stepped, Warned, to_json
from lab.ground.errors import Diverged, RecipeError
from lab.methods import METHODS, Method, declared, method
from lab.methods.ddp import DDP
from lab.methods.diloco import DiLoCo
from lab.optimizers.schedule import Schedule
from lab.runs.attached import Attached, Factor
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from tests.support import ROOT
from tests.support.bench import Net, batch, fill_
from tests.support.buffered import normed
from tests.support.every import CASES
from tests.support.own_loop import backward, differences, labs_own, loop, modules, seen
from tests.support.recipes import SHORT, recipe
from widgets import CommunicationBudget, Drift, Losses, SyncCalendar, Workers

STEPS = 6


@pytest.fixture(autouse=True)
def draws_of_its_own() -> Iterator[None]:
    """Layers of torch draw their first values from its global generator: here from one that is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def attached(r: Any, num: int | None = None, **options: Any) -> tuple[Attached, Any]:
    """Modules of a recipe under its method, and the data that its workers read."""
    trainer, _ = labs_own(r.but(steps=1))
    data = trainer.setup.data
    models = modules(r, num or r.num_workers, data.vocab_size)
    return lab.attach(models, r.method, codecs=r.codecs, steps=r.steps, **options), data


# --- the lab's own loop ------------------------------------------------------------------------------------------------


ATTACHABLE = [(n, m, marks) for n, m, marks in CASES if not declared(m).server and not declared(m).own_loss]


@pytest.mark.parametrize("method", [pytest.param(m, id=name, marks=marks) for name, m, marks in ATTACHABLE])
def test_it_is_the_labs_own_loop_bit_for_bit(method: Method) -> None:
    """Parameters, optimizer states, agreed states, losses, ledger and drift, with three workers in one process."""
    r = recipe(method, eval_every=0)
    trainer, events = labs_own(r)
    sync, data = attached(r)
    loop(sync, data, STEPS)
    sync.close()
    assert differences(trainer, sync) == []
    assert seen(sync.events) == seen(events)
    assert list(sync.ledger) == list(trainer.comm.ledger)
    kinds = {type(e) for e in sync.events}
    assert {Started, Stepped, Ended} <= kinds


@pytest.mark.parametrize("codecs", [{"params": "int8"}, {"params": "topk:0.2"}, {"params": "bfloat16"}], ids=str)
def test_codecs_are_those_of_the_lab(codecs: dict[str, str]) -> None:
    r = recipe(DiLoCo(sync_every=2), codecs=codecs, eval_every=0)
    trainer, events = labs_own(r)
    sync, data = attached(r)
    loop(sync, data, STEPS)
    assert differences(trainer, sync) == []
    assert seen(sync.events) == seen(events)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(dtype: str) -> None:
    r = recipe(SHORT, dtype=dtype, eval_every=0)
    trainer, _ = labs_own(r)
    sync, data = attached(r)
    loop(sync, data, STEPS)
    assert differences(trainer, sync) == []


def test_one_worker_is_torchs_optimizer() -> None:
    """Nothing is sent, and the step is that of the torch optimizer that the loop had before, clipping included."""
    mine, theirs = fill_(Net()), fill_(Net())
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inner = Optimizer("AdamW", 1e-2, {"betas": (0.9, 0.95), "weight_decay": 0.1})
    sync = lab.attach(mine, "local_sgd", sync_every=100, inner=inner, max_norm=None)
    for t in range(1, 8):
        for model, step in ((mine, sync), (theirs, optimizer)):
            step.zero_grad()
            model.loss(*batch(0, t)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            step.step()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert len(sync.ledger) == 0


# --- what the user's loop does -----------------------------------------------------------------------------------------


def test_a_scheduler_of_torch_sets_what_the_inner_optimizer_takes() -> None:
    """Warm-up and cosine by `LambdaLR` are the recipe's own schedule bit for bit."""
    schedule = Schedule("cosine", warmup=2, final=0.1)
    r = recipe(SHORT, schedule=schedule, eval_every=0)
    trainer, events = labs_own(r)
    sync, data = attached(r)
    scheduler = torch.optim.lr_scheduler.LambdaLR(sync, lambda done: schedule.at(done + 1, STEPS))
    for t in range(1, STEPS + 1):
        backward(sync.modules, data, t, sync.fleet.mine)
        sync.step()
        sync.zero_grad()
        scheduler.step()
    assert differences(trainer, sync) == []
    lr = [e.lr for e in sync.events if isinstance(e, Stepped)]
    assert lr == pytest.approx([e.lr for e in events if isinstance(e, Stepped)], rel=1e-15)


def test_every_scheduler_is_followed_to_the_last_bit() -> None:
    """Also one that multiplies again and again, whose values are no multiples of the first."""
    sync = lab.attach(fill_(Net()), "des_loc", inner={"lr": 3e-3})
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sync, T_max=50, eta_min=1e-7)
    for t in range(1, 60):
        sync.zero_grad()
        sync.modules[0].loss(*batch(0, t)).backward()
        asked = sync.param_groups[0]["lr"]
        sync.step()
        scheduler.step()
        assert sync.run_state.optimizers["inner"].param_groups[0]["lr"] == asked
    assert 0.003 * Factor(0.1, 0.003) == 0.1
    assert 0.5 * Factor(0.1, 0.2) == 0.25


def test_several_backward_passes_are_one_step() -> None:
    """Accumulated gradients are those of `compute.accumulate`."""
    r = recipe(SHORT, batch_size=4, compute={"accumulate": 2}, eval_every=0)
    trainer, events = labs_own(r)
    sync, data = attached(r)
    for t in range(1, STEPS + 1):
        sums = []
        for model, w in zip(sync.modules, sync.fleet.mine, strict=True):
            ids, targets = data.batches.get(w, t)
            parts = [model.loss(i, y) / 2 for i, y in zip(ids.chunk(2), targets.chunk(2), strict=True)]
            for part in parts:
                part.backward()
            sums.append(sum(part.detach() for part in parts))
        sync.step(sums)
        sync.zero_grad()
    assert differences(trainer, sync) == []
    assert seen(sync.events) == seen(events)


def test_autocast_is_mixed_precision() -> None:
    """Around the loss, as with `compute.mixed_precision`; a step inside of it is as exact as outside."""
    r = recipe(SHORT, dtype="float32", compute={"mixed_precision": "bf16"}, eval_every=0)
    trainer, _ = labs_own(r)
    sync, data = attached(r)
    for t in range(1, STEPS + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = [m.loss(*data.batches.get(w, t)) for w, m in enumerate(sync.modules)]
        for loss in losses:
            loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sync.step(losses)
        sync.zero_grad()
    assert differences(trainer, sync) == []


@pytest.mark.parametrize("way", ["sync", "sync zeros", "model", "model zeros", "each None", "in turns"])
def test_gradients_may_be_dropped_in_any_way(way: str) -> None:
    """Set to None, to zero or left to the attached optimizer: the same numbers."""

    def drop(t: int, sync: Attached) -> None:
        (model,) = sync.modules
        chosen = ["sync zeros", "model", "model zeros", "each None"][t % 4] if way == "in turns" else way
        match chosen:
            case "sync":
                sync.zero_grad()
            case "sync zeros":
                sync.zero_grad(set_to_none=False)
                assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
            case "model":
                model.zero_grad()
            case "model zeros":
                model.zero_grad(set_to_none=False)
            case "each None":
                for p in model.parameters():
                    p.grad = None

    def train(drop: Callable[[int, Attached], None]) -> list[Tensor]:
        sync = lab.attach(fill_(Net()), "des_loc", inner={"lr": 1e-2})
        for t in range(1, 7):
            sync.modules[0].loss(*batch(0, t)).backward()
            sync.step()
            drop(t, sync)
        return [p.detach().clone() for p in sync.modules[0].parameters()]

    plain = train(lambda t, sync: sync.zero_grad())
    assert all(torch.equal(a, b) for a, b in zip(plain, train(drop), strict=True))


def test_gradients_that_are_not_dropped_add_up() -> None:
    """As with torch's optimizers: a step leaves the gradients where they are."""
    sync = lab.attach(fill_(Net()), "local_sgd", inner={"name": "SGD", "lr": 1.0}, max_norm=None)
    plain = fill_(Net())
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    for t in (1, 2):
        for model, step in ((sync.modules[0], sync), (plain, optimizer)):
            model.loss(*batch(0, t)).backward()
            step.step()
    assert all(torch.equal(a, b) for a, b in zip(sync.modules[0].parameters(), plain.parameters(), strict=True))


def test_a_parameter_without_a_gradient_has_one_of_zero() -> None:
    """Where a pass does not use it, even if the pass before did."""
    sync = lab.attach(
        fill_(Net()), "local_sgd", inner={"name": "SGD", "lr": 1.0, "options": {"momentum": 0.5}}, max_norm=None
    )
    (model,) = sync.modules
    (model.out.sum() + model.bias.sum()).backward()
    sync.step()
    model.zero_grad()
    before = model.out.clone()
    model.bias.sum().backward()
    sync.step()
    assert torch.equal(model.out, before - 0.5)


def test_sparse_gradients_are_gradients() -> None:
    """Of an embedding that gives them, whichever way those before were dropped."""

    def train(sparse: bool) -> Tensor:
        model = nn.Embedding(5, 3, sparse=sparse, _weight=torch.arange(15.0).view(5, 3))
        sync = lab.attach(model, "des_loc", inner={"lr": 1e-2})
        for t in range(4):
            model(torch.tensor([t, 1])).square().sum().backward()
            sync.step()
            model.zero_grad() if t % 2 else sync.zero_grad()
        return model.weight

    assert torch.equal(train(sparse=True), train(sparse=False))


def test_whoever_holds_a_parameter_holds_it_still() -> None:
    """Parameters stay the same objects, tied ones tied; values can be loaded, saved and copied; what is frozen is left alone."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[1].requires_grad_(False)
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {name: x.clone() for name, x in model.state_dict().items()}
    sync = lab.attach(model, "diloco")
    assert all(p is before[name] for name, p in model.named_parameters(remove_duplicate=False))
    assert all(torch.equal(x, values[name]) for name, x in model.state_dict().items())
    model.load_state_dict({name: x + 1 for name, x in values.items()})
    assert torch.equal(sync.fleet.params["0.weight"][0], values["0.weight"] + 1)
    assert sync.fleet.num_params() == 4 * 4 + 4 + 4
    assert copy.deepcopy(model)[0].weight.untyped_storage().nbytes() == 4 * 4 * 4


def test_a_closure_is_called_once() -> None:
    sync = lab.attach(fill_(Net()), "des_loc")
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        sync.zero_grad()
        loss: Tensor = sync.modules[0].loss(*batch(0, 1))
        loss.backward()
        return loss

    with torch.no_grad():
        sync.step(closure)
    assert calls == [1]
    (stepped,) = [e for e in sync.events if isinstance(e, Stepped)]
    assert stepped.loss == fill_(Net()).loss(*batch(0, 1)).item()


# --- what is said of it ------------------------------------------------------------------------------------------------


def test_a_folder_is_that_of_any_run(tmp_path: Path) -> None:
    """Replay, comparison, columns and views read it; resuming it by the command line says whose affair that is."""
    r = recipe(SHORT, eval_every=0)
    taken: list[Event] = []
    with attached(r, folder=tmp_path / "mine", examples=16, each=taken.append)[0] as sync:
        _, data = attached(r)
        sync.evaluated(5.0)
        loop(sync, data, STEPS)
        sync.evaluated(2.5, {"accuracy": 0.25})
    events = list(RunFolder(tmp_path / "mine").events())
    assert [to_json(e) for e in events] == [to_json(e) for e in sync.events] == [to_json(e) for e in taken]
    assert [type(e) for e in events[:3]] == [Started, Evaluated, Stepped]
    assert isinstance(events[-1], Ended)
    assert events[-1].status == "done"
    columns = Columns.of(events)
    assert columns.loss_W == sync.columns.loss_W
    assert columns.num_workers == 3
    assert columns.eval_loss == [5.0, 2.5]
    assert columns.recipe.method == r.method
    assert columns.curves.tokens.values[-1] == 3 * 16 * STEPS
    for view in (Losses, CommunicationBudget, SyncCalendar, Drift, Workers):
        assert view.of(events).board().svg()
    for command in (["replay", "mine", "--speed", "inf"], ["compare", "mine"], ["list"], ["resume", "mine"]):
        out = CliRunner().invoke(main, [*command, "--runs", str(tmp_path)])
        assert out.exit_code == 0, out.output
        assert not re.search(r"\bnan\b", out.output)


def test_resuming_by_the_command_line_points_to_the_script(tmp_path: Path) -> None:
    sync, data = attached(recipe(SHORT), folder=tmp_path / "mine")
    loop(sync, data, 3)
    sync.save()
    out = CliRunner().invoke(main, ["resume", "mine", "--runs", str(tmp_path)])
    assert out.exit_code == 2
    assert "starting that script again" in out.output


def test_what_is_not_said_is_not_made_up(tmp_path: Path) -> None:
    """Every worker was up, and no number stands for its loss; nor for validation and tokens."""
    r = recipe(SHORT)
    sync, data = attached(r, folder=tmp_path / "mine")
    for t in range(1, 5):
        backward(sync.modules, data, t, sync.fleet.mine)
        sync.step()
        sync.zero_grad()
    sync.close()
    stepped = [e for e in sync.events if isinstance(e, Stepped)]
    assert all(e.num_up == 3 and math.isnan(e.loss) for e in stepped)
    for view in (Losses, Workers):
        assert view.of(sync.events).board().svg()
    out = CliRunner().invoke(main, ["replay", "mine", "--speed", "inf", "--runs", str(tmp_path)])
    assert out.exit_code == 0, out.output
    assert "validation" not in out.output
    assert "tokens" not in out.output


def test_a_script_that_forgets_to_close_leaves_what_it_did(tmp_path: Path) -> None:
    """The run is there, unfinished, up to its last step."""
    code = """
import torch, lab
model = torch.nn.Linear(2, 2)
sync = lab.attach(model, "local_sgd", sync_every=2, folder="run", steps=1)
for _ in range(5):
    model(torch.ones(1, 2)).sum().backward()
    sync.step()
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    run = RunFolder(tmp_path / "run")
    assert [e.step for e in run.events() if isinstance(e, Stepped)] == [1, 2, 3, 4, 5]
    assert run.ended() is None
    (warned,) = [e.message for e in run.events() if isinstance(e, Warned)]
    assert "sync_every = 2 is longer than the 1 steps" in warned


def test_compiled_modules_train_alike() -> None:
    """Whichever came first."""
    plain, before, after = (fill_(nn.Sequential(nn.Linear(3, 2, dtype=torch.float64))) for _ in range(3))
    called = [plain, torch.compile(before, backend="eager"), torch.compile(after, backend="eager")]
    syncs = [lab.attach(model, "local_sgd") for model in (plain, before, called[2])]
    for t in range(3):
        for model, sync in zip(called, syncs, strict=True):
            model(batch(0, t)[0]).square().mean().backward()
            sync.step()
            sync.zero_grad()
    for model in (before, after):
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert list(syncs[2].agreed()) == list(called[2].state_dict())


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"loss of worker 1 is no finite number in step 1"):  # noqa: SIM117
        with attached(recipe(SHORT), folder=tmp_path)[0] as sync:
            sync.step([1.0, float("nan"), 2.0])
    ended = RunFolder(tmp_path).ended()
    assert ended is not None
    assert (ended.status, ended.step) == ("failed", 1)


def test_the_agreed_model_is_the_mean_with_its_buffers() -> None:
    """As a state dict that a model like the attached ones loads."""

    def make() -> Any:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    g = torch.Generator().manual_seed(0)
    models = [make() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    sync = lab.attach(models, "local_sgd", sync_every=3, inner={"lr": 1e-2})
    for _ in range(4):
        for model in models:
            model(torch.randn(8, 3, generator=g)).square().mean().backward()
        sync.step()
        sync.zero_grad()
    agreed, fresh = sync.agreed(), make()
    fresh.load_state_dict(agreed)
    for name in ("0.weight", "2.bias"):
        torch.testing.assert_close(agreed[name], (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2)
        assert not torch.equal(agreed[name], models[0].state_dict()[name])
    means = [m[1].running_mean for m in models]
    assert torch.equal(fresh[1].running_mean, torch.stack(means).double().mean(0).float())
    assert int(fresh[1].num_batches_tracked) == 4


def test_all_workers_start_from_the_first(tmp_path: Path) -> None:
    """What they are sent for that is counted, and said; where all are equal nothing is sent."""
    models = [fill_(Net()), fill_(Net()), fill_(Net())]
    with torch.no_grad():
        models[2].bias.add_(1.0)
    sync = lab.attach(models, "ddp")
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[2].parameters(), strict=True))
    (sent,) = sync.ledger
    assert (sent.op, sent.state, sent.workers, sent.step, sent.bytes_each) == ("broadcast", "params", (2,), 0, 24 * 8)
    sync.step()
    assert any(isinstance(e, Warned) and "workers 2 began with other values" in e.message for e in sync.events)
    assert not len(lab.attach([fill_(Net()), fill_(Net())], "ddp").ledger)


def test_buffers_are_averaged_where_it_is_asked_for() -> None:
    """At the end of a round, or on a period of their own: floats become their means, counts stay, and the bytes are counted."""
    models = [normed() for _ in range(3)]
    sync = lab.attach(models, "local_sgd", sync_every=4, buffers={"kind": "averaged", "every": 3}, max_norm=None)
    for t in range(1, 7):
        for w, model in enumerate(models):
            model.loss(*batch(w, t)).backward()
        before = [{n: x.clone() for n, x in m.named_buffers()} for m in models]
        sync.step()
        sync.zero_grad()
        for w, model in enumerate(models):
            for name, x in model.named_buffers():
                mean = torch.stack([of[name] for of in before]).mean(0) if x.is_floating_point() else before[w][name]
                torch.testing.assert_close(x, mean if t % 3 == 0 else before[w][name], rtol=1e-12, atol=0)
    floats = 2 * 4 * 8  # mean and variance of four channels; a table that is no part of its state stays where it is
    sent = [r for r in sync.ledger if r.state == "buffers"]
    assert [(r.step, r.bytes_each) for r in sent] == [(3, floats), (6, floats)]
    for kind in ("first", "frozen"):
        with pytest.raises(RecipeError, match=f"buffers = '{kind}' is what happens around forward passes"):
            lab.attach([normed()], "local_sgd", buffers=kind)


class Kept:
    """A tracker that keeps what it is given, and fails where it is told to."""

    def __init__(self, fails: bool = False):
        self.fails, self.rows, self.status = fails, dict[int, dict[str, float]](), ""

    def start(self, recipe: Any, name: str, resume: bool) -> int:
        if self.fails:
            raise OSError("no room")
        return 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows[step] = values

    def note(self, text: str, step: int, warning: bool) -> None:
        pass

    def finish(self, status: str) -> None:
        self.status = status


def test_trackers_are_told_and_never_stop_the_loop() -> None:
    good, bad = Kept(), Kept(fails=True)
    sync = lab.attach(fill_(Net()), "des_loc", track=[good, bad])
    for t in range(1, 4):
        loss = sync.modules[0].loss(*batch(0, t))
        loss.backward()
        sync.step(loss)
        sync.zero_grad()
    sync.close()
    assert sorted(good.rows) == [1, 2, 3]
    assert good.rows[1]["loss/mean"] == fill_(Net()).loss(*batch(0, 1)).item()
    assert good.status == "done"
    assert any(isinstance(e, Warned) and "no room" in e.message for e in sync.events)
    with pytest.raises(RecipeError, match="unknown tracker"):
        lab.attach(fill_(Net()), "des_loc", track="paper")


# --- keeping -----------------------------------------------------------------------------------------------------------

KEPT = {
    "des_loc": SHORT,
    "diloco": DiLoCo(sync_every=4),
    "photon": METHODS["photon"](sync_every=2, inner_states="reset"),
    "mt_dao": METHODS["mt_dao"](sync_every={"params": 2, "exp_avg": 2, "exp_avg_sq": 3}),
    "streaming_diloco": METHODS["streaming_diloco"](sync_every=2, num_fragments=1),
    "noloco": METHODS["noloco"](sync_every=2),
    "topk": DiLoCo(sync_every=2),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_loop_that_was_cut_off_goes_on_from_its_folder(name: str, tmp_path: Path) -> None:
    """To the last bit as if it had never stopped; its events are those of one run."""
    codecs = {"params": "topk:0.2"} if name == "topk" else {}
    r = recipe(KEPT[name], codecs=codecs, eval_every=0)
    whole, data = attached(r)
    loop(whole, data, STEPS)
    whole.close()

    first, _ = attached(r, folder=tmp_path)
    loop(first, data, 3)
    first.save()
    loop(first, data, 5)  # lost

    second, _ = attached(r, folder=tmp_path)  # as where a cell is executed again
    with pytest.raises(RecipeError, match=r"the run has ended after step 5 \(stopped\)"):
        first.step()
    assert second.t == 3
    loop(second, data, STEPS)
    second.close()
    assert [torch.equal(a, b) for a, b in zip(whole.fleet.params.blocks, second.fleet.params.blocks, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole.fleet.params.blocks, second.fleet.params.blocks, strict=True))
    assert seen(second.events) == seen(whole.events)
    assert list(RunFolder(tmp_path).events()) == second.events
    assert sum(isinstance(e, Checkpointed) for e in second.events) == 1
    with pytest.raises(RecipeError, match="holds a run that is done: give another folder"):
        attached(r, folder=tmp_path)


@pytest.mark.parametrize("name", KEPT)
def test_a_state_dict_goes_on_where_it_was_made(name: str, tmp_path: Path) -> None:
    """Through a file that torch reads without unpickling objects, the parameters with their models."""
    codecs = {"params": "topk:0.2"} if name == "topk" else {}
    r = recipe(KEPT[name], codecs=codecs, eval_every=0)
    whole, data = attached(r)
    loop(whole, data, 3)
    torch.save([whole.state_dict(), [m.state_dict() for m in whole.modules]], tmp_path / "state.pt")
    loop(whole, data, STEPS)

    again, _ = attached(r)
    loop(again, data, 2)  # of which nothing is left
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    for module, of_it in zip(again.modules, values, strict=True):
        module.load_state_dict(of_it)
    again.load_state_dict(state)
    assert again.t == 3
    loop(again, data, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole.fleet.params.blocks, again.fleet.params.blocks, strict=True))


def test_a_scheduler_goes_on_where_the_run_does(tmp_path: Path) -> None:
    """``last_epoch=sync.t - 1`` is for a beginning and for going on."""
    r = recipe(SHORT, eval_every=0)

    def train(sync: Attached, until: int) -> None:
        schedule = torch.optim.lr_scheduler.LambdaLR(sync, lambda done: 0.9**done, last_epoch=sync.t - 1)
        for t in range(sync.t + 1, until + 1):
            backward(sync.modules, data, t, sync.fleet.mine)
            sync.step()
            sync.zero_grad()
            schedule.step()

    whole, data = attached(r)
    train(whole, STEPS)
    first, _ = attached(r, folder=tmp_path)
    train(first, 3)
    first.save()
    second, _ = attached(r, folder=tmp_path)
    train(second, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole.fleet.params.blocks, second.fleet.params.blocks, strict=True))
    rates = [[e.lr for e in sync.events if isinstance(e, Stepped)] for sync in (whole, second)]
    assert rates[0] == rates[1]


def test_buffers_are_kept(tmp_path: Path) -> None:
    """Those of every worker, in the folder's checkpoint."""

    def make() -> Any:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        return model

    sync = lab.attach([make(), make()], "local_sgd", folder=tmp_path)
    g = torch.Generator().manual_seed(0)
    for model in sync.modules:
        model(torch.randn(8, 3, generator=g)).sum().backward()
    sync.step()
    sync.save()
    again = lab.attach([make(), make()], "local_sgd", folder=tmp_path)
    for old, new in zip(sync.modules, again.modules, strict=True):
        assert torch.equal(old[1].running_mean, new[1].running_mean)
    assert not torch.equal(again.modules[0][1].running_mean, again.modules[1][1].running_mean)


def test_parameters_can_be_written_to_safetensors(tmp_path: Path) -> None:
    """They are views of one tensor, and none of another's bytes are written with them."""
    sync = lab.attach([fill_(Net()), fill_(Net())], "ddp")
    save_file(sync.modules[1].state_dict(), tmp_path / "model.safetensors")
    assert all(
        torch.equal(x, fill_(Net()).state_dict()[n]) for n, x in load_file(tmp_path / "model.safetensors").items()
    )


# --- what is refused ---------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64)


def shared() -> Sequence[nn.Module]:
    model = nn.Linear(2, 2)
    return [model, model]


BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no module": (lambda: 3, {}, "attach is for a torch.nn.Module, a list of them"),
    "a list of something else": (lambda: [nn.Linear(2, 2), 3], {}, "attach is for a torch.nn.Module"),
    "an empty list": (list, {}, "empty list"),
    "nothing to train": (
        lambda: nn.Linear(2, 2).requires_grad_(False),
        {},
        "Linear has no parameter that requires a gradient",
    ),
    "float16": (
        lambda: nn.Linear(2, 2).half(),
        {},
        "weight of worker 0 is float16: parameters of float32, bfloat16, float64",
    ),
    "two dtypes": (Mixed, {}, "a.weight of worker 0 is float32 on cpu and b.weight of worker 0 float64 on cpu"),
    "on meta": (lambda: nn.Linear(2, 2, device="meta"), {}, "no plain tensor with values"),
    "other shapes": (
        lambda: [nn.Linear(2, 2), nn.Linear(3, 2)],
        {},
        r"parameter weight is \(2, 2\) at worker 0 and \(2, 3\) at worker 1",
    ),
    "other names": (
        lambda: [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))],
        {},
        r"parameter weight is \(2, 2\) at worker 0 and none at worker 1",
    ),
    "one model twice": (shared, {}, "workers 0 and 1 share the parameter weight"),
    "wrapped": (lambda: nn.DataParallel(nn.Linear(2, 2)), {}, "wrapped in DataParallel, which averages gradients"),
    "a method that there is not": (Net, {"method": "deslok"}, "did you mean 'des_loc'"),
    "a wrong option": (Net, {"sync_evry": 3}, "unknown option 'method.sync_evry'"),
    "a wrong state": (Net, {"sync_every": {"params": 3, "exp": 3}}, "unknown state of AdamW in sync_every"),
    "a server": (
        Net,
        {"method": "fedit"},
        "fedit cannot be attached: a server hands out the model before gradients are computed",
    ),
    "an own loss": (Net, {"method": "prelort"}, "prelort cannot be attached"),
    "options of a method that is made": (Net, {"method": DDP(), "max_norm": None}, "a method and its options"),
    "a codec for nothing": (Net, {"method": "ddp", "codecs": {"velocity": "int8"}}, "unknown state in codecs"),
    "a sparse codec on whole parameters": (
        Net,
        {"method": "local_sgd", "codecs": {"params": "topk:0.1"}},
        "a topk codec sends only part",
    ),
    "no layers": (Net, {"method": "streaming_diloco", "num_fragments": 9}, "fragments"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_attached_is_said_in_one_line(case: str) -> None:
    """Before anything is changed."""
    make, options, message = BAD[case]
    with pytest.raises(RecipeError, match=message) as error:
        lab.attach(make(), **({"method": "des_loc"} | options))
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Twice:
    """Asks for a second gradient in every third step, as sharpness-aware methods do."""

    sync_every: int = 3
    inner: Optimizer = dataclasses.field(default_factory=Optimizer)
    averages: tuple[str, ...] = ("params",)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Any, t: int) -> Tensor:
        loss_W = grad(s)
        return grad(s) if t % self.sync_every == 0 else loss_W


@dataclasses.dataclass(frozen=True)
class First(Twice):
    """Moves parameters before it asks for gradients."""

    def step(self, s: State, grad: Grad, comm: Any, t: int) -> Tensor:
        for x in s.local["params"].blocks if not s.dry else ():
            x.mul_(0.5)
        return grad(s)


def test_methods_that_ask_for_what_an_own_loop_cannot_give() -> None:
    method("twice_in_a_step")(Twice)
    method("moves_first")(First)
    with pytest.raises(RecipeError, match=r"twice_in_a_step asks for gradients 2 times in step 3"):
        lab.attach(Net(), Twice())
    sync = lab.attach(fill_(Net()), First())
    with pytest.raises(RecipeError, match="moves_first changes parameters before it asks for gradients"):
        sync.step()


def changed(case: str, after: int = 0) -> tuple[Any, Attached]:
    """A model that is changed before its first step, or after some."""
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    sync = lab.attach(model, "des_loc")
    for _ in range(after):
        model(torch.ones(1, 3)).sum().backward()
        sync.step()
        sync.zero_grad()
    match case:
        case "replaced":
            model[0] = nn.Linear(3, 3)
        case "another name":
            model.add_module("2", model[0])
            del model[0]
        case "added":
            model.append(nn.Linear(3, 3))
        case "frozen":
            model[0].requires_grad_(False)
        case "assigned":
            model.load_state_dict({k: torch.zeros_like(x) for k, x in model.state_dict().items()}, assign=True)
        case "moved":
            model.to(torch.float64)
    return model, sync


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("replaced", "parameter 0.weight of worker 0 is new or another one since the model was attached"),
        ("another name", "parameter 0.weight of worker 0 is (gone, renamed or frozen|new or another one)"),
        ("added", "parameter 2.weight of worker 0 is new or another one"),
        ("frozen", "parameter 0.weight of worker 0 is gone, renamed or frozen"),
        ("assigned", "parameter 0.weight of worker 0 is new or another one"),
        ("moved", r"the values of 0.weight \(worker 0\) were moved"),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_a_model_that_has_changed_since_is_refused_before_it_is_trained(case: str, message: str, after: int) -> None:
    model, sync = changed(case, after)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RecipeError, match=message):
        sync.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert sync.t == after


def test_what_a_model_was_worth_is_a_number(tmp_path: Path) -> None:
    """Tensors of one element are; what is none is refused where it is said, and not when the run is written."""
    with lab.attach(fill_(Net()), "des_loc", folder=tmp_path) as sync:
        sync.step()
        sync.evaluated(torch.tensor(0.5), {"accuracy": torch.tensor([0.25])})  # type: ignore[arg-type, dict-item]
        for scores in ({"accuracy": torch.zeros(2)}, {"accuracy": "good"}, {"accuracy": None}):
            with pytest.raises(RecipeError, match=r"^evaluated: accuracy = .* is no number: give a float"):
                sync.evaluated(0.5, scores)  # type: ignore[arg-type]
    (evaluated,) = (e for e in RunFolder(tmp_path).events() if e.kind == "evaluated")
    assert (evaluated.loss, evaluated.scores) == (0.5, {"accuracy": 0.25})


def test_a_grad_scaler_is_refused_by_name() -> None:
    sync = lab.attach(fill_(Net()), "des_loc")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(sync.modules[0].loss(*batch(0, 1))).backward()
    with pytest.raises(RecipeError, match=r"a GradScaler \(fp16\) leaves out steps .* use bfloat16"):
        scaler.step(sync)
    assert torch.equal(sync.modules[0].hidden, fill_(Net()).hidden)


def test_what_makes_no_sense_is_said() -> None:
    sync = lab.attach([fill_(Net()), fill_(Net())], "des_loc")
    with pytest.raises(RecipeError, match="step was given 1 losses for the 2 workers of this process"):
        sync.step(1.0)
    with pytest.raises(RecipeError, match="one parameter group"):
        sync.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(RecipeError, match="no folder to save into"):
        sync.save()
    with pytest.raises(RecipeError, match="state of another optimizer"):
        sync.load_state_dict(torch.optim.SGD([torch.zeros(1)], lr=1.0).state_dict())
    other = lab.attach(fill_(Net()), "des_loc")
    with pytest.raises(RecipeError, match=r"state of worker \[0, 1\], and this process has \[0\]"):
        other.load_state_dict(sync.state_dict())
    sync.close()
    with pytest.raises(RecipeError, match="the run has ended after step 0"):
        sync.step([1.0, 1.0])


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    sync = lab.attach(fill_(Net()), "des_loc", folder=tmp_path)
    sync.step()
    sync.save()
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        lab.attach(fill_(Net()), "ddp", folder=tmp_path)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        lab.attach(nn.Linear(2, 2), "des_loc", folder=tmp_path)


def test_methods_that_can_be_attached_are_those_without_server_and_own_loss() -> None:
    """The message that refuses one names exactly the others."""
    with pytest.raises(RecipeError) as error:
        lab.attach(Net(), "flora")
    named = str(error.value).partition("one of ")[2].split(", ")
    assert sorted(named) == sorted(n for n, c in METHODS.items() if not declared(c).server and not declared(c).own_loss)
