"""Optimizers that the papers brought and torch lacks: plain ``torch.optim.Optimizer`` classes, usable without the lab."""

from lab.optimizers.low_rank import LowRankAdam
from lab.optimizers.quasi_hyperbolic import QHADOPT, QHM, QHAdam

__all__ = ["QHADOPT", "QHM", "LowRankAdam", "QHAdam"]
