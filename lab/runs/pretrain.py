"""The models to start from, which the lab pre-trains itself on the source text of the standard library: recipes and files.

A base model is a safetensors file of named parameters, and a small JSON beside it: recipe, loss, seconds, and the digest
that is checked before the values are used. `lab.runs.trainer.pretrained` makes them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lab.data.cache import cache_folder
from lab.recipes.recipe import Recipe

HEADS = 2  # of a model that is named by its shape

# (steps, batch size of each worker): about two minutes on two quiet cores (pico: half of that), 1.44 and 1.62 nats per byte in the end
PLANS = {"pico": (2000, 8), "nano": (2000, 8), "micro": (800, 4)}


def base_recipe(
    size: str, steps: int | None, context: int, batch_size: int | None, corpus: str, tokenizer: str, seed: int
) -> Recipe:
    """Of a named size, or of width × layers (``24x2``, with `HEADS` heads): what is not given is that of `PLANS`, of micro for other sizes."""
    planned = PLANS.get(size, PLANS["micro"])
    steps = planned[0] if steps is None else steps
    return Recipe.of(
        {
            "method": {
                "name": "ddp",
                "inner": {"name": "AdamW", "lr": 3e-3, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}},
            },
            "model": _shape(size),
            "corpus": corpus,
            "tokenizer": tokenizer,
            "num_workers": 2,
            "steps": steps,
            "batch_size": planned[1] if batch_size is None else batch_size,
            "context": context,
            "seed": seed,
            "schedule": {"kind": "cosine", "warmup": min(50, steps // 10)},
            "eval_every": 0,
            "eval_windows": 128,
            "checkpoint_every": 0,
        }
    )


def _shape(size: str) -> str | dict[str, Any]:
    found = re.fullmatch(r"(\d+)x(\d+)", size)
    return {"dim": int(found[1]), "num_layers": int(found[2]), "num_heads": HEADS} if found else size


def base_size(start: str) -> str | None:
    """Return the size of the base model that ``recipe.start`` names; None where it names a file, or nothing."""
    kind, _, size = start.partition(":")
    return (size or "nano") if kind == "pretrained" else None


def base_file(size: str = "nano") -> Path:
    """Where the base model of this size is, or will be."""
    return cache_folder("models") / f"{size}-{base_recipe(size, None, 256, None, 'stdlib', 'bytes', 0).id}.safetensors"
