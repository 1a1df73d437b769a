"""Tasks by name: how a recipe finds one, and what its options may be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, get_type_hints

from lab.data.tasks.task import Task
from lab.ground.config import checked, config, references
from lab.ground.errors import RecipeError, one_of, shown

T = TypeVar("T", bound=Callable[..., Any])
C = TypeVar("C", bound="Options")

TASKS: dict[str, Callable[..., Any]] = {}  # by name, filled by the decorator
# Of tasks whose examples are elsewhere: shape of an example, and classes. A plan need not fetch them for that.
KNOWN: dict[str, tuple[tuple[int, ...], int]] = {}
GROUP = "isthmus.tasks"  # of the entry points by which other packages offer theirs


def task(name: str) -> Callable[[T], T]:
    """Decorator: gives a function or class that makes a `lab.data.tasks.task.Task` its name in recipes.

    What is defined again in the same module, as in a notebook cell that is run twice, takes the place of the former one.

    Raises
    ------
    RecipeError
        for a name that is none, or is taken by another module.
    """
    if not isinstance(name, str):
        raise RecipeError(f'@task above {getattr(name, "__name__", shown(name))} has no name: write @task("two_moons")')

    def register(found: T) -> T:
        if not re.fullmatch("[a-z][a-z0-9_]*(:[a-z][a-z0-9_]*)?", name):
            raise RecipeError(f"@task({shown(name)}) is no name: use small letters, digits and _, as in two_moons")
        taken = TASKS.get(name)
        if taken is not None and taken.__module__ != found.__module__:
            raise RecipeError(f"@task({name!r}): the name belongs to {taken.__module__}, choose another")
        TASKS[name] = found
        return found

    return register


class Options(Protocol):
    """A dataclass (`lab.ground.config.config`) of options, with what makes the task from them."""

    def task(self) -> Task:
        """Raises RecipeError where it cannot be made."""


def options_of(name: str, preset: Mapping[str, Any] | None = None) -> Callable[[type[C]], type[C]]:
    """Decorator: the task that this dataclass makes gets a name in recipes, its fields are the options.

    ``preset``: values that the name stands for; those of a recipe are laid over them. Raises RecipeError as `task` does.
    """
    values = preset or {}

    def register(cls: type[C]) -> type[C]:
        def make(**options: Any) -> Task:
            return checked(cls, {**values, **options}, "data").task()

        takes = inspect.signature(cls).parameters.values()
        make.__signature__ = inspect.Signature([p.replace(default=values.get(p.name, p.default)) for p in takes])  # type: ignore[attr-defined]
        make.__name__, make.__qualname__, make.__module__, make.__doc__ = name, name, cls.__module__, cls.__doc__
        task(name)(make)
        return cls

    return register


def find_task(name: str) -> Callable[..., Any]:
    """What makes a task: by its registered name, an installed package's entry point, or a reference ``my_file:make``.

    Only a name that is not known yet is looked for among installed packages.

    Raises
    ------
    RecipeError
        where there is none.
    """
    if name in TASKS:
        return TASKS[name]
    if name.startswith("hub:"):  # else a reference, to a module that is called hub
        raise RecipeError(one_of("task", name, TASKS))
    found = references.resolve(name, "data") if references.is_reference(name) else references.entry_point(GROUP, name)
    if found is None:
        raise RecipeError(one_of("task", name, TASKS) + "; one of your own is named my_file:make")
    if not callable(found):
        raise RecipeError(f"data {name} is {shown(found)}: name a function or class that gives a task")
    return found  # type: ignore[no-any-return]


def check_options(make: Callable[..., Any], options: Mapping[str, Any], what: str = "data") -> dict[str, Any]:
    """Options (plain JSON values) for what makes a task, as the types in its signature ask for them: a list becomes a tuple.

    What declares no type is taken as it is; a class checks its fields itself, if it is one of `lab.ground.config.config`.

    Raises
    ------
    RecipeError
        for a value that is not allowed.
    """
    declared = {} if isinstance(make, type) else _declared(make)
    typed = {name: declared[name] for name in options if name in declared}
    cls: type = config(type("Options", (), {"__annotations__": typed}))
    return {**options, **vars(checked(cls, {name: options[name] for name in typed}, what))}


def _declared(make: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters of a function; nothing where they cannot be told."""
    try:
        return get_type_hints(inspect.unwrap(make), include_extras=True)
    except (NameError, TypeError, ValueError):  # types that are there for a type checker alone
        return {}
