"""Every method of the lab with short periods, and the variants that take another way through the code."""

from __future__ import annotations

import dataclasses
from typing import Any

from lab.data.augmented import Augmentation
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.methods import METHODS, Method, declared
from lab.methods.async_diloco import AsyncDiLoCo
from lab.methods.ddp import DDP
from lab.methods.demo import DeMo
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.methods.fedanchor import FedAnchor
from lab.methods.fedprox import FedProx
from lab.methods.fixmatch import FixMatch
from lab.methods.flash import FLASH
from lab.methods.fomoe import FoMoE
from lab.methods.hierfavg import HierFAVG
from lab.methods.local_adam import LocalAdam
from lab.methods.local_sgd import LocalSGD
from lab.methods.lordo import LoRDO, QHAdam
from lab.methods.mt_dao import MTDAO, QHADOPT, Warm
from lab.methods.mutual import Mutual
from lab.methods.noloco import NoLoCo
from lab.methods.pafl import PaFL
from lab.methods.photon import Photon
from lab.methods.q_fedavg import QFedAvg
from lab.methods.scaffold import SCAFFOLD
from lab.methods.semifl import SemiFL
from lab.methods.server_labels import ServerTraining
from lab.methods.sparse_loco import SparseLoCo
from lab.methods.sparsyfed import SparsyFed
from lab.methods.sparta import SPARTA
from lab.methods.streaming_des_loc import StreamingDESLOC
from lab.methods.streaming_diloco import StreamingDiLoCo
from lab.methods.term import TERM
from lab.methods.top_k import TopK
from lab.methods.worldlm import Privacy, WorldLM
from lab.methods.zerofl import ZeroFL
from lab.recipes.presets import PRESETS


def shortened(method: Method, longest: int = 4) -> Method:
    """The same method with every period at most ``longest``, different ones kept different where there is room.

    With a server two: clients can be drawn for its rounds.
    """
    periods: Any = getattr(method, "sync_every", None)
    if isinstance(periods, int):
        most = 2 if declared(method).server else 3
        return dataclasses.replace(method, sync_every=min(most, periods))  # type: ignore[type-var]
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


# Methods that aggregate adapters, all of them at a server, stand in `test_federated`.
OF_ADAPTERS = [name for name in METHODS if "lora" in PRESETS.get(name, ())]


ADAPTED: dict[str, Method] = {
    name: dataclasses.replace(METHODS[name](), sync_every=2, inner=AdamW(3e-2))  # type: ignore[type-var]
    for name in OF_ADAPTERS
}


# Methods whose clients have no labels, which need a server that has some: they stand in `test_server_labels`.
OF_LABELS = [name for name, cls in METHODS.items() if declared(cls).unlabelled]


OFTEN = ServerTraining(first=1, steps=1, per_class=2, augmentation=Augmentation(noise=0.1))


LABELLED: dict[str, Method] = {
    name: dataclasses.replace(METHODS[name](), sync_every=2, server=OFTEN)  # type: ignore[type-var, call-arg]
    for name in OF_LABELS
} | {
    "fedanchor both heads": FedAnchor(
        2, SGDM, 3, 2, denominator="others", train_head=True, inner_states="kept", server=OFTEN
    ),
    "fedanchor mean": FedAnchor(2, AdamW(3e-2), 3, "mean", contrast=0.0, weight="uniform", server=ServerTraining(0, 2)),
    "fixmatch all": FixMatch(2, SGDM, 0.0, Augmentation(0.2), server=OFTEN),
    "semifl all": SemiFL(2, SGDM, 0.0, weight="samples", server=OFTEN),
    "semifl unmixed": SemiFL(2, AdamW(3e-2), 0.4, 0.0, server=OFTEN),
}


# With a tree of more than one node: each worker has its place in it, and no client can take another's.
TREES = ("hierfavg two", "worldlm two")


# Whose workers are fast or slow, each by its number: no client can take another's place either.
PACED = ("async_diloco paces", "async_diloco by speed")


LISTED: dict[str, Method] = {
    name: shortened(cls()) for name, cls in METHODS.items() if name not in (*OF_ADAPTERS, *OF_LABELS)
} | {
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
    "lordo as the code": LoRDO(
        2, 1, projector="own_deviation", error_feedback=True, residual="local", low_rank_term="plain", rotate=False
    ),
    "photon kept Nesterov": Photon(2, inner_states="kept", outer=Nesterov(0.7, 0.9)),
    "photon FedMom": Photon(3, SGDM, outer=Optimizer("FedMom", 0.8)),
    "photon FedAdam": Photon(2, SGD, outer=Optimizer("FedAdam", 0.01)),
    "photon FedYogi": Photon(3, ADOPT, inner_states="kept", outer=Optimizer("FedYogi", 0.01)),
    "streaming_diloco one": StreamingDiLoCo(2, 1, overlap=0, mix=0.0),
    "streaming_diloco three": StreamingDiLoCo(4, 3, "contiguous", overlap=2, mix=0.25, inner=SGDM),
    "streaming_des_loc one": StreamingDESLOC({"params": 2, "exp_avg": 3, "exp_avg_sq": 4}, 1, overlap=0),
    "streaming_des_loc two": StreamingDESLOC(
        {"params": 3, "exp_avg": 4}, 2, "contiguous", 2, 0.25, outer=Nesterov(0.7, 0.9)
    ),
    "noloco pull": NoLoCo(2, SGDM, lr=0.5, momentum=0.3, pull=0.9, pair_seed=4),
    "noloco all": NoLoCo(2, pull=0.0, group_size=9),
    "sparta a third": SPARTA(2, 0.3, SGDM),
    "sparta outer": SPARTA(1, 0.1, outer=Nesterov(), outer_every=3),
    "sparse_loco": SparseLoCo(2, topk=4, chunk=4),
    "sparse_loco values of all": SparseLoCo(3, SGDM, Nesterov(), 0.5, 3, 2, 32, "all", 0.5),
    "async_diloco": AsyncDiLoCo(2),
    "async_diloco paces": AsyncDiLoCo(2, (1.0, 2.0, 2.0), inner=SGDM, staleness=0.5),
    "async_diloco by speed": AsyncDiLoCo(2, (1.0, 2.0, 2.0), "by_speed", SGD, 0.5, 0.5, 1, max_norm=0.5),
    "diloco Muon": DiLoCo(2, Optimizer("Muon", 1e-2)),
    "demo one wave": DeMo(decay=0.9, topk=1, chunk=2, max_norm=0.5),
    "demo no sign": DeMo(SGD, 0.8, 2, 3, sign=False),
    "mt_dao Muon": MTDAO(
        {"params": 3, "exp_avg": 2},
        Optimizer("Muon", 1e-2, {"momentum": 0.99, "weight": 0.9}),
        Warm(3, Optimizer("Muon", 1e-2, {"momentum": 0.8})),
    ),
    "mt_dao QHM": MTDAO({"params": 3, "exp_avg": 2}, QHM),
    "fedprox AdamW": FedProx(2, 0.5, AdamW(3e-2), weight="samples", max_norm=0.5),
    "fedprox kept": FedProx(2, 1.0, SGDM, "kept"),
    "hierfavg two": HierFAVG(2, (2,), "2", inner=SGDM, weight="uniform"),
    "mutual other": Mutual(2, 0.3, 2.0, "other", SGDM, "reset", "uniform", 0.5),
    "pafl kd": PaFL(2, {1: "kd"}, temperature=1.5),
    "pafl in turns": PaFL(2, {2: "ewc", 3: "kd", 4: "plain"}, 50.0, 2.0, 0.3, SGDM, "kept", "samples", 0.5),
    "q_fedavg samples": QFedAvg(2, 2.5, SGDM, 3.0, "kept", "samples", 0.5),
    "term samples": TERM(2, 3.0, SGDM, "kept", "samples", 0.5),
    "worldlm two": WorldLM(2, (2,), "2", inner=SGDM, weight="uniform", privacy={0: Privacy(0.1, 0.5)}),
    "worldlm all alike": WorldLM(2, key_layers=(), inner=SGDM),
    "scaffold I": SCAFFOLD(2, SGDM, option="I", max_norm=0.5),
    # Of the few weights of a tiny model half are enough.
    "sparsyfed": SparsyFed(2, 0.5),
    "sparsyfed spectral": SparsyFed(2, 0.5, "spectral", False, 3, SGDM, "kept", "uniform", 0.5),
    "top_k": TopK(2, 0.5),
    "zerofl": ZeroFL(2, 0.5),
    "flash": FLASH(2, 0.5),
    "scaffold samples": SCAFFOLD(2, Optimizer("SGD", 3e-2, {"weight_decay": 0.1}), 1.7, weight="samples"),
}
