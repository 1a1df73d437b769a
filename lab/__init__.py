"""Isthmus: a lab for training across narrow links.

``Recipe`` says what to run, ``train`` runs it here and now, ``start`` in the background of a notebook; ``plan`` says
beforehand what it will send, ``network`` names what a ledger is priced on. The names here are imported when they are first
used, so that ``import lab`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Recipe": "lab.recipes.recipe",
    "method": "lab.methods",
    "train": "lab.runs.trainer",
    "Trainer": "lab.runs.trainer",
    "dry_run": "lab.runs.trainer",
    "attach": "lab.runs.attach",
    "start": "lab.runs.live",
    "replay": "lab.runs.live",
    "plan": "lab.runs.plan",
    "unlearn": "lab.systems.unlearning.study",
    "find_run": "lab.runs.folder",
    "fork": "lab.runs.fork",
    "Columns": "lab.runs.columns",
    "Network": "lab.costs.network",
    "network": "lab.costs.network",
    "board": "lab.study.board",
    "Claim": "lab.study.claims",
    "Claims": "lab.study.claims",
    "Effect": "lab.study.effects",
    "suggest_periods": "lab.methods.des_loc",
    "load_corpus": "lab.data",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("lab.testing")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, "testing"})
