"""Recipes with text for the step loop, so small that a run takes a few hundredths of a second."""

from __future__ import annotations

import functools
from typing import Any

from lab.data import Corpus, load_corpus
from lab.methods import Method
from lab.methods.des_loc import DESLOC
from lab.models.gpt import GPT
from lab.recipes.recipe import Recipe

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


NORMED = {"name": "cnn", "channels": [2], "kernel": 3, "hidden": 4, "norm": "batch"}


def normed(method: Method | str = SHORT, **changes: Any) -> Recipe:
    """A model with a BatchNorm, on images."""
    return recipe(method, **({"model": NORMED, "data": "tests.support.parts:pictures", "batch_size": 3} | changes))
