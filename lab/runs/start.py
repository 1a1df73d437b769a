"""First values of a model from somewhere else than its seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lab.ground.errors import LabError, RecipeError
from lab.ground.files import damage
from lab.models.files import Tensors, Unreadable, located, open_tensors
from lab.runs.pretrain import base_file, base_size


@torch.no_grad()
def start_values_(module: nn.Module, start: str, base_model: Callable[[str], Path] = base_file) -> None:
    """Fill a module with named values: ``pretrained`` (nano), ``pretrained:<size>`` (see `lab.runs.pretrain.base_recipe`), or the path of a ``.safetensors`` file.

    ``base_model``: the file of a base model of a size, which it may make first.

    Raises RecipeError where the file cannot be read, a tensor is missing or has another shape, and for one too many.
    """
    size = base_size(start)
    if size is not None:
        path = base_model(size)
        values = load_values(path)
        _fill_(module, values, {n: tuple(v.shape) for n, v in values.items()}, path.name)
        return
    try:
        path = located(start)
        with open_tensors(path) as tensors:
            _fill_(module, tensors, tensors.shapes, path.name)
    except Unreadable as error:
        raise RecipeError(
            f"start = {start[:200]!r} cannot be read ({error}): use pretrained, or the path of a .safetensors file"
        ) from None


def _fill_(
    module: nn.Module, values: Mapping[str, Tensor] | Tensors, shapes: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """All shapes are compared before the first value is read."""
    advice = "choose the model that it was made with"
    wanted = dict(module.named_parameters())
    for key, p in wanted.items():
        if key not in shapes:
            raise RecipeError(f"{name} has no tensor {key}: it is of another model; {advice}")
        if shapes[key] != p.shape:
            raise RecipeError(f"{name}: {key} is {list(shapes[key])} and this model needs {list(p.shape)}: {advice}")
    known = wanted.keys() | {n for n, _ in module.named_parameters(remove_duplicate=False)}
    known |= {n for n, _ in module.named_buffers()}
    for key in sorted(shapes.keys() - known)[:1]:
        raise RecipeError(f"{name} also has {key[:80]!r}, which this model lacks: it is of another model; {advice}")
    for key, p in wanted.items():
        p.copy_(values[key])


def load_values(path: str | Path) -> dict[str, Tensor]:
    """The parameters of a base model by name.

    Raises
    ------
    LabError
        if the file is missing, or is not what was written.
    """
    file = Path(path)
    problem = damage(file) if file.exists() else "it does not exist"
    if problem:
        raise LabError(
            f"base model {str(file)!r} cannot be used ({problem}): remove it and call lab.runs.trainer.pretrained, "
            "which trains it again"
        )
    return load_file(file)
