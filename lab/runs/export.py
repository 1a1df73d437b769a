"""What a finished run trained, for use elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.ground.errors import RecipeError
from lab.ground.files import write_atomically
from lab.models.files import in_one_line
from lab.models.hf import HF
from lab.models.in_groups import without_groups_
from lab.models.peft import Ranks, merged, save_adapter
from lab.models.reparametrised import plain_
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer


def trained(folder: RunFolder) -> nn.Module:
    """The model of a run as its last whole checkpoint has it: the agreed values, in eval mode. Raises RecipeError without one."""
    recipe = folder.recipe()
    checkpoint, _ = folder.load(recipe)
    if checkpoint is None:
        raise RecipeError(f"{folder.path.name} has no whole checkpoint: run it with checkpoint_every above 0")
    trainer = Trainer(recipe)
    folder.check_inputs(
        trainer.built.inputs, checkpoint.extra.get("inputs"), accept_new_text=True
    )  # it reads no text any more
    trainer.restore(checkpoint)
    trainer.fleet.close()
    return trainer.fleet.whole_model(trainer.agreed())


def export_run(folder: RunFolder, out: Path, *, rank: Ranks = None, whole: bool = False, rslora: bool = False) -> str:
    """Write adapters in peft's format, or the whole model with them added; returns what was written in words.

    rank
        cuts the adapters: all of them, or those of some maps by the end of their name.
    rslora
        the adapters say their scale as α/√r instead of α/r.
    """
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file: give a folder to write into")
    module, recipe = without_groups_(plain_(trained(folder))), folder.recipe()
    if not whole and not recipe.lora.ranks:
        raise RecipeError("this run trained the model itself and has no adapters: --merged writes the whole model")
    if not whole:
        base = recipe.model.path if isinstance(recipe.model, HF) else recipe.start
        moved = "base" in {k.split("/")[1] for k in _shared(folder)}
        note = " (the method also changed the model itself: --merged writes all of it)" if moved else ""
        return f"adapters in {save_adapter(module, out, rank, base, rslora=rslora)}{note}"
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(recipe.model, HF):
            with_values(recipe.model.build(0, 1), merged(module, rank)).save_pretrained(out, safe_serialization=True)
            return f"model in {out}"
        write_atomically(out / "model.safetensors", save(merged(module, rank)))
        return f"model in {out / 'model.safetensors'}"
    except (OSError, ValueError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or in_one_line(error)
        raise RecipeError(f"cannot write the model into {str(out)!r} ({why}): give a folder with room in it") from None


@torch.no_grad()
def with_values(module: nn.Module, values: Mapping[str, Tensor]) -> Any:
    """The model of `transformers` inside a module of the lab, with these values. What adapters untied stays so when it is saved.

    Raises RecipeError for a model that cannot be saved untied.
    """
    model: Any = module.model
    tied = dict(model.named_parameters(remove_duplicate=False))
    own = dict(model.named_parameters())
    for name in [n for n in values if n in tied and n not in own]:
        head = model.get_submodule(name.rpartition(".")[0])
        if head is not model.get_output_embeddings():
            raise RecipeError(
                f"{name} was adapted, but is one with another tensor in every file of this model: write the adapters alone, "
                "without --merged"
            )
        head.weight = nn.Parameter(values[name].clone())
        for settings in (model.config, model.config.get_text_config()):
            settings.tie_word_embeddings = False
    for name, value in values.items():
        model.get_parameter(name).copy_(value)
    return model


def _shared(folder: RunFolder) -> list[str]:
    checkpoint, _ = folder.load()
    return [k for k in checkpoint.tensors if k.startswith("shared/")] if checkpoint else []
