"""How options are declared: frozen dataclasses whose every field is checked, also when made by hand in a notebook.

A number is a number: text (``"4"``) and true or false are refused where one is needed, 4.0 is the integer 4 (JSON has one kind
of number), and what is not finite or too large to be reckoned with is refused. True and false are no 1 and 0. A part is of the
class that is declared and not of one derived from it, since a recipe on disk names only the former.
"""

from __future__ import annotations

import ast
import inspect
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial, reduce, wraps
from types import UnionType
from typing import Annotated, Any, Protocol, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as _pydantic_dataclass
from pydantic_core import PydanticCustomError

from lab.ground.errors import RecipeError, one_of, shown

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Period = Annotated[int, Field(ge=1, description="every so many local steps")]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

LARGEST_INTEGER = 2**63 - 1  # what torch and numpy count with
LARGEST_FLOAT = 1e30  # a float32 holds 3e38, and numbers are added up and multiplied


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks types and ranges and refuses keys it does not know."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # of a class inside a function, whose types nobody else can see
        hints = {}
    own = inspect.get_annotations(cls)
    cls.__annotations__ = {name: exact(hints[name]) if name in hints else hint for name, hint in own.items()}
    made: Any = _pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))(cls)
    as_written = inspect.signature(made)
    made.__signature__ = as_written.replace(
        parameters=[p.replace(annotation=own.get(n, p.annotation)) for n, p in as_written.parameters.items()]
    )
    check = made.__init__

    @wraps(check)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        try:
            check(self, *args, **options)
        except ValidationError as error:  # made by hand: one line as well
            raise RecipeError(explain(error, made)) from None

    made.__init__ = __init__
    return made  # type: ignore[no-any-return]


def exact(hint: Any) -> Any:
    """The same type without what pydantic would turn into it: see the top of this file."""
    if hint is bool:
        return Annotated[bool, Strict()]
    if hint is int:
        return Annotated[int, BeforeValidator(_integer)]
    if hint is float:
        return Annotated[float, AllowInfNan(False), BeforeValidator(_number)]
    if isinstance(hint, type) and is_dataclass(hint):
        return Annotated[hint, AfterValidator(partial(_itself, hint))]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(exact(args[0]), *args[1:])]
    if origin in (Union, UnionType):
        return reduce(operator.or_, map(exact, args))
    if origin is dict and _is_integer(args[0]):
        key: Any = Annotated[args[0], BeforeValidator(_key)]
        return origin[key, exact(args[1])]
    if origin in (dict, list, tuple):
        return origin[tuple(a if a is ... else exact(a) for a in args)]
    return hint


def _is_integer(hint: Any) -> bool:
    return hint is int or (get_origin(hint) is Annotated and get_args(hint)[0] is int)


def _plain(value: Any, what: str) -> None:
    given = "true or false" if isinstance(value, bool) else "text" if isinstance(value, str | bytes) else None
    if given is not None:
        raise PydanticCustomError("no_number", f"{what} is needed, not {given}")


def _integer(value: Any) -> Any:
    _plain(value, "an integer")
    if isinstance(value, int | float) and LARGEST_INTEGER < abs(value) < float("inf"):
        raise PydanticCustomError("too_large", f"at most {LARGEST_INTEGER:,} can be counted")
    return value


def _number(value: Any) -> Any:
    _plain(value, "a number")
    if isinstance(value, int | float) and LARGEST_FLOAT < abs(value) < float("inf"):
        raise PydanticCustomError("too_large", f"at most {LARGEST_FLOAT:g} can be reckoned with")
    return value


def _key(value: Any) -> Any:
    """Keys of JSON objects are text: an integer as it is usually written, so that no two of them mean the same."""
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,17}", value):
        return int(value)
    return _integer(value)


def _itself(cls: type, value: Any) -> Any:
    if type(value) is not cls:
        raise ValueError(
            f"{type(value).__name__} is derived from {cls.__name__}, and a recipe can name {cls.__name__} alone, which would "
            "be used instead: use that one"
        )
    return value


def parse_value(text: str, *, literals: bool = False) -> Any:
    """What a text on the command line means: JSON where it can be, else a number or a word of Python, else the text itself.

    So ``.5``, ``1_000`` and ``None`` are numbers and nothing, ``(1, 2)`` is text. A key of an object may not stand twice.

    Parameters
    ----------
    literals
        any literal of Python, ``(1, 2)`` and ``'x'`` too, and only then JSON: as parameters of a notebook are written. What is
        nested too deep is text then, and of a key that stands twice the last counts.

    Raises
    ------
    RecipeError
        without ``literals``, for what is nested too deep and for a key that stands twice.
    """
    if literals:
        for read in (ast.literal_eval, json.loads):
            try:
                return read(text.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
        return text
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise RecipeError("nested too deep for a recipe") from None
    except ValueError:
        pass
    if len(text) < 100 and re.fullmatch(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?|None|True|False", text):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
    return text


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no key stands twice: which of the two values was meant, nobody knows."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RecipeError(f"the key {shown(key)} stands twice, as {shown(found[key])} and {shown(value)}: keep one")
        found[key] = value
    return found


def number_in(text: str) -> float | None:
    """A number within text (``topk:0.5``) as it is usually written, in ASCII digits; None for anything else."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,3})?", text, re.ASCII)
    return float(text) if found else None


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


def given(cls: type[T], options: Iterable[str]) -> T:
    """Build ``cls`` from ``key=value`` options, dots in a key for nesting; what is not given has its default.

    Raises
    ------
    RecipeError
        one line: what was wrong, what is allowed.
    """
    raw: dict[str, Any] = {}
    for option in options:
        (*parents, last), value = parsed_option(option, "-o seed=1")
        at = raw
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise RecipeError(f"-o {shown(option, 200)}: {parent} has a value already, and no field {last}")
        at[last] = value
    return checked(cls, raw)


def parsed_option(option: str, example: str) -> tuple[list[str], Any]:
    """Of ``method.sync_every.params=64`` the parts of the key, and the value. Raises RecipeError, one line with the ``example``."""
    key, equals, text = option.partition("=")
    if not equals or not key:
        raise RecipeError(f"-o {shown(option, 200)}: write key=value, for example {example}")
    try:
        return key.split("."), parse_value(text)
    except RecipeError as error:
        raise RecipeError(f"-o {shown(option, 200)}: {error}") from None


NUMBERED = '{"3": 2}'


def explain(error: ValidationError, cls: type, where: str = "") -> str:
    """The first thing pydantic found wrong, as one line for a person."""
    first, choices = error.errors()[0], _choices(error)
    path = [str(p) for p in first["loc"]][: -1 if choices else None]
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    if first["type"] == "unexpected_positional_argument":
        return f"{cls.__name__} takes {len(names)} values at most: {', '.join(names)}"
    if path and isinstance(first["loc"][0], int) and names:  # given without its name
        path[0] = names[first["loc"][0]]
    key = _cut(".".join(([where] if where else []) + path))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return one_of("option", key, _siblings(cls, path, where))
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing: write {', '.join(_siblings(cls, path, where))}"
    if first["type"] == "dataclass_type":
        inside = ", ".join(name.split(".")[-1] for name in _siblings(cls, [*path, ""], where))
        return f"{key} = {shown(first['input'])} is not allowed: it is an object with the fields {inside}"
    if isinstance(first.get("ctx", {}).get("error"), ValueError):
        prefix = f"{key}: " if key else ""
        return prefix + str(first["ctx"]["error"])
    given = shown(first["input"])
    if first["type"] in ("tuple_type", "list_type"):
        return f"{key} = {given} is not allowed: it is a list, for example {_example(cls, path, '[8,4,2]')}"
    if first["type"] == "dict_type":
        return f"{key} = {given} is not allowed: it is an object, for example {_example(cls, path, NUMBERED)}"
    message = ", or ".join(choices) or _lowered(first["msg"])
    if path[-1:] == ["[key]"]:
        return f"{_cut('.'.join(([where] if where else []) + path[:-2]))} has the key {given}, which is not allowed: {message}"
    return f"{key} = {given} is not allowed: {message}"


def _example(cls: type, path: list[str], otherwise: str) -> str:
    """What an option may look like: its default, where that is not empty."""
    known = getattr(cls, "__pydantic_fields__", {}).get(path[0]) if len(path) == 1 else None
    default = None if known is None else known.get_default(call_default_factory=True)
    return json.dumps(default) if isinstance(default, list | tuple | dict) and default else otherwise


def _choices(error: ValidationError) -> list[str]:
    """Where one of several types would do (a number, or a word): what is wrong for each of them; else nothing."""
    first, *others = error.errors()
    alike = [first, *(e for e in others if e["loc"][:-1] == first["loc"][:-1])]
    tagged = len(alike) > 1 and any("[" in str(e["loc"][-1]) and e["loc"][-1] != "[key]" for e in alike)
    return list(dict.fromkeys(_lowered(e["msg"]) for e in alike)) if tagged else []


def _lowered(message: str) -> str:
    return message[0].lower() + message[1:]


def _cut(key: str) -> str:
    return key if len(key) <= 200 else f"{key[:100]}…{key[-40:]}"


def _siblings(cls: Any, path: list[str], where: str) -> list[str]:
    """The keys that are allowed where ``path`` ends."""
    for step in path[:-1]:
        if step.isdigit() and get_origin(cls) is not dict:  # inside a list: the class is that of its elements
            cls = _class_in(next(iter(get_args(cls)), None))
            continue
        hint = getattr(cls, "__pydantic_fields__", {}).get(step)
        if hint is None and get_origin(cls) is dict:  # a key of an object: the class is that of its values
            cls = _class_in(get_args(cls)[1])
            continue
        cls = _class_in(hint.annotation) if hint is not None else None
    prefix = ".".join(([where] if where else []) + path[:-1])
    return [f"{prefix}.{f.name}" if prefix else f.name for f in (fields(cls) if is_dataclass(cls) else ())]


def _class_in(hint: Any) -> Any:
    """The class of an optional part, or what is given."""
    if get_origin(hint) is Annotated:
        return _class_in(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return next((c for c in map(_class_in, get_args(hint)) if is_dataclass(c)), None)
    return hint


def unused(part: Any, names: Iterable[str], needs: str, where: str) -> Iterator[str]:
    """A line for each of these options of a part that is not at its default: it makes no difference without ``needs``."""
    default = type(part)()
    for name in names:
        value = getattr(part, name)
        if value != getattr(default, name):
            yield f"{where}{name} = {value!r} makes no difference without {needs}"


class ModelView(Protocol):
    @property
    def layers_and_experts(self) -> tuple[int, int]: ...


class LoRAView(Protocol):
    @property
    def ranks(self) -> tuple[int, ...]: ...


class PlacementView(Protocol):
    @property
    def overlap(self) -> int | None: ...
    def moves(self, num_workers: int) -> bool: ...


class ScenarioView(Protocol):
    @property
    def sample(self) -> int | None: ...
    @property
    def sample_every(self) -> int: ...
    @property
    def slow(self) -> Mapping[int, float]: ...


class ClientsView(Protocol):
    @property
    def held_out(self) -> float: ...
    @property
    def inner_states(self) -> str: ...
    def take_turns(self, num_workers: int) -> bool: ...


class ComputeView(Protocol):
    @property
    def accumulate(self) -> int: ...
    def one_by_one(self, what: str) -> None: ...


class RecipeView(Protocol):
    """A recipe as its parts see it: what they can ask about each other when they check themselves (`lab.recipes.recipe.Recipe`)."""

    @property
    def model(self) -> ModelView: ...
    @property
    def lora(self) -> LoRAView: ...
    @property
    def placement(self) -> PlacementView: ...
    @property
    def scenario(self) -> ScenarioView: ...
    @property
    def clients(self) -> ClientsView: ...
    @property
    def groups(self) -> Any: ...
    @property
    def compute(self) -> ComputeView: ...
    @property
    def data(self) -> Any: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def dtype(self) -> str: ...
