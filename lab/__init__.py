"""Isthmus: a lab for training across narrow links.

``Recipe`` says what to run, ``train`` runs it; `lab.runs.plan.plan` says beforehand what it will send, `lab.costs.network.network`
prices what was sent. The names here are imported when they are first used, so that ``import lab`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Recipe": "lab.recipes.recipe",
    "train": "lab.runs.trainer",
    "start": "lab.runs.live",
    "replay": "lab.runs.live",
    "cockpit": "widgets.cockpit",
    "dry_run": "lab.runs.trainer",
    "Trainer": "lab.runs.trainer",
    "Columns": "lab.runs.columns",
    "Network": "lab.costs.network",
    "Claim": "lab.study.claims",
    "Claims": "lab.study.claims",
    "suggest_periods": "lab.methods.des_loc",
    "load_corpus": "lab.data",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
