"""A model for everybody, and beside it one for each group: a worker has that of its own group, and the whole model has all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from lab.ground.errors import RecipeError
from lab.models.own import TaskLoss, with_loss

NAME = "groups"
GROUPS = f"{NAME}."  # what the names of group models' parameters begin with; all others are of the model for everybody


class GroupModels(nn.ModuleDict):
    """The models of groups, by name."""


def add_groups_(module: nn.Module, groups: Sequence[str]) -> nn.Module:
    """Give a module a second model for each of these groups, which begins as a copy of it. When it is called it answers as before.

    Raises
    ------
    RecipeError
        for a module that has something of this name.
    """
    if NAME in dir(module):
        raise RecipeError(
            f"the model has an attribute {NAME!r}, where models of groups are to be: call it something else"
        )
    models = GroupModels({name: copy.deepcopy(module) for name in groups})
    if isinstance(module, nn.Sequential):  # which calls all that it has
        module.forward = partial(_in_turn, list(module))  # type: ignore[method-assign]
    module.tensor_group = partial(_label, getattr(module, "tensor_group", lambda name: "all"))  # type: ignore[assignment]
    module.add_module(NAME, models)
    return module


def _in_turn(parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


def _label(of_part: Callable[[str], str], name: str) -> str:
    """What a tensor is, for reading a ledger; one of a group's model is told apart."""
    return f"group {of_part(name.split('.', 2)[2])}" if name.startswith(GROUPS) else of_part(name)


def group_models(module: nn.Module) -> Mapping[str, nn.Module]:
    """The models of groups that a module has beside it, by name."""
    found = module._modules.get(NAME)
    return dict(found.items()) if isinstance(found, GroupModels) else {}


def without_groups_(module: nn.Module) -> nn.Module:
    """The model for everybody alone."""
    if group_models(module):
        del module._modules[NAME]
    return module


def with_losses(module: nn.Module, loss: TaskLoss | None) -> nn.Module:
    """`with_loss`, and the same for the models of groups."""
    for part in group_models(module).values():
        with_loss(part, loss)
    return with_loss(module, loss)
