"""Isthmus: a lab for training across narrow links.

``Recipe`` says what to run, ``train`` runs it; `lab.plan.plan` says beforehand what it will send, `lab.network.network`
prices what was sent. The names here are imported when they are first used, so that ``import lab`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Recipe": "lab.recipe",
    "train": "lab.run",
    "start": "lab.live",
    "replay": "lab.live",
    "cockpit": "widgets.cockpit",
    "dry_run": "lab.run",
    "Trainer": "lab.run",
    "Columns": "lab.columns",
    "Network": "lab.network",
    "Claim": "lab.claims",
    "Claims": "lab.claims",
    "suggest_periods": "lab.methods.des_loc",
    "load_corpus": "lab.data",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
