"""Which models a recipe can name, and how it finds them. Sizes of GPTs and models of Hugging Face are named otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from lab.ground.config import checked
from lab.ground.config.references import entry_point
from lab.ground.errors import RecipeError, one_of, shown
from lab.models.shape import Model

T = TypeVar("T")

MODELS: dict[str, type[Model]] = {}  # by name, filled by the decorator
GROUP = "isthmus.models"  # of the entry points by which other packages offer theirs
REQUIRED = ("vocab_size", "layers_and_experts", "check", "module")


def model(name: str) -> Callable[[type[T]], type[T]]:
    """Decorator: gives a class of the form `lab.models.shape.Model` its name in recipes, which is also its ``name``.

    A class that is defined again in the same module, as in a notebook cell that is run twice, takes the place of the former one.

    Raises
    ------
    RecipeError
        for a name that is none or is taken, or a class in which something is missing.
    """
    if not isinstance(name, str):
        raise RecipeError(f'@model above {getattr(name, "__name__", shown(name))} has no name: write @model("my_net")')

    def register(cls: type[T]) -> type[T]:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise RecipeError(
                f"@model({shown(name)}) is no name for {cls.__name__}: use small letters, digits and _, as in my_net"
            )
        taken = MODELS.get(name)
        if taken is not None and taken.__module__ != cls.__module__:
            raise RecipeError(
                f"@model({name!r}) for {cls.__name__}: the name belongs to {taken.__module__}.{taken.__name__}, choose another"
            )
        if not is_dataclass(cls):
            raise RecipeError(
                f"@model({name!r}) is for a dataclass: write @config from lab.ground.config above {cls.__name__}"
            )
        missing = set(REQUIRED) - set(dir(cls)) - {f.name for f in fields(cls)}
        if missing:
            raise RecipeError(
                f"@model({name!r}): {cls.__name__} lacks {', '.join(sorted(missing, key=REQUIRED.index))}; "
                "lab.models.shape.Model says what a model has"
            )
        found: Any = cls
        found.name = name
        MODELS[name] = found
        return cls

    return register


def parse_model(spec: Any) -> Model:
    """A model from its name, from ``{"name": …, option: value}``, or as it is.

    Raises
    ------
    RecipeError
        for an unknown name or option, a value that is not allowed, or an object of a class that is not registered.
    """
    if type(spec) in MODELS.values():
        return spec  # type: ignore[no-any-return]
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict):
        raise RecipeError(
            f'model = {shown(spec)} is not allowed: it is a name, or {{"name": …}} with options; use one of {", ".join(MODELS)}'
        )
    options = dict(spec)
    name = options.pop("name", None)
    if name is None:
        raise RecipeError(f"model.name is missing: use one of {', '.join(MODELS)}")
    found = find_model(name)
    if found is None:
        raise RecipeError(one_of("model", name, MODELS) + "; one of your own is named my_file:make")
    return checked(found, options, "model")


def find_model(name: Any) -> type[Model] | None:
    """The class of this name, None where there is none. Only one that is not known yet is looked for among installed packages.

    Raises
    ------
    RecipeError
        where an installed package offers it and cannot be imported.
    """
    if not isinstance(name, str):
        return None
    if name not in MODELS:
        offered = entry_point(GROUP, name)
        if offered is not None and name not in MODELS:  # the decorator may have done so
            model(name)(offered)
    return MODELS.get(name)
