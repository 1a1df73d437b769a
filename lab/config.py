"""How options are declared: frozen dataclasses whose every field is checked, also when made by hand in a notebook."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as _pydantic_dataclass

from lab.errors import RecipeError, one_of

T = TypeVar("T")

Period = Annotated[int, Field(ge=1, description="every so many local steps")]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks types and ranges and refuses keys it does not know."""
    return _pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))(cls)  # type: ignore[return-value]


def checked(cls: type[T], options: Any, where: str = "") -> T:
    """Build ``cls`` from plain JSON values; a mistake becomes one line.

    Raises
    ------
    RecipeError
        naming the key, what was given, what is allowed and, for a misspelt key, the nearest right one.
    """
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        raise RecipeError(explain(error, cls, where)) from None


def explain(error: ValidationError, cls: type, where: str = "") -> str:
    """The first thing pydantic found wrong, as one line for a person."""
    first = error.errors()[0]
    path = [str(p) for p in first["loc"]]
    key = ".".join(([where] if where else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return one_of("option", key, _siblings(cls, path, where))
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing: write {', '.join(_siblings(cls, path, where))}"
    if first["type"] == "dataclass_type":
        fields = ", ".join(name.split(".")[-1] for name in _siblings(cls, [*path, ""], where))
        return f"{key} = {first['input']!r} is not allowed: it is an object with the fields {fields}"
    if isinstance(first.get("ctx", {}).get("error"), ValueError):
        prefix = f"{key}: " if key else ""
        return prefix + str(first["ctx"]["error"])
    given = first["input"]
    if first["type"] in ("tuple_type", "list_type"):
        return f'{key} = {given!r} is not allowed: it is a list, for example [8,4,2] or ["a","b"]'
    if first["type"] == "dict_type":
        return f'{key} = {given!r} is not allowed: it is an object, for example {{"3": 2}}'
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} = {given!r} is not allowed: {message}"


def _siblings(cls: Any, path: list[str], where: str) -> list[str]:
    """The keys that are allowed where ``path`` ends."""
    for step in path[:-1]:
        if step.isdigit():  # inside a list: the class is that of its elements
            cls = next(iter(get_args(cls)), None)
            continue
        hint = getattr(cls, "__pydantic_fields__", {}).get(step)
        cls = hint.annotation if hint is not None else None
        if isinstance(cls, UnionType):  # an optional part
            cls = next((c for c in get_args(cls) if hasattr(c, "__dataclass_fields__")), None)
    prefix = ".".join(([where] if where else []) + path[:-1])
    return [f"{prefix}.{name}" if prefix else name for name in getattr(cls, "__dataclass_fields__", {})]
