"""The model to start from: pre-trained once by the lab itself on the source text of the standard library, then cached.

A base model is a safetensors file of named parameters, and a small JSON beside it: recipe, loss, seconds, and the digest
that is checked before the values are used.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lab.data.cache import cache_folder
from lab.errors import LabError, RecipeError

if TYPE_CHECKING:
    from lab.recipes.recipe import Recipe

# (steps, batch size of each worker): about two minutes on two quiet cores, 1.44 and 1.62 nats per byte in the end
PLANS = {"nano": (2000, 8), "micro": (800, 4)}


def pretrained(
    size: str = "nano",
    *,
    steps: int | None = None,
    context: int = 256,
    batch_size: int | None = None,
    corpus: str = "stdlib",
    tokenizer: str = "bytes",
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> Path:
    """The file of a base model, trained now where the cache does not have it (with a line of progress on stderr).

    Two workers train by `ddp`. ``size`` is a named size of `lab.recipes.recipe.SIZES`; ``steps`` and ``batch_size`` (of a worker) are
    those of `PLANS` where they are not given; ``context`` is the longest that a task may have; ``cache`` is a folder instead
    of the user's own.

    Raises
    ------
    RecipeError
        for an argument that is not allowed, and for a cache that cannot be written.
    """
    from safetensors.torch import save
    from tqdm import tqdm

    from lab.events import Evaluated, Stepped
    from lab.files import damage, write_with_digest
    from lab.runs.trainer import Trainer

    recipe = _recipe(size, steps, context, batch_size, corpus, tokenizer, seed)
    steps, root = recipe.steps, Path(cache) if cache is not None else cache_folder("models")
    file = root / f"{size}-{recipe.id}.safetensors"
    if file.exists() and not damage(file):
        return file
    started = time.perf_counter()
    trainer = Trainer(recipe, progress=progress)
    loss = float("nan")
    wait = 0.5 if sys.stderr.isatty() else 20.0  # seconds between two words on how far it is
    name = f"pre-training {size}, once"
    with tqdm(desc=name, total=steps, unit=" steps", disable=not progress, mininterval=wait, maxinterval=wait) as bar:
        for event in trainer.events():
            if isinstance(event, Stepped):
                loss_W = [x for x in event.loss_W if x is not None]
                bar.set_postfix_str(f"{sum(loss_W) / len(loss_W):.2f} nats per token", refresh=False)
                bar.update()
            elif isinstance(event, Evaluated):
                loss = event.loss
    agreed = trainer.comm.agreed(trainer.state.local["params"])
    model = trainer.fleet.whole_model(agreed)
    assert trainer.text is not None
    about = {
        "recipe": recipe.to_dict(),
        "validation_loss": loss,  # nats per token
        "bytes_per_token": trainer.text.bytes_per_token,
        "python": platform.python_version(),
        "seconds": time.perf_counter() - started,
    }
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_with_digest(file, save({name: p.contiguous() for name, p in model.named_parameters()}), about)
    except OSError as error:
        raise RecipeError(
            f"cannot write the base model to {str(error.filename or root)!r} ({error.strerror or error}): "
            "ISTHMUS_CACHE names another folder"
        ) from error
    return file


def _recipe(
    size: str, steps: int | None, context: int, batch_size: int | None, corpus: str, tokenizer: str, seed: int
) -> Recipe:
    from lab.recipes.recipe import Recipe

    planned = PLANS.get(size, PLANS["micro"])
    steps = planned[0] if steps is None else steps
    return Recipe.of(
        {
            "method": {
                "name": "ddp",
                "inner": {"name": "AdamW", "lr": 3e-3, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}},
            },
            "model": size,
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


def base_file(size: str = "nano") -> Path:
    """Where the base model of `pretrained` is, or will be."""
    return cache_folder("models") / f"{size}-{_recipe(size, None, 256, None, 'stdlib', 'bytes', 0).id}.safetensors"


def load_values(path: str | Path) -> dict[str, Tensor]:
    """The parameters of a base model by name.

    Raises
    ------
    LabError
        if the file is missing, or is not what was written.
    """
    from safetensors.torch import load_file

    from lab.files import damage

    file = Path(path)
    problem = damage(file) if file.exists() else "it does not exist"
    if problem:
        raise LabError(
            f"base model {str(file)!r} cannot be used ({problem}): remove it and call lab.runs.pretrain.pretrained, "
            "which trains it again"
        )
    return load_file(file)
