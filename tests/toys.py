"""Tiny problems whose every number can be worked out again: modules, batches, a driver without text, listed methods."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.data import Corpus, load_corpus
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet, Stack
from lab.engine.optim import Nesterov, Optimizer
from lab.events import Event, Sent, Started, Stepped, Warned, to_json
from lab.methods import (
    DDP,
    DESLOC,
    FEDERATED,
    METHODS,
    MTDAO,
    SPARTA,
    DeMo,
    DiLoCo,
    FedIT,
    FoMoE,
    LocalAdam,
    LocalSGD,
    LoRDO,
    Method,
    NoLoCo,
    Photon,
    PreLort,
    State,
    StreamingDiLoCo,
)
from lab.methods.lordo import QHAdam
from lab.methods.mt_dao import QHADOPT, Warm
from lab.models.gpt import GPT
from lab.models.lora import LoRA
from lab.models.moe import MoE
from lab.recipes.placement import Placement
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.seeds import generator

F64 = torch.float64
Batch = Callable[[int, int], tuple[Tensor, Tensor]]


def drawn(*shape: int, purpose: Iterable[str | int]) -> Tensor:
    """Standard normal numbers that depend on what they are for, and on nothing else."""
    return torch.randn(*shape, generator=generator(0, *purpose), dtype=F64)


def batch(worker: int, t: int) -> tuple[Tensor, Tensor]:
    """What ``worker`` sees in local step ``t``: five inputs ``[5, 3]`` and targets ``[5, 2]``."""
    return drawn(5, 3, purpose=("x", worker, t)), drawn(5, 2, purpose=("y", worker, t))


class Net(nn.Module):
    """A perceptron with one hidden layer and two groups of tensors: 4 · 3 + 4 + 2 · 4 = 24 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(4, 3, dtype=F64))
        self.bias = nn.Parameter(torch.empty(4, dtype=F64))
        self.out = nn.Parameter(torch.empty(2, 4, dtype=F64))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (torch.tanh(x @ self.hidden.T + self.bias) @ self.out.T - y).square().mean()

    @staticmethod
    def tensor_group(name: str) -> str:
        return "head" if name == "out" else "body"


def fill_(module: nn.Module) -> nn.Module:
    """Initial values by name; a module on ``meta`` keeps only its shapes."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not p.is_meta:
                p.copy_(drawn(*p.shape, purpose=("init", name)))
    return module


def build(worker: int | None) -> nn.Module:
    return Net() if worker is not None else fill_(Net())


class Bench:
    """A method on a tiny fleet, driven step by step without text, recipes or events."""

    def __init__(
        self,
        method: Method,
        num_workers: int = 3,
        *,
        batch: Batch = batch,
        build: Callable[[int | None], nn.Module] = build,
        communicator: type[Communicator] = Communicator,
        codecs: dict[str, Any] | None = None,
        schedule: Callable[[int], float] = lambda t: 1.0,
        device: str = "cpu",
    ):
        self.method, self.batch, self.t = method, batch, 0
        with torch.device(device):
            self.fleet = Fleet(build, num_workers, device=device, dtype=F64, threads=1)
        self.comm = communicator(self.fleet, codecs)
        self.state = State.of(self.fleet, schedule)
        method.init(self.state)

    def grad(self, s: State) -> Tensor:
        return s.fleet.backward(lambda module, w: module.loss(*self.batch(w, self.t)))

    def run(self, steps: int) -> Bench:
        for _ in range(steps):
            self.t = self.comm.t = self.t + 1
            self.loss_W = self.method.step(self.state, self.grad, self.comm, self.t)
        return self

    def of(self, worker: int, state: str = "params") -> Tensor:
        """Everything that ``worker`` holds of one local state, as one vector in the model's own order."""
        stack = self.state.local[state]
        return torch.cat([stack.cell(name, worker).flatten() for name in stack.names()]).clone()

    def shared(self, state: str) -> Tensor:
        stack = self.state.shared[state]
        return torch.cat([stack[name][0].flatten() for name in stack.names()]).clone()

    @property
    def records(self) -> list[Sent]:
        return self.comm.ledger.records


class Silent(Communicator):
    """Nobody hears anybody: every holder takes its own contribution for the mean.

    An agreed state then has one row per holder, so shared state must be made with one row per holder as well
    (`each_its_own`).
    """

    def mean(self, stack: Stack, state: str, *, minus: Stack | None = None, **_: Any) -> Stack:
        own = [b.clone() for b in stack.blocks]
        if minus is not None:
            own = [mine - base for mine, base in zip(own, minus.blocks, strict=True)]
        return Stack(stack.layout, own)


def each_its_own(monkeypatch: Any) -> None:
    """Shared state with one row per holder instead of one for all."""
    monkeypatch.setattr(Stack, "first", Stack.clone)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


# Every method of the lab, with periods so short that a few steps see them all. A new method is covered by being listed
# in `lab.methods.METHODS`; the variants below it are those options that take another way through the code.


def shortened(method: Method, longest: int = 4) -> Method:
    """The same method with every period at most ``longest``, different ones kept different where there is room."""
    periods: Any = getattr(method, "sync_every", None)
    if isinstance(periods, int):
        return dataclasses.replace(method, sync_every=min(3, periods))  # type: ignore[type-var]
    if isinstance(periods, dict):
        rank = {p: min(longest, 2 + i) for i, p in enumerate(sorted(set(periods.values())))}
        return dataclasses.replace(method, sync_every={k: rank[p] for k, p in periods.items()})  # type: ignore[type-var]
    return method


ADOPT = Optimizer("ADOPT", 1e-2, {"betas": (0.9, 0.99)})
SGDM = Optimizer("SGDM", 3e-2)
SGD = Optimizer("SGD", 3e-2)
RMSPROP = Optimizer("RMSprop", 1e-2)
QHADAM = Optimizer("QHAdam", 1e-2, {"betas": (0.9, 0.99), "weights": (0.7,)})
QHM = Optimizer("QHM", 3e-2, {"betas": (0.9,), "weights": (0.7,)})
TWO = QHADOPT(1e-2, (0.5, 0.9, 0.99), (0.3, 0.6))
TWO_PERIODS = {"params": 2, "exp_avg_1": 2, "exp_avg_2": 3, "exp_avg_sq": 4}

# Methods that aggregate adapters at a server stand in `test_federated`.
LISTED: dict[str, Method] = {name: shortened(cls()) for name, cls in METHODS.items() if name not in FEDERATED} | {
    "ddp SGD unclipped": DDP(inner=SGD, max_norm=None),
    "ddp ADOPT": DDP(inner=ADOPT),
    "local_sgd SGD": LocalSGD(sync_every=2, inner=SGD),
    "local_sgd reset": LocalSGD(sync_every=2, inner_states="reset"),
    "local_sgd RMSprop": LocalSGD(sync_every=3, inner=RMSPROP, max_norm=0.1),
    "local_adam ADOPT": LocalAdam(sync_every=2, inner=ADOPT),
    "local_adam SGDM": LocalAdam(sync_every=2, inner=SGDM),
    "diloco SGD": DiLoCo(sync_every=2, inner=SGD, outer=Optimizer("SGD", 0.5)),
    "diloco outer Adam": DiLoCo(sync_every=2, outer=Optimizer("Adam", 0.1)),
    "des_loc ADOPT": DESLOC(sync_every={"params": 2, "exp_avg": 3, "exp_avg_sq": 4}, inner=ADOPT),
    "des_loc SGDM": DESLOC(sync_every={"params": 2, "momentum_buffer": 3}, inner=SGDM),
    "des_loc clip value": DESLOC(sync_every={"exp_avg": 2, "params": 3}, clip="value", max_norm=0.05),
    "des_loc outer": DESLOC(sync_every={"params": 2, "exp_avg_sq": 4}, outer=Nesterov(1.0, 0.9)),
    "des_loc coin": DESLOC(sync_every={"params": 2, "exp_avg": 2, "exp_avg_sq": 3}, coin_seed=5),
    "fomoe outer": FoMoE(sync_every={"params": 2}, outer=Nesterov()),
    "fomoe des_loc ADOPT": FoMoE(sync_every={"params": 2, "exp_avg": 3, "exp_avg_sq": 4}, inner=ADOPT),
    "des_loc outer coin": DESLOC(sync_every={"params": 2, "exp_avg": 2}, outer=Nesterov(), coin_seed=1),
    "mt_dao two momenta": MTDAO(TWO_PERIODS, TWO, Warm(3, QHADOPT(3e-2, (0.8, 0.8, 0.9), (1.0, 0.0)))),
    "mt_dao QHAdam": MTDAO({"params": 2, "exp_avg": 3}, QHADAM),
    "lordo error feedback": LoRDO(2, 1, QHAdam(3e-2, weight=0.9), error_feedback=True),
    "lordo gradient": LoRDO(3, 2, projector="gradient", full_rank=("out",), rotate=False),
    "lordo own gradient": LoRDO(2, 1, projector="own_gradient", error_feedback=True),
    "photon kept Nesterov": Photon(2, inner_states="kept", outer=Nesterov(0.7, 0.9)),
    "photon FedMom": Photon(3, SGDM, outer=Optimizer("FedMom", 0.8)),
    "photon FedAdam": Photon(2, SGD, outer=Optimizer("FedAdam", 0.01)),
    "photon FedYogi": Photon(3, ADOPT, inner_states="kept", outer=Optimizer("FedYogi", 0.01)),
    "streaming_diloco one": StreamingDiLoCo(2, 1, overlap=0, mix=0.0),
    "streaming_diloco three": StreamingDiLoCo(4, 3, "contiguous", overlap=2, mix=0.25, inner=SGDM),
    "noloco pull": NoLoCo(2, SGDM, lr=0.5, momentum=0.3, pull=0.9, pair_seed=4),
    "noloco all": NoLoCo(2, pull=0.0, group_size=9),
    "sparta a third": SPARTA(2, 0.3, SGDM),
    "sparta outer": SPARTA(1, 0.1, outer=Nesterov(), outer_every=3),
    "demo one wave": DeMo(decay=0.9, topk=1, chunk=2, max_norm=0.5),
    "demo no sign": DeMo(SGD, 0.8, 2, 3, sign=False),
    "mt_dao QHM": MTDAO({"params": 3, "exp_avg": 2}, QHM),
}


# The same with text: recipes for the step loop, so small that a run takes a few hundredths of a second.

TEXT = "grammar?tokens=4000&dialects=1&symbols=8"
TINY = GPT(dim=8, num_layers=1, num_heads=2)


@functools.cache
def corpus() -> Corpus:
    return load_corpus(TEXT)


SHORT = DESLOC(sync_every={"params": 2, "exp_avg": 3, "exp_avg_sq": 4})  # all periods end within six steps


def recipe(method: Method | str = SHORT, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": TINY,
        "corpus": TEXT,
        "steps": 6,
        "num_workers": 3,
        "batch_size": 2,
        "context": 8,
        "dtype": "float64",
        "eval_every": 2,
        "eval_windows": 2,
        "checkpoint_every": 1,
    }
    return Recipe(method=method, **(fields | changes))


def story(events: Iterable[Event]) -> list[Event]:
    """What a run did: its events without the clock, the machine and what it says about being resumed."""
    told: list[Event] = []
    for event in events:
        if isinstance(event, Stepped):
            event = dataclasses.replace(event, seconds=0.0)
        elif isinstance(event, Started):
            event = dataclasses.replace(event, environment={})
        elif isinstance(event, Warned):
            continue
        told.append(event)
    return told


# Runs in the background.

PATIENCE = 60.0  # seconds


def until(true: Callable[[], bool]) -> None:
    """Wait."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# Recipes that must give the same over one and over several processes: every listed method, and what could go wrong besides.

STORM = Scenario(outages=(Outage(worker=1, first=3, last=4), Outage(worker=2, last=2)))
BOTH_GONE = Scenario(outages=(Outage(worker=1, first=2, last=5), Outage(worker=3, first=4, last=5)))
MOVING = Placement(overlap=2, kind="random")
METRICS = ("alignment", "spectrum", "rates", "gradients", "activations", "noise")
DRAWN = Scenario(sample=2, sample_every=2, catch_up="params")
EXPERTS = {
    "model": MoE(dim=8, num_layers=2, num_heads=2, num_experts=4, expert_dim=4, top_k=2),
    "routing_every": 2,
    "eval_every": 3,
}
EVERY_TWO = FoMoE(sync_every={"params": 2, "exp_avg": 2, "exp_avg_sq": 3}, inner=Optimizer("AdamW", 1e-2))


def of_four(method: Method | str, **changes: Any) -> Recipe:
    return recipe(method, **({"num_workers": 4, "eval_every": 3, "checkpoint_every": 3} | changes))


CLIENTS, EQUAL = LoRA(ranks=(1, 2, 4, 2)), LoRA(ranks=(2, 2, 2, 2))
SERVED = {  # some clients are away, the first as well, and the largest
    name: of_four(
        dataclasses.replace(METHODS[name](), sync_every=2, inner=Optimizer("AdamW", 3e-2)),  # type: ignore[type-var]
        lora={"fedit": EQUAL, "fedex_lora": EQUAL, "ffa_lora": dataclasses.replace(CLIENTS, train="B")}.get(
            name, CLIENTS
        ),
        scenario=Scenario(outages=(Outage(worker=0, first=3, last=3), Outage(worker=2, first=4, last=5))),
    )
    for name in FEDERATED
}
COUNTING_APART = (
    "photon",
    "photon kept Nesterov",
    "diloco outer Adam",
    "lordo",
    "local_sgd reset",
    "mt_dao two momenta",
)
# Of the listed ones those that differ in what they send: what moves a row is no matter of processes.
ALONE_AS_WELL = re.compile(
    r".* (SGD|SGDM|ADOPT|RMSprop|FedMom|FedYogi|QHM|unclipped|clip value|coin|gradient|one wave)$"
)
OVER_PROCESSES: dict[str, Recipe] = (
    {name: of_four(m) for name, m in LISTED.items() if not ALONE_AS_WELL.match(name)}
    | SERVED
    | {f"{name}, storm": of_four(LISTED[name], scenario=STORM) for name in ("ddp", "photon FedAdam", "lordo", "noloco")}
    | {f"{name}, storm": of_four(LISTED[name], scenario=STORM) for name in ("des_loc outer", "streaming_diloco three")}
    | {f"{name}, drawn": of_four(LISTED[name], scenario=DRAWN) for name in COUNTING_APART}
    | {
        "ddp topk": of_four("ddp", codecs={"grads": "topk:0.2"}, scenario=STORM),
        "diloco int8": of_four(LISTED["diloco"], codecs={"params": "int8"}, scenario=STORM),
        "diloco bfloat16": of_four(LISTED["diloco"], codecs={"params": "bfloat16"}, dtype="float32"),
        "streaming_diloco e3m0": of_four(LISTED["streaming_diloco three"], codecs={"params": "e3m0"}),
        "cut batches": of_four(LISTED["des_loc"], compute={"accumulate": 2}),
        "all workers at once": of_four(LISTED["des_loc"], compute={"vectorised": True}, scenario=STORM),
        "dropout": of_four(LISTED["des_loc"], model=dataclasses.replace(TINY, dropout=0.2)),
        "experts on all": of_four(EVERY_TWO, **EXPERTS),
        "experts on two": of_four(EVERY_TWO, placement=Placement(overlap=2), **EXPERTS),
        "experts on two, apart": of_four(
            LISTED["fomoe outer"], placement=Placement(overlap=2, layers="apart"), scenario=STORM, **EXPERTS
        ),
        "experts that move": of_four(EVERY_TWO, placement=MOVING, **EXPERTS),
        "experts that move, outer": of_four(LISTED["fomoe outer"], placement=MOVING, scenario=STORM, **EXPERTS),
        "experts that move, one": of_four(
            EVERY_TWO, placement=Placement(overlap=1, kind="random"), scenario=STORM, **EXPERTS
        ),
        "experts that nobody holds": of_four(
            LISTED["diloco"], placement=Placement(overlap=1), scenario=STORM, **EXPERTS
        ),
        "experts that nobody holds, mean": of_four(
            EVERY_TWO, placement=Placement(overlap=2), scenario=BOTH_GONE, **EXPERTS
        ),
        "adapters of four ranks, des_loc": of_four("des_loc", lora=CLIENTS),
        "prelort sample, outer, zero": of_four(
            PreLort(2, nested="sample", uncovered="zero", outer=Nesterov(0.7, 0.9)), lora=CLIENTS, scenario=STORM
        ),
        "fedit int8": of_four(FedIT(2), lora=EQUAL, codecs={"params": "int8"}),
        "fedit bfloat16": of_four(FedIT(2), lora=EQUAL, codecs={"params": "bfloat16"}, dtype="float32"),
        "experts on one": of_four(LISTED["diloco"], placement=Placement(overlap=1), **EXPERTS),
    }
    | {
        f"{name}, measured": r.but(metrics=METRICS, metrics_every=2)
        for name, r in {
            "des_loc outer, storm": of_four(LISTED["des_loc outer"], scenario=STORM),
            "lordo": of_four(LISTED["lordo"]),
            "prelort": SERVED["prelort"],
            "experts that move": of_four(EVERY_TWO, placement=MOVING, scenario=BOTH_GONE, **EXPERTS),
        }.items()
    }
)


def tell(events: Iterable[Event], out: Path, name: str) -> None:
    """Write a story as JSON lines."""
    (out / f"{name}.jsonl").write_text("".join(to_json(e) + "\n" for e in story(events)))


# What a device could do wrong does not depend on periods: every method once, and what takes another way through the code.
ON_A_DEVICE = {
    name: recipe.but(compute={"device": "auto"})
    for name, recipe in OVER_PROCESSES.items()
    if name in METHODS
    or name
    in (
        "des_loc outer, storm, measured",
        "prelort, measured",
        "experts that move, measured",
        "ddp topk",
        "diloco int8",
        "streaming_diloco e3m0",
        "des_loc outer, storm",
        "photon kept Nesterov, drawn",
        "lordo, drawn",
        "lordo error feedback",
        "experts on two",
        "experts that move, outer",
        "dropout",
    )
}
