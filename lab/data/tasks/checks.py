"""What is asked of examples before anybody learns from them; each mistake is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lab.data.tasks.parts import check_parts
from lab.data.tasks.task import IGNORED, Examples, Normalisation
from lab.ground.errors import RecipeError, shown

Pair = tuple[Any, Any] | Examples  # inputs and targets: tensors, numpy arrays or lists
Check = Callable[[str, Tensor], Tensor]  # the targets of a part, by its name, as a task needs them
AT_ONCE = 256  # examples that are looked at together


def checked_parts(
    train: Pair, held_out: Pair, groups: Any, held_out_groups: Any, normalisation: Normalisation | None, targets: Check
) -> tuple[Examples, Examples]:
    """Both parts as `Examples` that go together."""
    a = _examples("train", train, groups, normalisation, targets)
    b = _examples("held_out", held_out, held_out_groups, normalisation, targets)
    for what, one, other in (
        ("inputs", a.inputs, b.inputs),
        ("targets", a.targets, b.targets),
    ):
        if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
            raise RecipeError(
                f"train has {what} {_kind(one)} and held_out has {_kind(other)}: both parts need the same shape and type"
            )
    return a, b


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {['E', *tensor.shape[1:]]}".replace("'", "")


def _examples(name: str, part: Pair, groups: Any, normalisation: Normalisation | None, targets: Check) -> Examples:
    """One part, checked."""
    if not isinstance(part, Examples):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise RecipeError(
                f"{name} is {shown(type(part).__name__)}: it is a pair (inputs, targets) of tensors, or Examples"
            )
        part = Examples(_as_tensor(part[0], f"{name}'s inputs"), _as_tensor(part[1], f"{name}'s targets"))
    if groups is not None:
        part = replace(part, groups=_as_tensor(groups, f"{name}'s groups"))
    part = replace(part, normalisation=normalisation or part.normalisation)
    _check_inputs(name, part)
    if part.targets.dim() < 1 or len(part.targets) != len(part.inputs):
        raise RecipeError(
            f"{name} has {len(part.inputs)} inputs and targets of shape {list(part.targets.shape)}: one target each"
        )
    part = replace(part, targets=targets(name, part.targets))
    if part.groups is not None:
        if part.groups.shape != (len(part),) or part.groups.is_floating_point() or part.groups.is_complex():
            raise RecipeError(f"{name} has groups {_kind(part.groups)} for {len(part)} examples: one integer each")
        part = replace(part, groups=part.groups.to(torch.int64))
    for column, values in part.columns.items():
        found = _as_tensor(values, f"{name}'s column {column}")
        if found.shape != (len(part),) or found.is_floating_point() or found.is_complex():
            raise RecipeError(
                f"{name} has a column {column!r} of {found.numel()} values ({found.dtype}) for {len(part)} examples: one integer each"
            )
        part = replace(part, columns={**part.columns, column: found.to(torch.int64)})
    if part.parts is not None:
        check_parts(part.inputs, part.parts)
    return part


def _as_tensor(value: Any, what: str) -> Tensor:
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{what} cannot become a tensor ({reason}): give a tensor or an array of numbers") from None
    return found.detach()


def _check_inputs(name: str, part: Examples) -> None:
    inputs = part.inputs
    if inputs.dim() < 1 or not len(inputs):
        raise RecipeError(f"{name} has no examples: each part needs at least one")
    if inputs.is_complex() or inputs.dtype == torch.bool:
        raise RecipeError(f"{name} has inputs {_kind(inputs)}: give floats, or integers")
    if part.normalisation is not None:
        _check_normalisation(name, inputs, part.normalisation)
    if inputs.is_floating_point():
        _check_finite(f"{name}'s inputs", inputs)
    elif part.normalisation is None and bool((inputs < 0).any()):
        raise RecipeError(
            f"{name} has integers below 0 as inputs: tokens count from 0; give floats, or a normalisation"
        )


def _check_normalisation(name: str, inputs: Tensor, normalisation: Normalisation) -> None:
    if inputs.is_floating_point():
        raise RecipeError(
            f"{name} has inputs {_kind(inputs)} and a normalisation, which is for stored integers: leave it out"
        )
    channels = inputs.shape[1] if inputs.dim() > 1 else 1
    for what, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, channels):
            raise RecipeError(
                f"{what} has {len(values)} numbers, and the inputs have {channels} channels: give one for each, or one"
            )
    if not all(math.isfinite(x) and x > 0 for x in (*normalisation.std, normalisation.most)):
        raise RecipeError(f"std = {list(normalisation.std)} is not allowed: deviations are above 0")


def _check_finite(what: str, values: Tensor) -> None:
    for at, some in zip(range(0, len(values), AT_ONCE), values.split(AT_ONCE), strict=True):
        wrong = ~torch.isfinite(some.flatten(1) if some.dim() > 1 else some[:, None]).all(1)
        if bool(wrong.any()):
            first = at + int(wrong.nonzero()[0])
            raise RecipeError(
                f"{what} are not all numbers: example {first} has NaN or infinity; leave it out or repair it"
            )


def as_classes(name: str, targets: Tensor) -> Tensor:
    """Targets of a classification, int64 ``[E]``."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise RecipeError(
            f"{name} has targets {_kind(targets)}: classes are integers from 0 (use .long(), or Regression)"
        )
    if targets.dim() != 1:
        raise RecipeError(f"{name} has targets of shape {list(targets.shape)}: one class for each example")
    wrong = (targets < 0) & (targets != IGNORED)
    if bool(wrong.any()):
        raise RecipeError(
            f"{name} has class {int(targets[wrong][0])} (example {int(wrong.nonzero()[0])}): classes are integers from 0, and "
            f"{IGNORED} is for a target that does not count"
        )
    if bool((targets == IGNORED).all()):
        raise RecipeError(f"{name} has no target that counts: all are {IGNORED}")
    return targets.to(torch.int64)


def as_numbers(name: str, targets: Tensor) -> Tensor:
    """Targets of a regression, floats ``[E, *]``."""
    if not targets.is_floating_point():
        raise RecipeError(
            f"{name} has targets {_kind(targets)}: numbers to predict are floats (use .float(), or Classification)"
        )
    if not targets.numel():
        raise RecipeError(f"{name} has targets of shape {list(targets.shape)}: at least one number for each example")
    _check_finite(f"{name}'s targets", targets)
    return targets


def count_classes(parts: tuple[Examples, Examples], given: int | None) -> int:
    """How many classes there are, none of them left out where nobody says how many."""
    there = torch.cat([part.targets for part in parts]).unique()
    there = there[there != IGNORED]
    largest = int(there[-1])
    if given is None:
        missing = sorted(set(range(min(largest + 1, 10 * len(there) + 10))) - set(there.tolist()))
        if missing:
            raise RecipeError(
                f"classes go up to {largest}, and {shown(missing)} have no example: number them without gaps, or give "
                f"num_classes={largest + 1}"
            )
        return largest + 1
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise RecipeError(f"num_classes = {shown(given)} is not allowed: it is an integer of at least 1")
    if largest >= given:
        raise RecipeError(f"there is a class {largest}, and num_classes = {given}: classes go from 0 to {given - 1}")
    return given
