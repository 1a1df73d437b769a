"""Objects that are not the lab's own, by reference: ``my_pkg.nets:make``, as Python's entry points are written.

A function or class that was defined in a notebook cell has the reference ``__main__:make``. Nobody else can import it, so that its
source text and a hash of it are recorded as well: then runs of two versions can be told apart. Recorded source is to be read by people
and is never executed. Inside `as_recorded` nothing is imported at all: what a file names is looked up among the modules that are there.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import linecache
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from lab.ground.errors import RecipeError, one_of, plain, shown

CELL = "__main__"  # the module of what is defined in a notebook, or in the script that runs
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_recorded: ContextVar[bool] = ContextVar("recorded", default=False)


@contextlib.contextmanager
def as_recorded() -> Iterator[None]:
    """Inside, references are looked up among what this process has imported already: reading a file executes nothing."""
    token = _recorded.set(True)
    try:
        yield
    finally:
        _recorded.reset(token)


def only_recorded() -> bool:
    """Whether this is inside of `as_recorded`."""
    return _recorded.get()


def is_reference(name: object) -> bool:
    return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def reference(found: Any, what: str) -> str:
    """The reference of a function or class. Raises RecipeError for one that cannot be looked up by its name."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise RecipeError(
            f"{what} = {shown(found)} has no name: give a function or class, defined at the top of a cell or file"
        )
    if "<" in name:
        where = "is a lambda" if name.endswith("<lambda>") else "is defined inside of a function"
        raise RecipeError(
            f"{what}: {name} {where}, where nobody can look it up: define it with def or class at the top of a cell or file"
        )
    if _lookup(f"{module}:{name}") is not found:
        raise RecipeError(
            f"{what}: {name} is no longer what {module}.{name} stands for: make the recipe anew, from the present one"
        )
    return f"{module}:{name}"


def resolve(name: str, what: str) -> Any:
    """What a reference stands for; its module is imported, from the working directory last of all.

    Raises
    ------
    RecipeError
        one line: it cannot be imported, or there is nothing of that name. Inside of `as_recorded`: it is not there already.
    """
    module, _, path = name.partition(":")
    if module == CELL or only_recorded():
        found = _lookup(name)
        if found is None:
            raise RecipeError(absent(name, what))
        return found
    try:
        found = _imported(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise RecipeError(f"{what}: importing {module} ends in an error ({_short(error)})") from None
        raise RecipeError(
            f"{what}: there is no module {error.name!r} for {name!r}: install it, or go to the folder that holds {error.name.split('.')[0]}.py"
        ) from None
    except (Exception, SystemExit) as error:
        raise RecipeError(f"{what}: importing {module} ends in an error ({_short(error)})") from None
    for part in path.split("."):
        if part not in dir(found):
            raise RecipeError(f"{what}: {module} has no {path!r}, which {name!r} names")
        found = getattr(found, part)
    return found


def absent(name: str, what: str) -> str:
    """What to say where something is not there."""
    module, _, path = name.partition(":")
    if module == CELL:
        return (
            f"{what} {path} was defined in a notebook or script, and is not defined here: run the cell that defines it first, or keep "
            f"it in a file (a cell that begins with %%writefile my_{what}.py) and name it my_{what}:{path}"
        )
    return f"{what} {name} is not imported here"


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] or "" in sys.path:
            raise
    sys.path.append("")  # the working directory, after all else
    try:
        importlib.invalidate_caches()
        return importlib.import_module(module)
    finally:
        sys.path.remove("")


def is_there(name: str) -> bool:
    """Whether this process has imported, or defined, what a reference stands for."""
    return _lookup(name) is not None


def _lookup(name: str) -> Any:
    module, _, path = name.partition(":")
    found = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _short(error: BaseException) -> str:
    return plain(f"{type(error).__name__}: {error}".splitlines()[0], 200)


def entry_point(group: str, name: str) -> Any:
    """What an installed package registers under a name; None where there is none, and inside of `as_recorded`.

    Raises
    ------
    RecipeError
        where it cannot be imported.
    """
    if only_recorded():
        return None
    for point in importlib.metadata.entry_points(group=group, name=name):
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            raise RecipeError(f"{name!r} of {group} ({point.value}) cannot be imported ({_short(error)})") from None
    return None


def offered(group: str) -> list[tuple[str, str, str]]:
    """Names that installed packages register, where each is, and the package. Nothing is imported."""
    points = importlib.metadata.entry_points(group=group)
    return sorted({(p.name, p.value, p.dist.name if p.dist is not None else "") for p in points})


@dataclass(frozen=True)
class Call:
    """A function or class by its name, and the options that it is called with: what a recipe says of a part that is not one of its own.

    name
        a reference, or a name under which a part is registered.
    options
        JSON values by name.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, what: str) -> Call | None:
        """The call that gives ``value``: a function or class, a `functools.partial` of one, or an object of a dataclass.

        None for anything else. Raises RecipeError for what cannot be looked up by its name, and for options that JSON does not have.
        """
        if isinstance(value, functools.partial):
            inner = cls.of(value.func, what)
            if inner is None or value.args:
                raise RecipeError(
                    f"{what} = {shown(value)}: give options by their names, as in functools.partial(make, width=64)"
                )
            return cls(inner.name, _plain(inner.options | dict(value.keywords), inner.name, what))
        if isinstance(value, FunctionType | type):
            return cls(reference(value, what))
        if dataclasses.is_dataclass(value):
            options = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            name = reference(type(value), what)
            return cls(name, _plain(options, name, what))
        return None

    @classmethod
    def read(cls, raw: Any, what: str) -> Call | None:
        """From a recipe's file: a name, or ``{"name": …, option: value}``; None for anything else."""
        if isinstance(raw, str):
            return cls(raw)
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            return None
        return cls(raw["name"], {key: value for key, value in raw.items() if key != "name"})

    def plain(self) -> dict[str, Any]:
        return {"name": self.name} | self.options

    def check(self, found: Any, what: str, given: Iterable[str] = ()) -> None:
        """Raises RecipeError where ``found`` does not take these options; ``given``: others that it may ask for."""
        try:
            takes = inspect.signature(found).parameters
        except (TypeError, ValueError):
            return
        if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            return
        for option in self.options:
            if option not in takes:
                raise RecipeError(
                    one_of(f"option of {what} {self.name}", option, takes)
                    if takes
                    else f"{what} {self.name} takes no options"
                )
        needed = [
            n for n, p in takes.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        missing = [n for n in needed if n not in self.options and n not in given]
        if missing:
            raise RecipeError(
                f"{what} {self.name} needs {', '.join(missing)}: functools.partial({self.name.split(':')[-1]}, {missing[0]}=…)"
            )


def _plain(options: dict[str, Any], name: str, what: str) -> dict[str, Any]:
    if "name" in options:
        raise RecipeError(
            f"{what} {name} has an option called name, which stands for itself in recipes: call it otherwise"
        )
    try:
        found: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        odd = next((key for key, value in options.items() if not _jsonable(value)), "")
        raise RecipeError(
            f"{what} {name}: its option {odd} = {shown(options.get(odd))} is no plain value, as a recipe needs it: give a function that makes it"
        ) from None
    return found


def _jsonable(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


# --- source ------------------------------------------------------------------------------------------------------------


_PARSING = (
    threading.Lock()
)  # in two threads at once CPython 3.11's parser ends in a SystemError (python/cpython#106905)


def source_and_digest(found: Any) -> tuple[str, str]:
    """The source text of a function or class with what it uses of its own module, and a SHA-256 over it.

    Where the text is kept nowhere (typed at a prompt of old), the text is empty and the digest is that of its bytecode.
    """
    with _PARSING:
        texts = list(_sources(found, set()))
    if texts and all(texts):
        whole = "\n\n".join(texts)
        return whole, hashlib.sha256(whole.encode()).hexdigest()
    return "", hashlib.sha256(repr([_bytecode(code) for code in _codes(found)]).encode()).hexdigest()


def _sources(found: Any, seen: set[int]) -> Iterator[str]:
    """The text of ``found``, and then of all functions, classes and plain constants of its module that it uses."""
    if id(found) in seen:
        return
    seen.add(id(found))
    yield _source(found)
    module = sys.modules.get(found.__module__)
    names = {name for code in _codes(found) for name in _names(code)}
    if isinstance(found, type):
        names |= {base.__name__ for base in found.__bases__}
    for name in sorted(names):
        used = getattr(module, name, None)
        if isinstance(used, FunctionType | type) and used.__module__ == found.__module__:
            yield from _sources(used, seen)
        elif isinstance(used, bool | int | float | str | tuple) and not name.startswith("__"):
            yield f"{name} = {used!r}"


def _codes(found: Any) -> list[CodeType]:
    if isinstance(found, FunctionType):
        return [inspect.unwrap(found).__code__]
    codes = []
    for name, value in sorted(vars(found).items()) if isinstance(found, type) else ():
        inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(inner, FunctionType):
            own = inspect.unwrap(inner)
            if own.__module__ == found.__module__ and name in own.__code__.co_qualname:
                codes.append(own.__code__)
    return codes


def _names(code: CodeType) -> Iterator[str]:
    """What a function looks up in its module. Names of attributes are not among it: a global may be called the same."""
    yield from (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _bytecode(code: CodeType) -> list[Any]:
    constants = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, code.co_names]


def _source(found: Any) -> str:
    """Of a class in a cell the text is found by its functions: `inspect` looks for a file of its module, and there is none."""
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(found)
    for code in _codes(found):
        lines = linecache.getlines(code.co_filename)
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.ClassDef) and node.name == found.__name__:
                    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                    return "".join(lines[first - 1 : node.end_lineno])
    return ""
