"""What may be given to an optimizer besides its learning rate: one table by name, with types and ranges.

An option of one name means the same wherever an optimizer takes it, so that an optimizer's own options are those of its
signature that stand here. What torch would also take is left out where it only chooses how a step is computed in a graph or on a
device (``capturable``, ``differentiable``), or goes uphill (``maximize``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lab.ground.config import Fraction, Positive, exact
from lab.ground.errors import RecipeError, one_of, shown

Decay = Annotated[float, Field(ge=0, lt=1)]  # of an average: what is left of it after a step
Size = Annotated[float, Field(ge=0)]
Added = Annotated[float, Field(ge=0, le=1e18)]  # beside a root; its square has to be a float32 as well
Growth = Annotated[float, Field(gt=1)]

KINDS: dict[str, Any] = {
    "betas": tuple[Decay, Decay],
    "alpha": Decay,
    "rho": Decay,
    "momentum": Decay,
    "dampening": Fraction,
    "nesterov": bool,
    "momentum_decay": Size,
    "eps": Added,
    "tau": Annotated[Added, Field(gt=0)],
    "weight_decay": Size,
    "decoupled_weight_decay": bool,
    "lr_decay": Size,
    "initial_accumulator_value": Size,
    "amsgrad": bool,
    "centered": bool,
    "etas": tuple[Annotated[float, Field(gt=0, lt=1)], Growth],
    "step_sizes": tuple[Positive, Positive],
    "weights": tuple[Fraction, ...],
    "weight": Fraction | None,
    "clip_exponent": Size | None,
    "ns_steps": Annotated[int, Field(ge=1, le=99)],
    "adjust_lr_fn": Literal["original", "match_rms_adamw"],
    "foreach": bool | None,
    "fused": bool | None,
}
MANY = tuple[Decay, ...]  # decays of as many averages as there are weights


@functools.cache
def options_of(optimizer: Any) -> dict[str, TypeAdapter[Any]]:
    """Options of an optimizer by name, each with what checks it."""
    names = inspect.signature(optimizer).parameters
    kinds = {name: KINDS[name] for name in names if name in KINDS}
    if "weights" in kinds:
        kinds["betas"] = MANY
    return {name: TypeAdapter(exact(kind)) for name, kind in kinds.items()}


def checked_options(name: str, optimizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back, so that equal recipes are equal.

    Raises
    ------
    RecipeError
        for one that the optimizer does not have, or a value that is not allowed.
    """
    allowed, plain = options_of(optimizer), dict[str, Any]()
    for key, value in options.items():
        if key not in allowed:
            raise RecipeError(one_of(f"{name} option", key, allowed))
        try:
            found = allowed[key].validate_python(value)
        except ValidationError as error:
            raise RecipeError(f"{name} does not accept {key} = {shown(value)}: {_why(error)}") from None
        plain[key] = list(found) if isinstance(found, tuple) else found
    if plain.get("step_sizes", [0, 1]) != sorted(plain.get("step_sizes", [0, 1])):
        raise RecipeError(f"{name} does not accept step_sizes = {plain['step_sizes']}: the smallest comes first")
    if plain.get("foreach") and plain.get("fused"):
        raise RecipeError(f"{name} does not accept foreach and fused together: leave out one")
    return plain


def _why(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] in ("tuple_type", "missing", "too_long"):
        return (
            "it is a list of two numbers, for example [0.9, 0.95]" if first["type"] != "tuple_type" else "it is a list"
        )
    which = f"number {first['loc'][0] + 1} of it: " if first["loc"] and isinstance(first["loc"][0], int) else ""
    return which + first["msg"][0].lower() + first["msg"][1:]
