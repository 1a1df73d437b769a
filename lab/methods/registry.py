"""What a method is, what it says of itself, and how a recipe finds it by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.state import Grad, State
from lab.ground.config import RecipeView, checked, references
from lab.ground.errors import RecipeError, one_of, shown

T = TypeVar("T")


class Method(Protocol):
    """The loop body of one paper: how each cell of the fleet moves, and which rows are averaged, when.

    A frozen dataclass (`lab.ground.config.config`) under the decorator `method`. What is here is required; seven functions and a property may
    be there as well, for what only the method knows:

    ``check(recipe)``
        raises RecipeError where the rest of the recipe does not go with it.
    ``notes(recipe)``
        one line for every option that makes no difference; without it, those of `never_synced`.
    ``fixed_periods(recipe)``
        why its sync periods cannot be changed in mid-run, or None.
    ``prepare_(module, values)``
        what becomes of every module of a run as it is made, that of each worker and the one that is scored: layers that compute in
        another way, with parameters of the same names and shapes, or a part more. ``values``: it has its first values, and may get others.
    ``in_groups(module, groups)``
        the module as these groups of clients have it: those of a worker, or all that there are (`lab.models.in_groups`).
    ``levels(num_workers)``
        how many levels of nodes are above those that workers talk to, where these form a tree.
    ``labels(s, module, inputs)``
        of clients without labels: which ones a batch ``[B, *]`` would get from this module as things stand, int64 ``[B]``, −100 where none.
    ``exceptions()``
        laws of `lab.testing` that it does not claim, each with the reason.
    ``agrees``
        local states that come out the same at all workers though nobody sends them, such as a basis that all work out.
    """

    @property
    def inner(self) -> Optimizer:
        """Takes the local steps of a worker."""

    @property
    def sync_every(self) -> int | Mapping[str, int] | None:
        """Local steps between two syncs: one number, one for each state (``params`` among them), or None: it sends in every step."""

    @property
    def averages(self) -> tuple[str, ...]:
        """The states of which it takes means (`lab.engine.comm.Communicator.mean`), and which a recipe's codecs can stand for.

        What it only hands out, or gathers as it is, is not among them.
        """

    def init(self, s: State) -> None:
        """Make optimizers and shared state. Nothing is sent."""

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        """Local step ``t`` (counted from 1) at every worker that is up; returns their losses ``[N]``."""


@dataclass(frozen=True)
class Declared:
    """What a method says of itself. Others ask this, and never which class it is.

    server
        a server keeps the model, ``shared["params"]``; a round begins with what its clients fetch, and the method itself hands it out.
    moves_experts
        it lets experts change workers between rounds.
    own_loss
        it trains a loss of its own, that of one worker at a time.
    equal_ranks
        adapters must have the same rank at all workers.
    trains_B_alone
        of adapters it trains B, and A stays as it is: ``lora.train = "B"``.
    keeps
        local states that belong to a client and go where it goes, such as control variates.
    holds
        states of its server that a client has to hold while it trains, such as what it is pulled towards.
    prunes
        its clients hand in weights most of which are zero (`lab.methods.sparse_rounds`).
    bounded
        its clients hand in differences and nothing else, clipped where a recipe asks for it (`lab.methods.private`).
    own_models
        what comes of it is the model that each worker has, and not the agreed one alone.
    unlabelled
        its clients never look at their labels: the server has some of its own (``server.labelled``) and trains on them.
    """

    name: str
    server: bool = False
    moves_experts: bool = False
    own_loss: bool = False
    equal_ranks: bool = False
    trains_B_alone: bool = False
    keeps: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    prunes: bool = False
    bounded: bool = False
    own_models: bool = False
    unlabelled: bool = False


METHODS: dict[str, type[Method]] = {}  # by name, filled by the decorator
_DECLARED: dict[type, Declared] = {}
REQUIRED = ("inner", "sync_every", "averages", "init", "step")


def method(
    name: str,
    *,
    server: bool = False,
    moves_experts: bool = False,
    own_loss: bool = False,
    equal_ranks: bool = False,
    trains_B_alone: bool = False,
    keeps: tuple[str, ...] = (),
    holds: tuple[str, ...] = (),
    prunes: bool = False,
    bounded: bool = False,
    own_models: bool = False,
    unlabelled: bool = False,
) -> Callable[[type[T]], type[T]]:
    """Decorator: gives a class of the form `Method` its name in recipes, with what it needs from others (`Declared`).

    One that is defined again in its module, or that has moved from a cell into a file or back, takes the place of the former one.

    Raises
    ------
    RecipeError
        for a name that is none or is taken, or a class in which something is missing.
    """
    if not isinstance(name, str):
        raise RecipeError(
            f'@method above {getattr(name, "__name__", shown(name))} has no name: write @method("fed_prox")'
        )
    declared = Declared(
        name,
        server,
        moves_experts,
        own_loss,
        equal_ranks,
        trains_B_alone,
        keeps,
        holds,
        prunes,
        bounded,
        own_models,
        unlabelled,
    )

    def register(cls: type[T]) -> type[T]:
        _check_class(name, cls)
        METHODS[name], _DECLARED[cls] = cls, declared  # type: ignore[assignment]
        return cls

    return register


def _check_class(name: str, cls: Any) -> None:
    """Raises RecipeError where a class cannot have a name, or is no method."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise RecipeError(
            f"@method({shown(name)}) is no name for {cls.__name__}: use small letters, digits and _, as in fed_prox"
        )
    taken = METHODS.get(name)
    if taken is not None and not _takes_the_place_of(taken, cls):
        raise RecipeError(
            f"@method({name!r}) for {cls.__name__}: the name belongs to {taken.__module__}.{taken.__name__}, choose another"
        )
    own = cls.__name__
    if not is_dataclass(cls):
        raise RecipeError(f"@method({name!r}) is for a dataclass: write @config from lab.ground.config above {own}")
    missing = set(REQUIRED) - set(dir(cls)) - {f.name for f in fields(cls)}
    if missing:
        raise RecipeError(
            f"@method({name!r}): {own} lacks {', '.join(sorted(missing, key=REQUIRED.index))}; "
            "lab.methods.Method says what a method has"
        )


def _takes_the_place_of(former: type, cls: type) -> bool:
    """Whether a class is the former one of its name in METHODS, defined again."""
    places = {former.__module__, cls.__module__}
    moved = references.CELL in places and former.__module__.split(".")[0] != "lab"
    return len(places) == 1 or (moved and former.__qualname__ == cls.__qualname__)


def declared(m: Method | type[Method]) -> Declared:
    """What a method, or its class, says of itself.

    Raises
    ------
    RecipeError
        for one of a class that is not registered, also where a parent of it is: a recipe would then name the parent.
    """
    if isinstance(m, Absent):
        return Declared(m.name)
    cls = m if isinstance(m, type) else type(m)
    found = _DECLARED.get(cls)
    own = cls.__name__
    if found is None:
        raise RecipeError(
            f"method {own} is not registered, so that no recipe can name it: write @method({own.lower()!r}) from lab.methods "
            "above its class"
        )
    if METHODS.get(found.name) is not cls:
        raise RecipeError(
            f"method {own} is no longer what {found.name!r} stands for: make the object anew, from the present class"
        )
    return found


def is_method(cls: type) -> bool:
    """Whether a class has been given a name by `method`, also if another has it by now."""
    return cls in _DECLARED


def name_of(m: Method) -> str:
    """The name of a method in recipes. Raises RecipeError as `declared` does."""
    return declared(m).name


@dataclass(frozen=True)
class Absent:
    """A method that a file names and that this process does not have, in a recipe that is only read (`references.as_recorded`)."""

    name: str
    options: dict[str, Any]

    @property
    def inner(self) -> Optimizer:
        return AdamW(lr=1e-3)

    @property
    def sync_every(self) -> int | Mapping[str, int] | None:
        return self.options.get("sync_every")

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def init(self, s: State) -> None:
        raise RecipeError(references.absent(self.name, "method"))

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        raise RecipeError(references.absent(self.name, "method"))


def find_method(name: str) -> type[Method] | None:
    """The class of a registered name, of an installed package's entry point, or of a reference ``my_pkg.file:MyMethod``."""
    if name in METHODS:
        return METHODS[name]
    if references.is_reference(name):
        if references.only_recorded() and not references.is_there(name):
            return None
        found = references.resolve(name, "method")
        if not isinstance(found, type):
            raise RecipeError(f"method {name} is {shown(found)}: name the class of a method")
        declared(found)
        return found
    found = references.entry_point("isthmus.methods", name)
    if found is not None and declared(found).name != name:
        raise RecipeError(f"method {name!r} is called {declared(found).name!r} by its own @method: name it so")
    return found  # type: ignore[no-any-return]


def _completed(cls: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method in which an optimizer without a name is the method's own default, with what is given changed in it."""
    out = dict(options)
    for name, about in getattr(cls, "__pydantic_fields__", {}).items():
        given, default = out.get(name), about.get_default(call_default_factory=True)
        if isinstance(default, Optimizer) and isinstance(given, Mapping) and "name" not in given:
            changed = given.get("options", {})
            both = {**default.options, **changed} if isinstance(changed, Mapping) else changed
            out[name] = {**vars(default), **given, "options": both}
    return out


def parse_method(spec: Any) -> Method:
    """A method from its name or reference, from ``{"name": …, option: value}``, or as it is.

    Raises
    ------
    RecipeError
        for an unknown name or option, a value that is not allowed, or an object of a class that is not registered.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if isinstance(spec, dict):
        options = dict(spec)
        name = options.pop("name", None)
        if name is None:
            raise RecipeError(f"method.name is missing: use one of {', '.join(METHODS)}")
        found = find_method(name) if isinstance(name, str) else None
        if found is not None:
            return checked(found, _completed(found, options), "method")
        if isinstance(name, str) and references.only_recorded():
            return Absent(name, options)
        raise RecipeError(one_of("method", name, METHODS) + "; one of your own is named my_file:MyMethod")
    if isinstance(spec, Absent):
        return spec
    if isinstance(spec, type) and spec in _DECLARED:
        raise RecipeError(f"method = {spec.__name__} is a class: give an object of it, {spec.__name__}(…)")
    if spec is None or isinstance(spec, bool | int | float | list | tuple | type):
        raise RecipeError(
            f'method = {shown(spec)} is not allowed: it is a name, or {{"name": …}} with options; use one of {", ".join(METHODS)}'
        )
    declared(spec)
    return spec  # type: ignore[no-any-return]


def check_method(m: Method, recipe: RecipeView) -> None:
    """Raises RecipeError where a recipe does not go with what its method needs, or with what only the method knows."""
    if isinstance(m, Absent):
        return
    need, period = declared(m), round_steps(m)
    for check in _own(m, "check"):
        check(recipe)
    if need.own_loss:
        recipe.compute.one_by_one(f"the loss that {need.name} has of its own")
    if need.server and recipe.scenario.sample and recipe.scenario.sample_every % period:
        raise RecipeError(
            f"scenario.sample_every = {recipe.scenario.sample_every} changes clients in the midst of rounds of {period} steps: "
            f"set it to {period}, or a multiple"
        )
    if recipe.placement.moves(recipe.num_workers) and not need.moves_experts:
        able = " or ".join(name for name, cls in METHODS.items() if declared(cls).moves_experts)
        raise RecipeError(
            f"placement.kind = 'random' moves experts between workers, which {need.name} does not do: "
            f"use method {able}, or placement.kind=fixed"
        )


def method_notes(m: Method, recipe: RecipeView) -> Iterator[str]:
    """One line for every option of the method that makes no difference in this recipe."""
    own = list(_own(m, "notes"))
    for notes in own:
        yield from notes(recipe)
    if not own and not declared(m).server:  # a server says so at its end
        yield from never_synced(m.sync_every, recipe.steps)


def never_synced(sync_every: int | Mapping[str, int] | None, steps: int) -> Iterator[str]:
    """A line for every sync period that is longer than the run."""
    by_name = sync_every if isinstance(sync_every, Mapping) else {} if sync_every is None else {"": sync_every}
    for name, period in by_name.items():
        if period > steps:
            what = f"method.sync_every{name and '.' + name} = {period:,}"
            never = f"{name or 'nothing'} is {'never' if name else 'ever'} synchronised"
            yield f"{what} is longer than the {steps:,} steps of the run: {never}"


def fixed_periods(m: Method, recipe: RecipeView) -> str | None:
    """Why the sync periods of a method cannot be changed while a run goes on; None where they can."""
    need = declared(m)
    if m.sync_every is None:
        return f"{need.name} sends in every step: it has no sync periods to change"
    if need.server:
        return f"the period of {need.name} is fixed: its rounds begin with what clients fetch from the server"
    if need.moves_experts and recipe.placement.moves(recipe.num_workers):
        return f"the periods of {need.name} are fixed where experts move between rounds: use placement.kind=fixed"
    return next((why for own in _own(m, "fixed_periods") if (why := own(recipe))), None)


def round_steps(m: Method) -> int:
    """Local steps of a round, from one sync of ``params`` to the next."""
    if isinstance(m.sync_every, Mapping):
        return m.sync_every["params"]
    return m.sync_every or 1


def received(m: Method) -> tuple[str, ...]:
    """The local states that a client receives when it sits down; all others are its own."""
    return ("params", *m.averages, *getattr(m, "agrees", ()))


def levels(m: Method, num_workers: int) -> int:
    """How many levels of nodes are above those that workers talk to; 0 where there is no tree."""
    return next((own(num_workers) for own in _own(m, "levels")), 0)


def labels_of(m: Method) -> Callable[[State, nn.Module, Tensor], Tensor] | None:
    """How a method gives labels to what has none (``labels``); None where it does not."""
    return next(_own(m, "labels"), None)


def prepared(m: Method, module: nn.Module, values: bool, groups: Sequence[str] = ()) -> nn.Module:
    """A module as its method wants it (``prepare_``, and ``in_groups`` of a worker's group, or of all)."""
    for prepare_ in _own(m, "prepare_"):
        prepare_(module, values)
    for in_groups in _own(m, "in_groups"):
        module = in_groups(module, groups)
    return module


def _own(m: Method, name: str) -> Iterator[Callable[..., Any]]:
    """One of the functions that a method may have, if it has it."""
    if name in dir(type(m)):
        yield getattr(m, name)
