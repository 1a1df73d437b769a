"""Tasks by name, and how a recipe finds one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from lab import references
from lab.errors import RecipeError, one_of, shown

T = TypeVar("T", bound=Callable[..., Any])

TASKS: dict[str, Callable[..., Any]] = {}  # by name, filled by the decorator


def task(name: str) -> Callable[[T], T]:
    """Decorator: gives a function or class that makes a `lab.data.tasks.task.Task` its name in recipes.

    Raises
    ------
    RecipeError
        for a name that is none, or is taken by another module.
    """

    def register(found: T) -> T:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise RecipeError(f"@task({shown(name)}) is no name: use small letters, digits and _, as in two_moons")
        taken = TASKS.get(name)
        if taken is not None and taken.__module__ != found.__module__:
            raise RecipeError(f"@task({name!r}): the name belongs to {taken.__module__}, choose another")
        TASKS[name] = found
        return found

    return register


def find_task(name: str) -> Callable[..., Any]:
    """What makes a task: by its registered name, an installed package's entry point, or a reference ``my_file:make``.

    Raises
    ------
    RecipeError
        where there is none.
    """
    if name in TASKS:
        return TASKS[name]
    found = (
        references.resolve(name, "data")
        if references.is_reference(name)
        else references.entry_point("isthmus.tasks", name)
    )
    if found is None:
        raise RecipeError(one_of("task", name, TASKS) + "; one of your own is named my_file:make")
    if not callable(found):
        raise RecipeError(f"data {name} is {shown(found)}: name a function or class that gives a task")
    return found  # type: ignore[no-any-return]
