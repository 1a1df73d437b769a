"""Laws that every method keeps without opting in, and reductions of one method to another.

A new method is covered by being listed in `lab.methods.METHODS` (see `tests.support.listed`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.engine.codecs import codec
from lab.engine.optim import ELEMENTWISE, ZERO_AT_START, AdamW, Nesterov, Optimizer
from lab.engine.stack import Stack
from lab.events import Ended, Evaluated, Event, Stepped, Warned, WorkersChanged, to_json
from lab.ground.errors import Diverged, RecipeError
from lab.methods import Method, declared
from lab.methods.ddp import DDP
from lab.methods.demo import DeMo
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.methods.local_adam import LocalAdam
from lab.methods.local_sgd import LocalSGD
from lab.methods.scaffold import SCAFFOLD
from lab.probes.probe import Setup
from lab.recipes.scenario import Outage, Scenario
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer, train
from lab.testing.method_laws import LAWS as METHOD_LAWS
from lab.testing.method_laws import exceptions
from lab.testing.report import Law
from lab.testing.subject import Subject
from tests.support.bench import Bench, batch, build, close, flat, other
from tests.support.every import every_name, every_peer, every_served
from tests.support.listed import ADOPT, LISTED, RMSPROP, SGD, SGDM, TREES
from tests.support.plain import plain
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go
from tests.support.stories import story

STEPS = 7
HANDED_IN = ("reduce", "gather")  # to a server
IN_PARTS = (
    "streaming_diloco",
    "streaming_diloco three",
    "streaming_des_loc",
    "streaming_des_loc two",
    "noloco",
    "noloco pull",
    "sparse_loco",
    "sparse_loco values of all",
    "sparta",
    "sparta a third",
    "worldlm",
    "mutual",
    "mutual other",
    *TREES,
)


# --- what lab.testing tries on methods of users, too ------------------------------------------------------------------

# What one worker alone does that its inner optimizer would not.
MORE = ("diloco", "lordo", "noloco", "photon", "outer", "reset", "two momenta", "fedprox AdamW", "scaffold samples")
MORE += ("q_fedavg", "sparsyfed", "top_k", "zerofl", "flash")  # who prunes
MORE += ("worldlm", "mutual", "sparse_loco", "async_diloco")


PLACED = ("relabelling", "solitude", "equal workers")
NOT_CLAIMED = {
    "noloco": ("relabelling",),
    "hierfavg two": PLACED,
    "worldlm two": (*PLACED, "schedule"),
    "worldlm": ("equal workers",),
    "async_diloco paces": ("isolation", *PLACED),
    "async_diloco by speed": ("isolation", *PLACED),
}


@every_name
@pytest.mark.parametrize("law", METHOD_LAWS, ids=METHOD_LAWS.names())
def test_law(law: Law[Subject], name: str) -> None:
    """Each method of the lab keeps each law, and says so where one is not its own; plans are made with codecs on, too."""
    method = LISTED[name]
    subject = Subject(method, {"codecs": narrowed(method)} if law.name == "dry run" else None)
    finding = law.check(subject, exceptions(method))
    silent = (
        law.name in exceptions(method)
        or (law.name == "plain optimizer" and any(word in name for word in MORE) and "alike" not in name)
        or (law.name in NOT_CLAIMED.get(name.split()[0] if "noloco" in name else name, ()))
    )
    assert finding.outcome == ("not applicable" if silent else "passed"), finding.says


# --- one worker and its neighbours -----------------------------------------------------------------------------------


@every_name
def test_workers_agree_after_a_sync(name: str) -> None:
    """Whenever all workers have just handed over a state in full, they leave with the same one.

    What the methods promise that never hand over a state in full stands in their own tests (`IN_PARTS`). With a server they have
    the same one when they have fetched it, and before they move: in the first step of a round nobody does here.
    """
    need = declared(LISTED[name])
    lab, synced = Bench(LISTED[name], schedule=lambda t: float(t % 2 == 0 or not need.server)), 0
    for t in range(1, STEPS + 1):
        lab.run(1)
        for r in lab.records:
            stack = lab.state.local.get(r.state) if r.op not in HANDED_IN and r.state not in need.keeps else None
            whole = stack is not None and r.bytes_each == 8 * sum(b.numel for b in stack.layout.blocks)
            if r.step == t and whole and r.workers == (0, 1, 2):
                assert torch.equal(lab.of(0, r.state), lab.of(1, r.state)), (t, r.state)
                assert torch.equal(lab.of(0, r.state), lab.of(2, r.state)), (t, r.state)
                synced += 1
    if isinstance(lab.method, DDP | DeMo):  # what they average are steps, in every step
        assert torch.equal(lab.of(0), lab.of(1))
        assert torch.equal(lab.of(0), lab.of(2))
    else:
        assert bool(synced) == (name not in IN_PARTS)


# --- one worker is plain torch --------------------------------------------------------------------------------------


PLAIN = (AdamW(3e-2), ADOPT, SGDM, SGD, RMSPROP, Optimizer("NAdam", 1e-2), Optimizer("Rprop", 1e-2))
INNER = {spec.name: spec for spec in PLAIN}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
@pytest.mark.parametrize("max_norm", [None, 0.2])
def test_one_worker_is_the_plain_optimizer(inner: Optimizer, max_norm: float | None) -> None:
    """With one worker, methods that only average are one module under torch's own optimizer and clipping."""
    alone = plain(inner, STEPS, max_norm=max_norm)
    for method in (
        DDP(inner=inner, max_norm=max_norm),
        LocalSGD(sync_every=2, inner=inner, max_norm=max_norm),
        LocalAdam(sync_every=2, inner=inner, max_norm=max_norm),
        DESLOC(sync_every=dict.fromkeys(["params", *inner.state_names], 2), inner=inner, max_norm=max_norm),
    ):
        assert close(Bench(method, 1).run(STEPS).of(0), alone), method
    assert not close(alone, plain(inner, STEPS - 1, max_norm=max_norm))


def test_one_worker_diloco_is_the_two_loops_of_the_paper() -> None:
    """With one worker DiLoCo is an outer torch SGD with Nesterov momentum around an inner torch AdamW that is kept."""
    net, agreed = build(None), build(None)
    inner = torch.optim.AdamW(net.parameters(), lr=3e-2, betas=(0.9, 0.95), weight_decay=0.0)
    outer = torch.optim.SGD(agreed.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for t in range(1, 9):
        inner.zero_grad()
        net.loss(*batch(0, t)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        inner.step()
        if t % 3 == 0:
            with torch.no_grad():
                for shared, local in zip(agreed.parameters(), net.parameters(), strict=True):
                    shared.grad = shared - local
                outer.step()
                for shared, local in zip(agreed.parameters(), net.parameters(), strict=True):
                    local.copy_(shared)
    lab = Bench(DiLoCo(sync_every=3, inner=AdamW(3e-2)), 1).run(8)
    assert close(lab.of(0), flat(net))
    assert close(lab.shared("params"), flat(agreed))


FRESH = [Optimizer(name, 1e-2) for name in ZERO_AT_START if name != "Muon"] + [
    Optimizer("SGD", 1e-2, {"momentum": 0.9, "nesterov": True}),
    Optimizer("Adam", 1e-2, {"amsgrad": True}),
    Optimizer("RMSprop", 1e-2, {"centered": True, "momentum": 0.5}),
]


@pytest.mark.parametrize("inner", FRESH, ids=lambda spec: ",".join([spec.name, *spec.options]))
def test_reset_states_are_fresh_states(inner: Optimizer) -> None:
    """``inner_states="reset"`` starts every round as a newly made torch optimizer would."""
    method = LocalSGD(sync_every=3, inner=inner, inner_states="reset")
    assert close(Bench(method, 1).run(8).of(0), plain(inner, 8, fresh_every=3))


def test_reset_momentum_with_dampening_is_fresh_or_refused() -> None:
    """torch's first step does not dampen (buf = g): a buffer put to zero would, so it must be refused or done right."""
    inner = Optimizer("SGD", 1e-2, {"momentum": 0.9, "dampening": 0.3})
    with contextlib.suppress(RecipeError):
        method = LocalSGD(sync_every=3, inner=inner, inner_states="reset")
        assert close(Bench(method, 1).run(8).of(0), plain(inner, 8, fresh_every=3))


# --- reductions ------------------------------------------------------------------------------------------------------


def same(a: Bench, b: Bench, tolerance: float = 1e-12) -> bool:
    return all(close(a.of(w), b.of(w), tolerance) for w in range(a.fleet.num_workers))


@pytest.mark.parametrize("max_norm", [None, 0.2])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_ddp_is_one_model_on_the_joined_batch(inner: Optimizer, max_norm: float | None) -> None:
    """DDP equals one module on all batches joined, with the norm of the joined gradient clipped."""
    net = build(None)
    optimizer = ELEMENTWISE[inner.name](net.parameters(), lr=inner.lr, **inner.options)
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        net.loss(*(torch.cat(part) for part in zip(*(batch(w, t) for w in range(3)), strict=True))).backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
    lab = Bench(DDP(inner=inner, max_norm=max_norm)).run(STEPS)
    for w in range(3):  # Rprop's steps hang on signs alone, the others on sums taken in another order
        assert close(lab.of(w), flat(net), 1e-10)


def test_diloco_with_outer_lr_one_is_parameter_averaging() -> None:
    """DiLoCo whose outer optimizer is plain SGD with lr 1 takes the mean of the parameters: Local SGD."""
    inner = AdamW(3e-2)
    averaging = Bench(LocalSGD(sync_every=3, inner=inner)).run(8)
    assert same(Bench(DiLoCo(sync_every=3, inner=inner, outer=Optimizer("SGD", 1.0))).run(8), averaging)
    assert not same(Bench(DiLoCo(sync_every=3, inner=inner, outer=Nesterov(1.0, 0.1))).run(8), averaging)


@pytest.mark.parametrize("inner", [AdamW(3e-2), ADOPT, SGDM], ids=lambda i: i.name)
def test_des_loc_with_equal_periods_is_local_adam(inner: Optimizer) -> None:
    """DES-LOC with one period for everything is Local Adam (or Local ADOPT …): numbers and ledger, bit for bit."""
    names = ["params", *inner.state_names]
    des_loc = Bench(DESLOC(sync_every=dict.fromkeys(names, 3), inner=inner)).run(8)
    local_adam = Bench(LocalAdam(sync_every=3, inner=inner)).run(8)
    for w, state in itertools.product(range(3), names):
        assert torch.equal(des_loc.of(w, state), local_adam.of(w, state))
    assert des_loc.records == local_adam.records


def test_des_loc_on_params_alone_is_fedavg_and_with_outer_diloco() -> None:
    """DES-LOC that averages nothing but parameters is FedAvg with kept states; with an outer optimizer it is DiLoCo."""
    inner = AdamW(3e-2)
    only = {"params": 3}
    fedavg, kept = Bench(DESLOC(only, inner)).run(8), Bench(LocalSGD(3, inner)).run(8)
    assert torch.equal(fedavg.fleet.params.blocks[0], kept.fleet.params.blocks[0])
    des_loc, diloco = Bench(DESLOC(only, inner, Nesterov())).run(8), Bench(DiLoCo(3, inner)).run(8)
    for w in range(3):
        assert torch.equal(des_loc.of(w), diloco.of(w))
    assert torch.equal(des_loc.shared("momentum_buffer"), diloco.shared("momentum_buffer"))
    assert des_loc.records == diloco.records


def test_linear_optimizers_averaged_in_every_step_are_ddp() -> None:
    """The mean of steps is the step of the mean gradient where the optimizer is linear in it, and nothing clips.

    Plain SGD has no state; SGD with momentum must average it too, which Local Adam does and Local SGD need not (the
    momentum is linear as well, so that the mean of the workers' own steps stays that of DDP).
    """
    assert same(Bench(LocalSGD(1, SGD, max_norm=None)).run(STEPS), Bench(DDP(SGD, max_norm=None)).run(STEPS))
    heavy = Optimizer("SGD", 3e-2, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1})
    for inner in (SGDM, heavy):
        ddp = Bench(DDP(inner, max_norm=None)).run(STEPS)
        assert same(Bench(LocalAdam(1, inner, max_norm=None)).run(STEPS), ddp)
        assert same(Bench(LocalSGD(1, inner, max_norm=None)).run(STEPS), ddp)


def test_adam_averaged_in_every_step_is_not_ddp() -> None:
    """Adam squares gradients, so averaging after the step keeps DDP's first moment but adds the workers' variance to v.

    After one step of both from the same start: E[m_w] is DDP's m, and E[v_w] − v = (1 − β2) · Var_w(g).
    """
    inner = AdamW(1e-3, betas=(0.9, 0.95))
    ddp, local = Bench(DDP(inner, max_norm=None)).run(1), Bench(LocalAdam(1, inner, max_norm=None)).run(1)
    gradients = Bench(LocalSGD(9, SGD, max_norm=None)).run(1).fleet.grads
    g = torch.stack([torch.cat([gradients.cell(n, w).flatten() for n in gradients.names()]) for w in range(3)])
    assert close(local.of(0, "exp_avg"), ddp.of(0, "exp_avg"))
    assert close(local.of(0, "exp_avg_sq") - ddp.of(0, "exp_avg_sq"), 0.05 * g.var(0, correction=0))
    assert not close(local.of(0), ddp.of(0), 1e-6)


def test_a_coin_that_always_lands_is_a_period_of_one() -> None:
    """With period 1 the coin form of DES-LOC averages in every step, as the form with fixed periods does."""
    every = {"params": 1, "exp_avg": 1}
    coin, fixed = Bench(DESLOC(every, coin_seed=3)).run(4), Bench(DESLOC(every)).run(4)
    assert torch.equal(coin.of(1), fixed.of(1))
    assert coin.records == fixed.records


def test_the_coin_is_fair_shared_and_its_own() -> None:
    """Each state is averaged with probability 1/K in each step, by its own coin, in the same steps for one seed."""

    def synced(seed: int) -> dict[str, set[int]]:
        records = Bench(DESLOC({"params": 2, "exp_avg": 4}, coin_seed=seed), device="meta").run(2000).records
        assert all(r.workers == (0, 1, 2) for r in records)
        return {state: {r.step for r in records if r.state == state} for state in ("params", "exp_avg")}

    due = synced(11)
    assert abs(len(due["params"]) - 1000) < 5 * math.sqrt(2000 / 4)
    assert abs(len(due["exp_avg"]) - 500) < 5 * math.sqrt(2000 * 3 / 16)
    assert abs(len(due["params"] & due["exp_avg"]) - 250) < 5 * math.sqrt(2000 * 7 / 64)  # independent: 1/2 · 1/4
    assert due == synced(11)
    assert due["params"] != synced(12)["params"]


@pytest.mark.parametrize("spec", ["topk:1.0", "topk:1.0:forget"])
def test_a_codec_that_keeps_everything_changes_nothing(spec: str) -> None:
    """Sending all elements as (index, value) pairs costs more and gives the same numbers."""
    for method, state in ((LISTED["ddp"], "grads"), (LISTED["diloco"], "params")):
        assert same(Bench(method, codecs={state: codec(spec)}).run(STEPS), Bench(method).run(STEPS))


# --- dry runs --------------------------------------------------------------------------------------------------------

STORMY = Scenario(outages=(Outage(worker=1, first=3, last=4), Outage(worker=2, last=2)))
SAMPLED = Scenario(sample=2, sample_every=2, catch_up="params")
CODECS = {"params": "int8", "grads": "topk:0.1", "exp_avg": "bfloat16", "momentum_buffer": "float16"}
CODECS |= {"control": "int8", "slow": "int8", "gradient": "int8", "residual": "bfloat16"}


def narrowed(method: Method) -> dict[str, str]:
    """Codecs for all that a method sends and that they may be used on."""
    names = ("params", "grads", *method.averages)
    return {state: spec for state, spec in CODECS.items() if state in names}


# --- down and back ---------------------------------------------------------------------------------------------------


def watched(trainer: Trainer) -> Iterator[tuple[int, dict[str, list[Tensor]]]]:
    """The local states after every step."""
    for event in trainer.events():
        if isinstance(event, Stepped):
            yield event.step, {k: [b.clone() for b in s.blocks] for k, s in trainer.state.local.items()}


def row(blocks: list[Tensor], worker: int) -> Tensor:
    return torch.cat([b[worker] for b in blocks])


@every_peer
@pytest.mark.parametrize("catch_up", ["all", "params"])
def test_back_listens_first(method: Method, catch_up: str) -> None:
    """A worker that is back receives the mean of those who were up, before its step and before it sends anything."""
    scenario = Scenario(outages=(Outage(worker=1, first=3, last=4),), catch_up=catch_up)
    trainer = Trainer(recipe(method, scenario=scenario), corpus=corpus())
    before: dict[str, Tensor] = {}
    for event in trainer.events():
        if isinstance(event, Stepped) and event.step == 4:
            for name, stack in trainer.state.local.items():
                before[name] = torch.cat([(b[0] + b[2]) / 2 for b in stack.blocks])
        if isinstance(event, WorkersChanged) and event.step == 5:
            assert event == WorkersChanged(5, up=[0, 1, 2], returned=[1], left=[])
            for name, stack in trainer.state.local.items():
                heard = close(row(stack.blocks, 1), before[name])
                assert heard or (catch_up == "params" and name != "params"), name
    back = [r for r in trainer.comm.ledger if r.step == 5 and 1 in r.workers]
    names = {"params"} if catch_up == "params" else set(trainer.state.local)
    listens = list(itertools.takewhile(lambda r: r.op == "broadcast", back))
    assert names <= {r.state for r in listens}
    assert all(r.workers == (1,) for r in listens)
    assert not [r for r in back[len(listens) :] if r.op == "broadcast"]


@every_peer
def test_back_receives_all_that_it_needs(method: Method) -> None:
    """A worker that missed a sync does not know the agreed state either: all of it is handed to it, and counted."""
    steps, first = 8, 2
    scenario = Scenario(outages=(Outage(worker=1, first=first, last=steps - 1),))
    trainer = Trainer(recipe(method, steps=steps, scenario=scenario, checkpoint_every=0), corpus=corpus())
    for _ in trainer.events():
        pass
    stacks = [*trainer.state.local.values(), *trainer.state.shared.values()]
    numbers = sum(b.numel for s in stacks for b in s.layout.blocks if 1 in b.holders)
    received = sum(sum(r.payload_bytes.values()) for r in trainer.comm.ledger if r.op == "broadcast" and 1 in r.workers)
    assert received == 8 * numbers
    assert numbers >= trainer.fleet.num_params()


@every_served
def test_back_fetches_first(method: Method) -> None:
    """Where a server keeps the model, who is back in mid-round fetches all that the server has for it, and begins there."""
    lab = Bench(method, schedule=lambda t: float(t != 4)).run(2)  # so that what is fetched in step 4 can be seen
    server = {name: lab.shared(name) for name in lab.state.shared}
    model = lab.state.shared["node.A" if "node.A" in server else "params"]  # the one that worker 1 fetches
    server_of = {n: model[n][0].flatten().clone() for n in model.names()}
    lab.fleet.up = [True, False, True]
    lab.run(1)
    lab.fleet.up, lab.state.returned = [True] * 3, [1]
    lab.run(1)
    apart = {*lab.state.local["own"].names()} if "own" in lab.state.local else set()  # what a worker mixes with its own
    together = [n for n in lab.state.local["params"].names() if n not in apart]
    fetched_of = [torch.cat([lab.state.local["params"].cell(n, w).flatten() for n in together]) for w in (0, 1)]
    agreed = torch.cat([server_of[n] for n in together])
    assert torch.equal(fetched_of[1], agreed)
    assert not torch.equal(fetched_of[0], agreed)
    back = [r for r in lab.records if r.step == 4 and 1 in r.workers]
    fetched = [r for r in itertools.takewhile(lambda r: r.op == "broadcast", back) if r.workers == (1,)]
    whole = {name: 8 * len(x) for name, x in server.items() if "." not in name}  # of a tree those of one node
    if not apart:
        got = {r.state: r.bytes_each for r in fetched if r.bytes_each > 8}  # beside single numbers
        got["params"] += got.pop("group", 0)  # a second model, which travels by itself
        assert got == whole
    assert back[len(fetched) :]
    assert {r.op for r in back[len(fetched) :]} <= {*HANDED_IN}


def test_with_nobody_up_the_run_says_so() -> None:
    """Once each time that the last one goes, and where none was there from the start."""
    gone = [Outage(worker=w, first=a, last=b) for w in range(3) for a, b in ((1, 2), (4, 5))]
    events = list(Trainer(recipe(scenario=Scenario(outages=tuple(gone))), corpus=corpus()).events())
    warned = [e for e in events if isinstance(e, Warned)]
    assert [e.step for e in warned] == [1, 4]
    assert all("no worker is up" in e.message for e in warned)
    assert events[-1] == Ended(6, "done", "")


def test_the_rest_of_the_run_does_not_hang_on_who_is_down() -> None:
    """While a worker is down, the others train as if it did not exist (their batches stay their own)."""
    up = [True, False, True]
    for name, method in LISTED.items():
        if isinstance(method, SCAFFOLD) or name in TREES:  # its server counts those who are away: |S| / N; other trees
            continue
        three, two = Bench(method), Bench(method, 2, batch=other({1: 2}))
        three.fleet.up = up
        three.run(STEPS)
        two.run(STEPS)
        assert close(three.of(0), two.of(0)), method
        assert close(three.of(2), two.of(1)), method


# --- never NaN silently ----------------------------------------------------------------------------------------------


def poisoned(trainer: Trainer, worker: int, step: int) -> Trainer:
    """The loss of one worker is not a number in one step."""
    module: Any = trainer.fleet.modules[worker]
    loss = module.loss
    module.loss = lambda ids, targets: loss(ids, targets) * (math.nan if trainer.t + 1 == step else 1.0)
    return trainer


def drive(events: Iterable[Event], step: int, act: Callable[[], object]) -> None:
    """Take all events; do something as soon as ``step`` is finished."""
    for event in events:
        if isinstance(event, Stepped) and event.step == step:
            act()


@pytest.mark.parametrize("name", ["des_loc", "streaming_diloco", "demo"])
def test_a_loss_that_is_not_a_number_ends_the_run(name: str, tmp_path: Path) -> None:
    """NaN raises, names step and worker and the last good checkpoint; what came before stays on disk, with the end."""
    r = recipe(LISTED[name], checkpoint_every=2, eval_every=0)
    healthy = story(train(r, tmp_path / "healthy") and RunFolder(tmp_path / "healthy").events())
    folder = RunFolder(tmp_path / "ill")
    seen: list[Event] = []
    with pytest.raises(Diverged, match=r"loss of worker 1 is nan in step 5: .*checkpoint is that of step 4") as info:
        seen.extend(poisoned(Trainer(r, corpus=corpus()), 1, 5).events(folder))
    on_disk = list(folder.events())
    assert [to_json(e) for e in seen] == [to_json(e) for e in on_disk]  # as text: NaN is not equal to itself
    assert on_disk[-1] == Ended(5, "failed", str(info.value)) == folder.ended()
    earlier = [e for e in story(on_disk) if getattr(e, "step", 0) <= 4]
    assert earlier == [e for e in healthy if getattr(e, "step", 0) <= 4]
    (fifth,) = [e for e in on_disk if isinstance(e, Stepped) and e.step == 5]
    assert math.isnan(fifth.loss_W[1] or 0.0)
    assert all(math.isfinite(x or 0.0) for w, x in enumerate(fifth.loss_W) if w != 1)


def test_a_failed_run_resumes_before_its_failure(tmp_path: Path) -> None:
    """After a NaN the same folder goes on from the last good checkpoint, to the result of a run that never failed."""
    r = recipe("des_loc", checkpoint_every=2)
    with pytest.raises(Diverged):
        list(poisoned(Trainer(r, corpus=corpus()), 0, 6).events(RunFolder(tmp_path / "run")))
    train(r, tmp_path / "run")
    train(r, tmp_path / "healthy")
    assert story(RunFolder(tmp_path / "run").events()) == story(RunFolder(tmp_path / "healthy").events())


def test_parameters_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A parameter can overflow while all losses are still numbers: it is named before a checkpoint could hold it."""
    r = recipe("ddp", checkpoint_every=2, eval_every=0, steps=6)
    trainer = Trainer(r, corpus=corpus())
    folder = RunFolder(tmp_path)
    with pytest.raises(Diverged, match=r"parameters of worker 2 are not finite after step 4: .* step 2"):
        drive(trainer.events(folder), 4, lambda: trainer.fleet.params.blocks[0][2].fill_(math.inf))
    assert folder.last_step_saved() == 2
    assert folder.ended() is not None


def test_a_validation_loss_that_is_not_a_number_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The averaged model is looked at too: workers may have finite losses and a mean that is not."""
    trainer = Trainer(recipe("local_sgd", eval_every=1), corpus=corpus())
    agreed = Setup.agreed

    def broken(setup: Setup) -> Stack:
        mean = agreed(setup)
        if trainer.t == 3:
            mean.blocks[0].fill_(math.nan)
        return mean

    monkeypatch.setattr(Setup, "agreed", broken)
    with pytest.raises(Diverged, match="validation loss is nan after step 3"):
        list(trainer.events())


def test_a_run_that_blows_up_says_so() -> None:
    """A real divergence, from a learning rate far too large, ends with an error and not with a table of NaN."""
    method = LocalSGD(sync_every=2, inner=Optimizer("SGD", 1e30), max_norm=None)
    with pytest.raises(Diverged, match="learning rate"):
        list(Trainer(recipe(method, dtype="float32", steps=20), corpus=corpus()).events())


# --- stopped and resumed ---------------------------------------------------------------------------------------------


WITH_MEMORY = ["ddp", "diloco", "des_loc", "des_loc outer", "local_sgd reset", "mt_dao two momenta", "photon FedMom"]
WITH_MEMORY += ["lordo error feedback", "streaming_diloco three", "noloco pull", "sparta outer", "demo", "sparse_loco"]
WITH_MEMORY += ["async_diloco paces", "streaming_des_loc two"]


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_resume_with_codecs_and_outages(name: str, tmp_path: Path) -> None:
    """The same with error feedback (which owes something at every moment), workers down, and a warm-up."""
    method = LISTED[name]
    codecs = narrowed(method) | ({"params": "topk:0.2"} if name == "diloco" else {})
    r = recipe(method, scenario=STORMY, codecs=codecs, schedule={"kind": "wsd", "warmup": 2, "decay_fraction": 0.4})
    stop_and_go(r, tmp_path)


def test_resume_with_dropout(tmp_path: Path) -> None:
    """What a model draws in its forward pass hangs on seed, worker and step, so a resumed run draws the same."""
    r = recipe("des_loc", model={"dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.2}, steps=4)
    stop_and_go(r, tmp_path)


def test_a_finished_run_is_read_and_not_run(tmp_path: Path) -> None:
    """Running a finished recipe again in its folder gives the same columns and writes nothing."""
    r = recipe("diloco")
    first = train(r, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    second = train(r, tmp_path)
    assert dataclasses.asdict(first)["loss_W"] == dataclasses.asdict(second)["loss_W"]
    assert first.ledger.records == second.ledger.records
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


# --- the step loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["des_loc", "noloco pull", "sparta outer"])
def test_a_recipe_and_its_seed_decide_everything(name: str) -> None:
    """Two runs of one recipe tell the same story; another seed tells another."""
    r = recipe(LISTED[name], steps=4)
    first, second = (story(Trainer(r, corpus=corpus()).events()) for _ in range(2))
    assert first == second
    third = story(Trainer(r.but(seed=1), corpus=corpus()).events())
    assert [e for e in first if isinstance(e, Evaluated)] != [e for e in third if isinstance(e, Evaluated)]


def test_what_is_evaluated_is_the_mean_of_the_workers() -> None:
    """The validation loss is that of the averaged parameters, and drift the root mean square distance from them."""
    trainer = Trainer(recipe("local_sgd", steps=2, eval_every=2), corpus=corpus())
    (shown,) = [e for e in trainer.events() if isinstance(e, Evaluated)]
    params = trainer.fleet.params
    copies = {name: torch.stack([params.cell(name, w) for w in range(3)]) for name in params.names()}
    apart = torch.cat([(c - c.mean(0)).flatten() for c in copies.values()])
    assert shown.drift == pytest.approx(float(apart.square().mean().sqrt()), rel=1e-12)
    assert shown.drift > 0
    model: Any = trainer.recipe.model.build(256, 8, 0).double()
    model.load_state_dict({name: c.mean(0) for name, c in copies.items()})
    with torch.no_grad():
        ids, targets = (torch.cat(part) for part in zip(*trainer.setup.data.validation, strict=True))
        assert shown.loss == pytest.approx(float(model.loss(ids, targets)), rel=1e-10)


def test_agreed_state_is_kept_once() -> None:
    """Shared state has one row, however many workers there are."""
    lab = Bench(LISTED["diloco"], 4).run(4)
    assert {b.shape[0] for s in lab.state.shared.values() for b in s.blocks} == {1}
    assert set(lab.state.shared) == {"params", "momentum_buffer"}
