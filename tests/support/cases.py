"""Recipes that must give the same over one and over several processes, and on a device: every listed method, and what could go wrong besides."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from typing import Any

from lab.engine.optim import Nesterov, Optimizer
from lab.methods import METHODS, Method
from lab.methods.fedit import FedIT
from lab.methods.fomoe import FoMoE
from lab.methods.prelort import PreLort
from lab.models.lora import LoRA
from lab.models.moe import MoE
from lab.recipes.placement import Placement
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from tests.support.federations import federation
from tests.support.listed import ADAPTED, LISTED
from tests.support.recipes import TINY, normed, recipe

LIKENESS: dict[str, Any] = {"by": "adapt", "target": "dialect00", "anchors": 3, "every": 2, "tau": 0.3}
CENTRED = LIKENESS | {"standardize": True, "center": True}


STORM = Scenario(outages=(Outage(worker=1, first=3, last=4), Outage(worker=2, last=2)))


BOTH_GONE = Scenario(outages=(Outage(worker=1, first=2, last=5), Outage(worker=3, first=4, last=5)))


MOVING = Placement(overlap=2, kind="random")


METRICS = ("alignment", "spectrum", "rates", "gradients", "activations", "noise", "membership")


DRAWN = Scenario(sample=2, sample_every=2, catch_up="params")


EXPERTS = {
    "model": MoE(dim=8, num_layers=2, num_heads=2, num_experts=4, expert_dim=4, top_k=2),
    "routing_every": 2,
    "eval_every": 3,
}


IMAGES: dict[str, Any] = {
    "data": {"name": "digits", "seed": 3},
    "split": "dirichlet:1",
    "model": {"name": "cnn", "channels": [2, 2]},
}


SENSORS: dict[str, Any] = {
    "data": {"name": "sensors", "people": 3, "windows": 4, "length": 16, "sensors_of": [[0], [1], [0, 1]]},
    "split": "groups",
    "model": {"name": "mlp", "hidden": [4]},
}


EVERY_TWO = FoMoE(sync_every={"params": 2, "exp_avg": 2, "exp_avg_sq": 3}, inner=Optimizer("AdamW", 1e-2))


def of_four(method: Method | str, **changes: Any) -> Recipe:
    return recipe(method, **({"num_workers": 4, "eval_every": 3, "checkpoint_every": 3} | changes))


def with_buffers(method: Method | str, buffers: Any, **changes: Any) -> Recipe:
    """A model with a BatchNorm, on images."""
    method = LISTED[method] if isinstance(method, str) else method
    return normed(method, num_workers=4, eval_every=3, checkpoint_every=3, buffers=buffers, **changes)


CLIENTS, EQUAL = LoRA(ranks=(1, 2, 4, 2)), LoRA(ranks=(2, 2, 2, 2))


# Some clients are away, the first as well, and the largest.
FIRST_GONE = Scenario(outages=(Outage(worker=0, first=3, last=3), Outage(worker=2, first=4, last=5)))


SERVED = {
    name: of_four(
        method,
        lora={"fedit": EQUAL, "fedex_lora": EQUAL, "ffa_lora": dataclasses.replace(CLIENTS, train="B")}.get(
            name, CLIENTS
        ),
        scenario=FIRST_GONE,
    )
    for name, method in ADAPTED.items()
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
# Updates that are cut, and noise: what it spends is worked out by a package that may not be here.
PRIVATE: dict[str, Any] = {"clip": 0.05, "noise": 0.5 if importlib.util.find_spec("dp_accounting") else 0.0}


SECURE: dict[str, Any] = {"privacy": {"secure_sum": True}}


ALONE_AS_WELL = re.compile(
    r".* (SGD|SGDM|ADOPT|RMSprop|FedMom|FedYogi|QHM|unclipped|clip value|coin|gradient|one wave)$"
)


OVER_PROCESSES: dict[str, Recipe] = (
    {name: of_four(m) for name, m in LISTED.items() if not ALONE_AS_WELL.match(name)}
    | SERVED
    | {f"{name}, federation": federation(name, steps=6, checkpoint_every=3) for name in METHODS}
    | {f"{name}, storm": of_four(LISTED[name], scenario=STORM) for name in ("ddp", "photon FedAdam", "lordo", "noloco")}
    | {f"{name}, storm": of_four(LISTED[name], scenario=STORM) for name in ("des_loc outer", "streaming_diloco three")}
    | {f"{name}, drawn": of_four(LISTED[name], scenario=DRAWN) for name in COUNTING_APART}
    | {
        "fedprox, private": of_four(LISTED["fedprox"], privacy=PRIVATE, scenario=FIRST_GONE),
        "scaffold, private, clients": of_four(LISTED["scaffold"], privacy=PRIVATE, clients={"num": 7}),
        "fedprox, secure sum": of_four(LISTED["fedprox"], **SECURE, clients={"num": 7}),
        "scaffold, secure sum": of_four(LISTED["scaffold"], privacy=PRIVATE | SECURE["privacy"]),
        "des_loc, secure sum": of_four(LISTED["des_loc"], **SECURE),
        "des_loc outer, median, storm": of_four(LISTED["des_loc outer"], mean={"by": "median"}, scenario=STORM),
        "diloco, trimmed": of_four(LISTED["diloco"], mean={"by": "trimmed"}),
        "ddp, clipped, storm": of_four("ddp", mean={"by": "clipped", "max_norm": 0.5}, scenario=STORM),
        "fedprox, median by samples": of_four(LISTED["fedprox"], mean={"by": "median"}, scenario=FIRST_GONE),
        "experts on two, median": of_four(
            EVERY_TWO, placement=Placement(overlap=2), mean={"by": "median"}, scenario=BOTH_GONE, **EXPERTS
        ),
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
        "clients who go down": federation("des_loc", scenario=STORM, steps=6, checkpoint_every=3),
        "clients who start afresh": federation("diloco", kept=False, checkpoint_every=3),
        "clients who owe something": of_four("ddp", codecs={"grads": "topk:0.2"}, clients={"num": 7}),
        "clients who are scored": of_four(
            LISTED["local_sgd"],
            clients={"num": 9, "personal": ("norm.*",), "held_out": 0.3, "scored": 6},
            scenario=STORM,
        ),
        "clients with experts": of_four(EVERY_TWO, clients={"num": 7, "inner_states": "kept"}, **EXPERTS),
        "experts on one": of_four(LISTED["diloco"], placement=Placement(overlap=1), **EXPERTS),
        "classes of images, storm": of_four(LISTED["des_loc"], scenario=STORM, **IMAGES),
        "sensors of people": of_four(LISTED["diloco"], **SENSORS),
        "sensors in groups, storm": of_four(
            LISTED["mutual"],
            **(
                SENSORS
                | {"split": "by:person+sensor", "groups": "sensor", "clients": {"held_out": 0.3}, "scenario": STORM}
            ),
        ),
        "sensors of people, all workers at once": of_four(LISTED["des_loc"], compute={"vectorised": True}, **SENSORS),
        "weighted samples": of_four(LISTED["des_loc"], weighting=CENTRED),
        "weighted samples, storm": of_four(LISTED["diloco"], weighting=LIKENESS, scenario=STORM),
        "weighted samples of clients": of_four(
            LISTED["photon"], weighting=LIKENESS | {"by": "softmax", "every": 3}, clients={"num": 7}
        ),
        "weighted samples, adapters": of_four(FedIT(2), weighting=CENTRED, lora=EQUAL),
        "weighted samples, terms": of_four(LISTED["ddp"], weighting=LIKENESS | {"by": "bm25", "source": "train"}),
        "buffers averaged, storm": with_buffers("des_loc outer", {"kind": "averaged", "every": 2}, scenario=STORM),
        "buffers of the first": with_buffers("ddp", "first", scenario=FIRST_GONE),
        "buffers, each its own": with_buffers("diloco", "local"),
        "buffers of a server": with_buffers(
            FedIT(2), "averaged", scenario=FIRST_GONE, lora=LoRA(ranks=(2,) * 4, targets=("hidden",))
        ),
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
