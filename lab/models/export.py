"""What a finished run trained, for use elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from lab.errors import RecipeError
from lab.models.hf import HF
from lab.models.peft import merged, save_adapter
from lab.recipe import Recipe
from lab.run import Trainer
from lab.store import RunFolder, write_atomically


def trained(folder: RunFolder) -> nn.Module:
    """The model of a run as its last whole checkpoint has it: the agreed values, in eval mode. Raises RecipeError without one."""
    recipe = Recipe.of(json.loads((folder.path / "recipe.json").read_text()))
    checkpoint, _ = folder.load()
    if checkpoint is None:
        raise RecipeError(f"{folder.path.name} has no whole checkpoint: run it with checkpoint_every above 0")
    trainer = Trainer(recipe)
    trainer.restore(checkpoint)
    trainer.fleet.close()
    return trainer.fleet.whole_model(trainer.agreed())


def export_run(folder: RunFolder, out: Path, *, rank: int | None = None, whole: bool = False) -> str:
    """Write adapters in peft's format, or the whole model with them added; returns what was written in words."""
    module, recipe = trained(folder), Recipe.of(json.loads((folder.path / "recipe.json").read_text()))
    if not whole:
        base = recipe.model.path if isinstance(recipe.model, HF) else recipe.start
        moved = "base" in {k.split("/")[1] for k in _shared(folder)}
        note = " (the method also changed the model itself: --merged writes all of it)" if moved else ""
        return f"adapters in {save_adapter(module, out, rank, base)}{note}"
    from safetensors.torch import save

    if isinstance(recipe.model, HF):
        with torch.no_grad():
            plain = recipe.model.build(0, 1)
            for name, value in merged(module, rank).items():
                plain.get_parameter(f"model.{name}").copy_(value)
        plain.model.save_pretrained(out, safe_serialization=True)  # type: ignore[operator, union-attr]
        return f"model in {out}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "model.safetensors", save(merged(module, rank)))
    return f"model in {out / 'model.safetensors'}"


def _shared(folder: RunFolder) -> list[str]:
    checkpoint, _ = folder.load()
    return [k for k in checkpoint.tensors if k.startswith("shared/")] if checkpoint else []
