"""Who belongs to which group: by what the examples of a client say, or listed. Any method may use it, and results are told by group."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from lab.ground.errors import RecipeError, shown

Groups = dict[str, tuple[int, ...]]  # clients by group
FORM = (
    "it is a column of the examples, as in sensor, a list of groups, as in [[0,2],[1,3]], or an object of named ones, as in "
    '{"radar":[0,2],"wifi":[1,3]}'
)
NAME = "[A-Za-z0-9_-]{1,40}"


def _spec(value: Any) -> Any:
    """Groups as they are written, as plain JSON."""
    if isinstance(value, str) and (not value or re.fullmatch(NAME, value)):
        return value
    if isinstance(value, Mapping) and value:
        if odd := [name for name in value if not re.fullmatch(NAME, str(name))]:
            raise RecipeError(f"groups names a group {shown(odd[0])}: use letters, digits, - and _")
        return {name: _clients(clients) for name, clients in value.items()}
    if isinstance(value, list | tuple) and value:
        return [_clients(clients) for clients in value]
    raise RecipeError(f"groups = {shown(value)} is not allowed: {FORM}")


def _clients(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not value or not all(type(c) is int for c in value):
        raise RecipeError(f"groups has {shown(value)} as a group: a group is a list of clients, and has at least one")
    return list(value)


Spec = Annotated[Any, BeforeValidator(_spec)]


def listed(spec: Any, num_clients: int) -> Groups:
    """Groups that are listed; those without a name are A, B, …

    Raises
    ------
    RecipeError
        where a client is missing, is there twice or does not exist.
    """
    if not isinstance(spec, Mapping):
        spec = {chr(ord("A") + i) if i < 26 else f"N{i}": clients for i, clients in enumerate(spec)}
    found = {str(name): tuple(sorted(clients)) for name, clients in spec.items()}
    every = sorted(c for clients in found.values() for c in clients)
    for c in sorted({*every} | {*range(num_clients)}) if every != list(range(num_clients)) else ():
        if c not in range(num_clients):
            raise RecipeError(f"groups has client {c}, and the clients are 0 to {num_clients - 1}")
        if every.count(c) != 1:
            many = "is in none" if c not in every else f"is there {every.count(c)} times"
            raise RecipeError(f"groups must have every client once, and client {c} {many}")
    return found


def by_column(name: str, column_of: Callable[[str], Sequence[int]]) -> Groups:
    """Groups by a column of the examples, in the order of its values: sensor-0, sensor-1. Raises RecipeError as ``column_of`` does."""
    try:
        values = column_of(name)
    except RecipeError as error:
        raise RecipeError(f"groups = {name!r}: {error}") from None
    return {f"{name}-{v}": tuple(c for c, x in enumerate(values) if x == v) for v in sorted({*values})}


def in_words(groups: Mapping[str, Sequence[int]]) -> str:
    """In words: who belongs where."""
    return "; ".join(
        f"{name}: {', '.join(map(str, some[:8]))}{' …' if len(some) > 8 else ''}" for name, some in groups.items()
    )
