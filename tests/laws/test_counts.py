"""Workers that come and go keep an optimizer each: its step count, its bias correction, its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.optim import ELEMENTWISE, AdamW, Nesterov, Optimizer, states, step_
from lab.events import Stepped, WorkersChanged
from lab.ground.files import write_with_digest
from lab.methods import Method
from lab.methods.fedit import FedIT
from lab.methods.fomoe import FoMoE
from lab.methods.local_adam import LocalAdam
from lab.methods.local_sgd import LocalSGD
from lab.methods.lordo import LoRDO, QHAdam
from lab.methods.mt_dao import MTDAO, Warm
from lab.methods.photon import Photon
from lab.models.lora import LoRA
from lab.optimizers import LowRankAdam
from lab.recipes.placement import Placement
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.bench import F64, Bench, batch, build, close, drawn, flat
from tests.support.cases import EXPERTS, of_four
from tests.support.listed import LISTED, TWO
from tests.support.plain import OPTIONS
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go

# --- one optimizer per worker ----------------------------------------------------------------------------------------

COMING_AND_GOING = [  # who of four is up: two at a time, nobody once, the last for the first time in step 5
    *((True, True, False, False), (True, False, True, False), (False, True, True, False), (False,) * 4),
    *((True, False, False, True), (False, False, True, True), (True,) * 4, (False, True, False, True), (True,) * 4),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_who_is_away_takes_no_step(name: str, options: dict[str, Any]) -> None:
    """One call on the stack equals one torch optimizer per worker, of which each steps only while its worker is up."""
    spec = Optimizer(name, 0.05, options)
    fleet = Fleet(build, 4, dtype=F64, threads=1)
    optimizer = spec.over(fleet.params, fleet.grads)
    nets = [build(None) for _ in range(4)]
    own = [ELEMENTWISE[name](net.parameters(), lr=0.05, **options) for net in nets]
    for t, up in enumerate(COMING_AND_GOING, 1):
        for w, net in enumerate(nets):
            for key, p in net.named_parameters():
                p.grad = drawn(*p.shape, purpose=("g", w, t, key)) * 10.0 ** (w - 1)
                fleet.grads.cell(key, w).copy_(p.grad)
            if up[w]:
                own[w].step()
        step_(optimizer, 0.05, fleet.params, list(up))
        stacked = {"params": fleet.params} | states(optimizer, fleet.params)
        for w, net in enumerate(nets):
            for key, p in net.named_parameters():
                assert close(fleet.params.cell(key, w), p.detach()), (t, w, key)
                for state in spec.state_names if own[w].state[p] and any(u[w] for u in COMING_AND_GOING[:t]) else ():
                    assert close(stacked[state].cell(key, w), own[w].state[p][state]), (t, w, key, state)


# --- Photon, with the states of its clients kept ---------------------------------------------------------------------


def photon_by_plain_torch(trainer: Trainer) -> tuple[nn.Module, list[torch.optim.AdamW]]:
    """The server and its clients, written out: each client has a module and a ``torch.optim.AdamW`` of its own, for ever."""
    r, method = trainer.recipe, trainer.recipe.method
    server = r.model.build(trainer.setup.data.vocab_size, r.context, r.seed).double()
    clients = [r.model.build(trainer.setup.data.vocab_size, r.context, r.seed).double() for _ in range(r.num_workers)]
    optimizers = [torch.optim.AdamW(c.parameters(), lr=method.inner.lr, **method.inner.options) for c in clients]
    for t in range(1, r.steps + 1):
        up = trainer.built.roll_call.up_TW[t - 1].tolist()
        for w in range(r.num_workers) if (t - 1) % method.sync_every == 0 else ():
            clients[w].load_state_dict(server.state_dict())
        for w, client in enumerate(clients):
            if up[w]:
                optimizers[w].param_groups[0]["lr"] = method.inner.lr * r.schedule.at(t, r.steps)
                optimizers[w].zero_grad()
                client.loss(*trainer.setup.data.batches.get(w, t)).backward()
                torch.nn.utils.clip_grad_norm_(client.parameters(), method.max_norm)
                optimizers[w].step()
        if t % method.sync_every == 0:
            for name, x in server.state_dict().items():
                x.copy_(torch.stack([c.state_dict()[name] for w, c in enumerate(clients) if up[w]]).mean(0))
    return server, optimizers


SMALL = ["dtype=float64", "steps=20", "method.sync_every=4", "scenario.sample_every=4", "schedule.warmup=3"]
SMALL += ["corpus=grammar?tokens=4000&dialects=1&symbols=8", "batch_size=2", "context=8", "eval_windows=2"]
SMALL += ['model={"dim":8,"num_layers":1,"num_heads":2}', "checkpoint_every=0"]


@pytest.mark.parametrize(
    "changes", [[], ["num_workers=4", "scenario.sample=2"], ["num_workers=4", "scenario.sample=1", "seed=3"]]
)
def test_photon_is_one_adamw_for_each_client(changes: list[str]) -> None:
    """The shipped preset (4 of 8 clients a round, states kept), its text and model made small; and 2 and 1 of 4 clients."""
    r = Recipe.of("photon", SMALL + changes)
    assert r.method.inner_states == "kept"
    assert r.scenario.catch_up == "params"
    trainer = Trainer(r)
    for _ in trainer.events():
        pass
    server, optimizers = photon_by_plain_torch(trainer)
    moments = ("exp_avg", "exp_avg_sq")
    for k, (name, want) in enumerate(server.named_parameters()):
        assert close(trainer.state.shared["params"][name][0], want.detach()), name
        for w, optimizer in enumerate(optimizers):
            theirs = optimizer.state.get(optimizer.param_groups[0]["params"][k], {})
            for state in moments if theirs else ():
                assert close(trainer.state.local[state].cell(name, w), theirs[state]), (w, name, state)
    turns = (trainer.built.roll_call.up_TW[::4].sum(0)).tolist()
    assert len(set(turns)) > 1  # some were drawn more often than others


# --- the counts of others --------------------------------------------------------------------------------------------


def steps_of(trainer: Trainer) -> list[set[float]]:
    """How many steps each worker's optimizer says it has taken, over all its tensors."""
    out: list[set[float]] = [set() for _ in range(trainer.recipe.num_workers)]
    optimizer, params = trainer.state.optimizers["inner"], trainer.fleet.params
    for leaf, block in zip(optimizer.param_groups[0]["params"], params.layout.blocks, strict=True):
        for w, n in zip(block.holders, optimizer.state[leaf]["step"].expand(len(block.holders)).tolist(), strict=True):
            out[w].add(n)
    return out


@pytest.mark.parametrize(("catch_up", "want"), [("all", [6, 6, 6]), ("params", [6, 4, 4])])
@pytest.mark.parametrize("inner", [AdamW(1e-2), Optimizer("NAdam", 1e-2)], ids=lambda i: i.name)
def test_who_is_sent_all_states_is_sent_their_counts(catch_up: str, want: list[int], inner: Optimizer) -> None:
    """Worker 1 is away in steps 3 and 4, worker 2 joins in step 3. With the states of others come the steps in them."""
    away = (Outage(worker=1, first=3, last=4), Outage(worker=2, last=2))
    r = recipe(LocalAdam(3, inner), scenario=Scenario(outages=away, catch_up=catch_up))
    trainer = Trainer(r, corpus=corpus())
    for _ in trainer.events():
        pass
    assert steps_of(trainer) == [{float(n)} for n in want]
    numbers = [x for s in trainer.state.optimizers["inner"].state.values() for x in s.values() if x.dim() < 2]
    assert {x.dim() for x in numbers} == {0 if catch_up == "all" else 1}  # one number for all, as soon as they agree


def test_with_nobody_up_nothing_is_counted() -> None:
    everybody = tuple(Outage(worker=w, first=3, last=4) for w in range(3))
    trainer = Trainer(recipe("local_adam", scenario=Scenario(outages=everybody)), corpus=corpus())
    for _ in trainer.events():
        pass
    assert steps_of(trainer) == [{4.0}] * 3


# --- LoRDO, which steps by itself ------------------------------------------------------------------------------------


def test_lordo_is_one_low_rank_adam_for_each_worker() -> None:
    """Between two syncs each worker is a `LowRankAdam` of its own, whose count runs only while it is up."""
    options: dict[str, Any] = {"rank": 2, "betas": (0.9, 0.95), "weight": 0.8}
    bench = Bench(LoRDO(99, 2, QHAdam(0.05, weight=0.8), full_rank=("out",), max_norm=None), 4)
    nets = [build(None) for _ in range(4)]
    own = []
    for net in nets:
        projected = [p for n, p in net.named_parameters() if n == "hidden"]
        others = [nn.Parameter(p.detach().flatten()) for n, p in net.named_parameters() if n != "hidden"]
        own.append((LowRankAdam(projected, 0.05, **options), LowRankAdam(others, 0.05, **options), others))
    for t, up in enumerate(COMING_AND_GOING, 1):
        bench.fleet.up = list(up)
        bench.run(1)
        for w, net in enumerate(nets):
            low, full, flats = own[w]
            if up[w]:
                net.zero_grad()
                net.loss(*batch(w, t)).backward()
                rest = [p for n, p in net.named_parameters() if n != "hidden"]
                for x, p in zip(flats, rest, strict=True):
                    x.grad = p.grad.flatten()
                low.step()
                full.step()
                with torch.no_grad():
                    for x, p in zip(flats, rest, strict=True):
                        p.copy_(x.view_as(p))
            assert close(bench.of(w), flat(net)), (t, w)


def test_lordo_turns_each_workers_moments_by_its_own_count() -> None:
    """A worker that was away for two of four steps writes its moments in the new basis as of two steps, not of four."""
    bench = Bench(LoRDO(4, 2, QHAdam(0.05), projector="own_gradient", full_rank=("out", "bias"), max_norm=None), 2)
    alone = build(None)
    low = LowRankAdam([alone.hidden], 0.05, 2, weight=0.97, refresh=2)
    others = [nn.Parameter(x.detach().flatten()) for x in (alone.bias, alone.out)]
    full = LowRankAdam(others, 0.05, weight=0.97)
    for t in range(1, 5):
        bench.fleet.up = [True, t > 2]
        bench.run(1)
        if t > 2:
            alone.zero_grad()
            alone.loss(*batch(1, t)).backward()
            for x, p in zip(others, (alone.bias, alone.out), strict=True):
                x.grad = p.grad.flatten()
            low.step()
            full.step()
            with torch.no_grad():
                for x, p in zip(others, (alone.bias, alone.out), strict=True):
                    p.copy_(x.view_as(p))
    for name in ("exp_avg", "exp_avg_sq", "projector"):
        assert close(bench.state.local[name].cell("hidden", 1), low.state[alone.hidden][name]), name


# --- what is forgotten at a boundary, by those who are away then ------------------------------------------------------

RESET = {
    "local_sgd": LocalSGD(3, AdamW(3e-2), "reset"),
    "photon": Photon(3, AdamW(3e-2)),
    "fedit": FedIT(3, AdamW(3e-2), inner_states="reset"),
}


@pytest.mark.parametrize("name", RESET)
@pytest.mark.parametrize("first", [2, 3])
def test_who_is_away_at_a_boundary_begins_the_next_round_afresh(name: str, first: int) -> None:
    """Worker 1 leaves in the first round and is back in the midst of the second one: none of its old moments is."""
    lora = {"lora": LoRA(ranks=(2, 2, 2))} if name == "fedit" else {}
    away = (Outage(worker=1, first=first, last=4),)
    r = recipe(RESET[name], scenario=Scenario(outages=away, catch_up="params"), **lora)
    trainer = Trainer(r, corpus=corpus())
    for event in trainer.events():
        if isinstance(event, Stepped) and event.step == 5:
            break
    assert [n for of_worker in steps_of(trainer) for n in of_worker] == [2.0, 1.0, 2.0]
    for i, grads in enumerate(trainer.fleet.grads.blocks):  # after one step u = (1 − β1)·g and v = (1 − β2)·g²
        assert close(trainer.state.local["exp_avg"].blocks[i][1], 0.1 * grads[1])
        assert close(trainer.state.local["exp_avg_sq"].blocks[i][1], 0.05 * grads[1].square())


@pytest.mark.parametrize("catch_up", ["all", "params"])
def test_who_is_away_at_the_switch_of_mt_dao_forgets_its_momenta_later(catch_up: str) -> None:
    """It is back without the momenta of before the switch: with none, or with those of the others."""
    method = MTDAO({"params": 9}, TWO, Warm(3, TWO), max_norm=None)
    r = recipe(method, scenario=Scenario(outages=(Outage(worker=1, first=3, last=4),), catch_up=catch_up))
    trainer, told = Trainer(r, corpus=corpus()), False
    for event in trainer.events():
        if isinstance(event, Stepped) and event.step == 4:
            means = {n: [(b[0] + b[2]) / 2 for b in trainer.state.local[n].blocks] for n in ("exp_avg_1", "exp_avg_2")}
            v = [b[1].clone() for b in trainer.state.local["exp_avg_sq"].blocks]
            of_others = [(b[0] + b[2]) / 2 for b in trainer.state.local["exp_avg_sq"].blocks]
        if isinstance(event, Stepped) and event.step == 5:
            told = True
            for name, beta in (("exp_avg_1", 0.5), ("exp_avg_2", 0.9)):
                for i, g in enumerate(trainer.fleet.grads.blocks):
                    before = (v if catch_up == "params" else of_others)[i]
                    k = 4 if catch_up == "all" else 2  # of the steps that moved it, this is the k-th
                    n = (g[1] / before.sqrt().clamp(min=1e-6)).clamp(-(k**0.25), k**0.25)
                    old = 0.0 if catch_up == "params" else means[name][i]
                    assert close(trainer.state.local[name].blocks[i][1], beta * old + (1 - beta) * n, 1e-10), name
    assert told


# --- resuming --------------------------------------------------------------------------------------------------------

KEPT: dict[str, Method] = {
    "photon": Photon(2, AdamW(1e-2), "kept"),
    "photon NAdam": Photon(2, Optimizer("NAdam", 1e-2), "kept"),
    "photon reset": Photon(2, AdamW(1e-2), "reset"),
    "lordo": LoRDO(2, 2, QHAdam(3e-2)),
    "mt_dao": MTDAO({"params": 2, "exp_avg": 3}, Optimizer("QHAdam", 1e-2, {"betas": (0.9, 0.99), "weights": (0.7,)})),
}


@pytest.mark.parametrize("name", KEPT)
def test_resume_with_counts_that_differ(name: str, tmp_path: Path) -> None:
    """Stopped after any step and resumed, clients that are drawn for each round end as if nothing had happened."""
    scenario = Scenario(sample=2, sample_every=3, catch_up="params")
    stop_and_go(recipe(KEPT[name], num_workers=4, scenario=scenario), tmp_path)


def test_a_checkpoint_of_equal_counts_is_that_of_before(tmp_path: Path) -> None:
    """One ``step`` for a block as ever, and nothing beside it."""
    trainer = Trainer(recipe("des_loc"), corpus=corpus())
    list(trainer.events(RunFolder(tmp_path)))
    counts = {k: x for k, x in trainer.snapshot()[0].items() if x.dim() < 2}
    assert {k.split("/")[-1] for k in counts} == {"step"}
    assert all(x.dim() == 0 and x == 6 for x in counts.values())


@pytest.mark.parametrize("name", ["lordo", "local_adam ADOPT"])
def test_checkpoints_from_before_a_method_counted(name: str, tmp_path: Path) -> None:
    """A file without counts, of a run in which nobody was away: they are those of the run."""
    whole = Trainer(recipe(LISTED[name]), corpus=corpus())
    list(whole.events(RunFolder(tmp_path)))
    (tmp_path / "checkpoints" / "step-000006.safetensors").unlink()
    file = tmp_path / "checkpoints" / "step-000005.safetensors"
    with safe_open(file, framework="pt") as f:
        names = list(f.keys())
        data = save({k: f.get_tensor(k) for k in names if not k.endswith("/step")}, metadata=f.metadata())
    assert [k for k in names if k.endswith("/step")]
    write_with_digest(file, data)
    again = Trainer(whole.recipe, corpus=corpus())
    list(again.events(RunFolder(tmp_path)))
    for key, want in whole.snapshot()[0].items():
        assert torch.equal(again.snapshot()[0][key], want), key


# --- what nobody who is up holds -------------------------------------------------------------------------------------


def test_an_agreed_momentum_is_not_handed_out_as_a_workers_own() -> None:
    """Inner and outer momentum have one name in torch. A worker that alone holds an expert gets its own back, as it was left."""
    inner = Optimizer("SGD", 1e-2, {"momentum": 0.9})
    method = FoMoE(sync_every={"params": 2}, inner=inner, outer=Nesterov())
    away = Scenario(outages=(Outage(worker=1, first=3, last=4),))
    trainer = Trainer(of_four(method, placement=Placement(overlap=1), scenario=away, **EXPERTS), corpus=corpus())
    alone = [i for i, b in enumerate(trainer.fleet.layout.blocks) if b.everywhere == (1,)]
    before: list[Tensor] = []
    for event in trainer.events():
        mine = [trainer.state.local["momentum_buffer"].blocks[i] for i in alone] if trainer.t else []
        if isinstance(event, Stepped) and event.step == 4:
            before = [x.clone() for x in mine]
        if isinstance(event, WorkersChanged) and event.step == 5:
            assert alone
            assert all(torch.equal(x, old) for x, old in zip(mine, before, strict=True))


def test_agreed_parameters_in_parts_are_not_taken_for_the_whole() -> None:
    """LoRDO agrees on its projected matrices alone: a worker that alone holds an expert gets its own copies of everything back."""
    method = LoRDO(2, 2, QHAdam(3e-2), full_rank=("embedding", "norm", "router"))
    away = Scenario(outages=(Outage(worker=1, first=3, last=4),))
    trainer = Trainer(of_four(method, placement=Placement(overlap=1), scenario=away, **EXPERTS), corpus=corpus())
    alone = [i for i, b in enumerate(trainer.fleet.layout.blocks) if b.everywhere == (1,)]
    before: list[Tensor] = []
    for event in trainer.events():
        if isinstance(event, Stepped) and event.step == 4:
            before = [trainer.fleet.params.blocks[i].clone() for i in alone]
        if isinstance(event, WorkersChanged) and event.step == 5:
            assert alone
            for i, old in zip(alone, before, strict=True):
                assert torch.equal(trainer.fleet.params.blocks[i], old)
