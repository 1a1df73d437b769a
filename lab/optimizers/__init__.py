"""Optimizers that the papers brought and torch lacks: plain ``torch.optim.Optimizer`` classes, usable without the lab."""

from lab.optimizers.adam import ADOPT, SGDM, PlainAdam
from lab.optimizers.low_rank import LowRankAdam
from lab.optimizers.muon import Muon
from lab.optimizers.quasi_hyperbolic import QHADOPT, QHM, QHAdam
from lab.optimizers.server import FedAdam, FedMom, FedYogi

__all__ = [
    "ADOPT",
    "QHADOPT",
    "QHM",
    "SGDM",
    "FedAdam",
    "FedMom",
    "FedYogi",
    "LowRankAdam",
    "Muon",
    "PlainAdam",
    "QHAdam",
]
