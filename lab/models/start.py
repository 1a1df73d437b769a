"""First values of a model from somewhere else than its seed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lab.errors import RecipeError


@torch.no_grad()
def start_values_(module: nn.Module, start: str) -> None:
    """Fill a module with named values: ``pretrained`` (nano), ``pretrained:<size>``, or the path of a ``.safetensors`` file.

    Raises RecipeError where a tensor is missing or has another shape.
    """
    if start.partition(":")[0] == "pretrained":
        from lab.tasks.base import load_values, pretrained

        path = pretrained(start.partition(":")[2] or "nano")
        values = load_values(path)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(start).expanduser()
        try:
            values = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RecipeError(
                f"start = {start!r} cannot be read ({error}): use pretrained, or the path of a .safetensors file"
            ) from None
    for name, p in module.named_parameters():
        if name not in values:
            raise RecipeError(
                f"{path.name} has no tensor {name}: it is of another model; choose the model that it was made with"
            )
        if values[name].shape != p.shape:
            raise RecipeError(
                f"{path.name}: {name} is {list(values[name].shape)} and this model needs {list(p.shape)}: choose the model that "
                "it was made with"
            )
        p.copy_(values[name])
