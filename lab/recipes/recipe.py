"""A recipe is everything needed to repeat a run. It is checked before anything starts."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SkipValidation
from pydantic_core import to_jsonable_python
from torch import nn

from lab.data.splits import parse_split
from lab.data.tasks.registry import TASKS, find_task
from lab.engine.codecs import codec
from lab.ground.config import Count, checked, config, parsed_option, references, unique_keys
from lab.ground.config.references import Call
from lab.ground.errors import RecipeError, one_of, shown
from lab.methods.des_loc import DESLOC
from lab.methods.registry import METHODS, Absent, Method, check_method, is_method, name_of, parse_method
from lab.models import gpt, moe
from lab.models.gpt import GPT
from lab.models.hf import HF
from lab.models.lora import LoRA
from lab.models.moe import MoE
from lab.models.own import Factory
from lab.models.registry import MODELS, find_model
from lab.models.shape import Model
from lab.optimizers.schedule import Schedule
from lab.recipes.adaptation import Adaptation
from lab.recipes.buffers import Buffers
from lab.recipes.clients import Clients
from lab.recipes.compute import Compute
from lab.recipes.groups import Spec as GroupSpec
from lab.recipes.groups import listed
from lab.recipes.mean import Mean
from lab.recipes.placement import Experts, Placement
from lab.recipes.presets import PRESETS
from lab.recipes.privacy import Privacy
from lab.recipes.scenario import Scenario
from lab.recipes.server import Server
from lab.recipes.weighting import Weighting

Metric = Literal["alignment", "spectrum", "rates", "gradients", "activations", "noise", "membership"]


SIZES: dict[str, GPT | MoE] = {**gpt.SIZES, **moe.SIZES}
LANGUAGE_MODELS = (GPT, MoE, HF)  # those whose fields name them
MOST_BYTES = 1 << 24  # of a recipe's file
SHORT = {"method": "name", "model": "name", "data": "name", "buffers": "kind"}  # of parts written as a text: its field


def _model(value: Any) -> Any:
    """A named size, or a size with changes: ``{"size": "micro", "dropout": 0.1}``. A model with experts has num_experts.

    ``hf:<name or folder>`` is a causal language model of Hugging Face's ``transformers``.
    """
    if type(value) in (*LANGUAGE_MODELS, Factory, *MODELS.values()):
        return value
    if isinstance(value, str) and value.startswith("hf:"):
        return HF(value.removeprefix("hf:"))
    named = _named_model(value)
    if named is not None:
        return named
    if isinstance(value, dict) and "path" in value:
        return checked(HF, value, "model")
    if isinstance(value, str):
        value = {"size": value}
    if isinstance(value, LANGUAGE_MODELS):
        parent = next(cls.__name__ for cls in LANGUAGE_MODELS if isinstance(value, cls))
        raise RecipeError(
            f"model: {type(value).__name__} is derived from {parent}, and a recipe can name {parent} alone, which would be used "
            "instead: use that one"
        )
    if not isinstance(value, dict):
        raise RecipeError(
            f"model = {shown(value)} is not allowed: it is the name of a size ({', '.join(SIZES)}), hf:<name or folder>, an "
            "object with the fields of GPT or MoE, or a function or class that makes an nn.Module (my_file:make)"
        )
    changes = dict(value)
    name = changes.pop("size", None)
    if name is not None and not (isinstance(name, str) and name in SIZES):
        raise RecipeError(one_of("model", name, SIZES))
    base = SIZES[name] if name is not None else MoE() if "num_experts" in changes else GPT()
    return checked(type(base), vars(base) | changes, "model") if changes else base


def _named_model(value: Any) -> Model | None:
    """A model by its name, or one of one's own: by its reference, or the function or class itself; None for anything else."""
    if isinstance(value, nn.Module):
        raise RecipeError(
            f"model = {type(value).__name__}(…) is a module that is made already, and every run makes its own: give the class, "
            f"functools.partial({type(value).__name__}, …), or a function that returns one"
        )
    if not isinstance(value, str | Mapping):
        call = None if isinstance(value, LANGUAGE_MODELS) else Call.of(value, "model")
        return None if call is None else Factory(call)
    call = Call.read(value, "model")
    if call is None or call.name in SIZES:
        return None
    found = find_model(call.name)
    if found is not None:
        return checked(found, call.options, "model")
    if references.is_reference(call.name) or (references.only_recorded() and isinstance(value, Mapping)):
        return Factory(call)
    if isinstance(value, Mapping):
        raise RecipeError(one_of("model", call.name, MODELS) + "; one of your own is named my_file:make")
    return None


def _buffers(value: Any) -> Any:
    """A kind alone stands for itself."""
    return {"kind": value} if isinstance(value, str) else value


def _data(value: Any) -> Call | None:
    """The task of a recipe: by its name or reference, from the function or class itself, or from an object of a dataclass."""
    if value is None or isinstance(value, Call):
        return value
    call = Call.read(value, "data") if isinstance(value, str | Mapping) else Call.of(value, "data")
    if call is None:
        raise RecipeError(
            f"data = {shown(value)} is not allowed: it is the name of a task ({', '.join(TASKS)}), my_file:make, or a function or class "
            "that gives one, since a recipe cannot write down the examples themselves; running text is named by corpus"
        )
    return call


@config
class Own:
    """What is recorded of a part that is not the lab's own.

    reference
        where it was, ``module:name``.
    sha256, source
        of its source text, with what it uses of its module; the text itself for what was defined in a notebook cell. It is there to be
        read: nothing ever executes it.
    """

    reference: str
    sha256: str
    source: str = ""


@config
class Recipe:
    """One run.

    method
        a name from ``lab list``, ``my_file:MyMethod``, or ``{"name": …, option: value}``.
    model
        a named size, the fields of `lab.models.gpt.GPT` or `lab.models.moe.MoE`, ``hf:<name or folder>``, or a function or class that
        makes an ``nn.Module`` (with options: `functools.partial`), which a file names ``my_file:make``.
    data
        a task beyond text: its name, or a function or class that gives one (`lab.data.tasks.task.Task`). None: running text, as
        ``corpus``, ``tokenizer`` and ``context`` say.
    start
        where its first values come from: drawn from the seed (none), ``pretrained`` (a model that the lab trains once on the
        standard library and keeps; ``pretrained:micro``, ``pretrained:24x2`` for another size, or width × layers), or the path of a ``.safetensors`` file.
    lora
        low-rank adapters: then the model is frozen, and they are what is trained.
    placement
        which worker holds which expert of a `MoE`.
    corpus, tokenizer, split
        see `lab.data`: where the text comes from, how it becomes tokens, which worker sees what. ``task:<name>`` is one of the
        tasks of `lab.data.tasks` instead of running text.
    batch_size, context
        sequences per worker and local step; tokens per sequence.
    num_workers, clients
        the rows of the fleet; and who may sit there, where they are some of many clients.
    adaptation
        what clients make of the agreed model on their own examples, looked at beside a model of each one's own.
    server
        what a server has of its own: examples with labels.
    groups
        who belongs to which group of clients: a column of the examples (``sensor``), or lists of clients (`lab.recipes.groups`). Scores are
        told by group, and some methods train by group.
    steps
        local steps of every worker.
    codecs
        what travels instead of a state where the method takes means of it, e.g. ``{"params": "int8"}``; the states of each
        method are those of its ``averages`` (`lab.methods.Method`); ``buffers`` where those are averaged.
    buffers
        what becomes of buffers that training moves (of a BatchNorm): ``local``, ``averaged``, ``first`` or ``frozen``, or an object
        with `kind` and `every`.
    routing_every
        local steps between two looks at the routers of a `MoE` (0: none).
    metrics, metrics_every
        what else to measure, by the names in `lab.probes.measure`, and how often: ``alignment``, ``spectrum``, ``rates``,
        ``gradients``, ``activations``, ``noise``, ``membership``. Nothing unless it is asked for.
    eval_every, eval_windows
        how often the averaged model is scored (0: never but at the end), and on how many validation windows.
    checkpoint_every
        steps between two checkpoints (0: none).
    keep_every
        of checkpoints, the last two stay; and those of steps that this divides (0: no others), a multiple of ``checkpoint_every``. A run
        can be forked from each that is there (`lab.runs.fork`); each has the size of parameters and states of all workers.
    dtype
        of parameters, gradients and states, and so of what travels.
    compute
        where, how precisely and how much at a time.
    privacy
        what clients hand in is clipped, and the server adds noise.
    weighting
        samples that count more or less in the loss, such as by likeness to some of a target domain.
    mean
        what becomes of what workers hand in where a method takes a mean: a median, a trimmed or a clipped mean instead.
    own
        what is recorded of those of method, model and data that are not the lab's own; filled in by itself.
    """

    method: Annotated[SkipValidation[Method], BeforeValidator(parse_method)] = Field(default_factory=DESLOC)
    model: Annotated[SkipValidation[Model], BeforeValidator(_model)] = Field(default_factory=lambda: SIZES["nano"])
    data: Annotated[SkipValidation[Call | None], BeforeValidator(_data)] = None
    start: str = ""
    lora: LoRA = Field(default_factory=LoRA)
    placement: Placement = Field(default_factory=Placement)
    corpus: str = "stdlib"
    tokenizer: str = "bytes"
    split: str = "iid"
    num_workers: Count = 4
    clients: Clients = Field(default_factory=Clients)
    adaptation: Adaptation = Field(default_factory=Adaptation)
    server: Server = Field(default_factory=Server)
    groups: GroupSpec = ""
    steps: Count = 200
    batch_size: Count = 8
    context: Annotated[int, Field(ge=2)] = 64
    seed: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = Field(default_factory=Schedule)
    codecs: dict[str, str] = Field(default_factory=dict)
    buffers: Annotated[Buffers, BeforeValidator(_buffers)] = Field(default_factory=Buffers)
    scenario: Scenario = Field(default_factory=Scenario)
    routing_every: Annotated[int, Field(ge=0)] = 16
    metrics: tuple[Metric, ...] = ()
    metrics_every: Count = 32
    eval_every: Annotated[int, Field(ge=0)] = 50
    eval_windows: Count = 64
    checkpoint_every: Annotated[int, Field(ge=0)] = 100
    keep_every: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    compute: Compute = Field(default_factory=Compute)
    privacy: Privacy = Field(default_factory=Privacy)
    weighting: Weighting = Field(default_factory=Weighting)
    mean: Mean = Field(default_factory=Mean)
    own: dict[str, Own] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", _own(self))
        parse_split(self.split)
        for part in (
            self.clients,
            self.adaptation,
            self.scenario,
            self.compute,
            self.model,
            self.lora,
            self.placement,
            self.schedule,
            self.weighting,
        ):
            part.check(self)
        _check_groups(self)
        _check_kept(self.keep_every, self.checkpoint_every)
        check_method(self.method, self)
        self.weighting.check_method(self.method)
        averaged = ("buffers",) if self.buffers.kind == "averaged" else ()
        _check_codecs(self.codecs, (*self.method.averages, *averaged), self.method)
        self.privacy.check(self.method, self.codecs, self.buffers.kind, self.clients.sampling)
        apart = len({*self.lora.ranks}) > 1 or self.placement.overlap not in (None, self.num_workers)
        self.mean.check(self.num_workers, self.codecs, self.privacy.secure_sum, self.privacy.bounds, apart)

    @classmethod
    def of(cls, spec: Mapping[str, Any] | str | Recipe, overrides: Sequence[str] = ()) -> Recipe:
        """From a preset's name, the path of a JSON file, a mapping, or a recipe; then ``key=value`` overrides.

        Dots in a key are for nesting; a key given twice has its last value, as options of a command have. A value is JSON
        where it can be, or one of Python's numbers or words (``.5``, ``1_000``, ``None``); all else is text.

        Raises
        ------
        RecipeError
            one line: what was wrong, what is allowed.
        """
        if isinstance(overrides, str):
            raise RecipeError(f"overrides are a list: write [{shown(overrides, 200)}]")
        if isinstance(spec, Recipe):
            if not overrides:
                return spec
            spec = spec.to_dict()
        raw = _read(spec) if isinstance(spec, str) else _plain(spec)
        for override in sorted(overrides, key=_names_no_part):  # what an option is of is said before the option
            _apply(raw, override)
        _import_method(raw)
        return checked(cls, raw)

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return Recipe.of(self.to_dict() | changes)

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> Recipe:
        """What was written down of a run, to be read: imports nothing, and what is not here stays a name (`is_here`)."""
        with references.as_recorded():
            return cls.of(raw)

    def here(self) -> Recipe:
        """The same recipe with its own parts imported, if it was only read (`recorded`). Raises RecipeError where one is not here."""
        return Recipe.of(self.to_dict()) if self.own else self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Recipe.of`` reads them back."""
        raw = {f.name: _jsonable(getattr(self, f.name)) for f in fields(self)}
        for key, default in UNSAID.items():
            if raw[key] == default:
                del raw[key]
        return raw

    @property
    def num_clients(self) -> int:
        """To how many the data is dealt."""
        return self.clients.num or self.num_workers

    @property
    def counted(self) -> str:
        """What a batch is made of, and what losses are means over: tokens or examples."""
        return "tokens" if self.data is None else "examples"

    @property
    def loss_unit(self) -> str:
        """What the numbers of a loss are."""
        return "nats per token" if self.data is None else "per example"

    @property
    def per_batch(self) -> int:
        """Tokens, or examples, of a worker's local step."""
        return self.batch_size * (self.context if self.data is None else 1)

    @property
    def experts(self) -> Experts | None:
        """Where the experts of the model lie, at the start of a run; None for a model without."""
        num_layers, num_experts = self.model.layers_and_experts
        if not num_experts:
            return None
        return Experts(self.placement, num_layers, num_experts, self.num_workers, self.seed)

    @property
    def id(self) -> str:
        """Method, workers and eight digits of a hash of the whole recipe, with that of the source of what is not the lab's."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return f"{name_of(self.method)}-{self.num_workers}w-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# Fields that recipes of earlier versions do not have: left out where they say nothing, so that those keep their ids.
UNSAID: dict[str, Any] = {"data": None, "own": {}, "groups": "", "keep_every": 0} | to_jsonable_python(
    {
        "clients": Clients(),
        "adaptation": Adaptation(),
        "server": Server(),
        "buffers": Buffers(),
        "privacy": Privacy(),
        "weighting": Weighting(),
        "mean": Mean(),
    }
)


def _import_method(raw: Mapping[str, Any]) -> None:
    """Import the method of a recipe from where it was recorded, if nobody here knows its name yet."""
    method, own = raw.get("method"), raw.get("own")
    record = own.get("method") if isinstance(own, Mapping) else None
    name = method.get("name") if isinstance(method, Mapping) else method
    where = record.get("reference") if isinstance(record, Mapping) else None
    if references.only_recorded() or not isinstance(name, str) or name in METHODS:
        return
    if isinstance(where, str) and references.is_reference(where):
        references.resolve(where, "method")


def _own(recipe: Recipe) -> dict[str, Own]:
    """What is to be recorded of the parts that are not the lab's own.

    Raises RecipeError where one has changed since the recipe was written; one that is only read keeps what is recorded.
    """
    method, model, data = recipe.method, recipe.model, recipe.data
    parts = {"method": None if isinstance(method, Absent) else type(method)}
    parts["model"] = _found(model.call, "model") if isinstance(model, Factory) else None
    parts["data"] = None if data is None else _found(data, "data")
    own: dict[str, Own] = {}
    for what, found in parts.items():
        was = recipe.own.get(what)
        if found is None:
            if was is not None and references.only_recorded():
                own[what] = was
        elif found.__module__.split(".")[0] != "lab":
            # a method is found by the name that it is registered under, also where its class stands inside of a function
            name = f"{found.__module__}:{found.__qualname__}" if what == "method" else references.reference(found, what)
            source, digest = references.source_and_digest(found)
            if was is not None and was.reference == name and was.sha256 != digest:
                if not references.only_recorded():
                    raise RecipeError(
                        f"{what} {name} is not what this recipe was written with (its source has changed): put that back, or make the "
                        "recipe anew from the present one"
                    )
                own[what] = was
                continue
            own[what] = Own(name, digest, source if found.__module__ == references.CELL else "")
    return own


def _found(call: Call, what: str) -> Any:
    """What a call names. In a recipe that is only read: None, where it is not here."""
    if (
        references.only_recorded()
        and not (call.name in TASKS and what == "data")
        and not references.is_there(call.name)
    ):
        return None
    return find_task(call.name) if what == "data" else references.resolve(call.name, what)


def _check_groups(recipe: Recipe) -> None:
    """Raises RecipeError for groups that cannot be; those by a column are known when there are examples."""
    if recipe.groups and not isinstance(recipe.groups, str):
        listed(recipe.groups, recipe.num_clients)
    if recipe.groups and isinstance(recipe.groups, str) and recipe.data is None:
        raise RecipeError(
            f"groups = {recipe.groups!r} names a column of examples, which text does not have: list clients, as in [[0,1],[2,3]]"
        )


def _check_kept(keep_every: int, checkpoint_every: int) -> None:
    """Raises RecipeError for checkpoints that are to stay, where none is written."""
    if keep_every and (not checkpoint_every or keep_every % checkpoint_every):
        raise RecipeError(
            f"keep_every = {keep_every:,} keeps checkpoints that are written every {checkpoint_every:,} steps (checkpoint_every): give a "
            + (f"multiple of {checkpoint_every:,}" if checkpoint_every else "checkpoint_every above 0")
        )


def _check_codecs(codecs: Mapping[str, str], averages: Sequence[str], method: Method) -> None:
    """Raises RecipeError for a codec that there is not, or one for a state that the method does not have."""
    for state, spec in codecs.items():
        codec(spec)
        states = dict.fromkeys((*averages, "params", "grads", *method.inner.state_names))
        if state not in states:
            raise RecipeError(one_of("state in codecs", state, states))


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping as JSON has it."""
    if not isinstance(spec, Mapping):
        raise RecipeError(f"a recipe is the name of a preset, the path of a .json file or an object, not {shown(spec)}")
    objects = {
        key: read(spec[key]) for key, read in (("model", _model), ("data", _data)) if not _is_plain(spec.get(key))
    }
    try:
        raw: dict[str, Any] = json.loads(json.dumps(dict(spec) | objects, default=_jsonable))
    except (TypeError, ValueError, RecursionError) as error:
        reason = shown(str(error).splitlines()[0])
        raise RecipeError(f"a recipe holds plain values alone, those that JSON has ({reason})") from None
    return raw


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float | list | tuple | dict)


def _jsonable(value: Any) -> Any:
    """Parts that are given as objects: a method with its name, all others as their fields."""
    if isinstance(value, Absent):
        return {"name": value.name} | value.options
    if is_method(type(value)):
        return {"name": name_of(value)} | to_jsonable_python(value)
    if isinstance(value, Factory):
        return value.call.plain()
    if isinstance(value, Call):
        return value.plain()
    if type(value) in MODELS.values():
        return {"name": value.name} | to_jsonable_python(value)
    if isinstance(value, FunctionType | functools.partial | type):
        call = Call.of(value, "a part")
        return None if call is None else call.plain()
    if is_dataclass(value) and type(value).__module__.split(".")[0] != "lab":
        raise RecipeError(
            f"{type(value).__name__} is a class of its own, which a recipe cannot name: use one of the lab's"
        )
    return to_jsonable_python(value)


def _read(spec: str) -> dict[str, Any]:
    if spec in PRESETS:
        return json.loads(json.dumps(PRESETS[spec]))  # type: ignore[no-any-return]
    path = Path(spec)
    try:
        if not spec.endswith(".json") and not path.exists():
            raise RecipeError(one_of("preset", spec, PRESETS) + "; or give the path of a .json file")
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read {_name(spec)}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8; a name with a zero in it
        raise RecipeError(f"cannot read {_name(spec)}: {error}") from None
    if len(text) > MOST_BYTES:
        raise RecipeError(f"{_name(spec)} has more than {MOST_BYTES:,} characters: no recipe is that long")
    try:
        raw = json.loads(text, object_pairs_hook=unique_keys)
    except RecipeError as error:
        raise RecipeError(f"{_name(spec)}: {error}") from None
    except ValueError as error:
        raise RecipeError(f"{_name(spec)} is not JSON: {error}") from None
    except RecursionError:
        raise RecipeError(f"{_name(spec)} is nested too deep for a recipe") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{_name(spec)} must hold one JSON object with the fields of a recipe")
    return raw


def _name(path: str) -> str:
    return shown(path, 300)[1:-1]


def _apply(raw: dict[str, Any], override: str) -> None:
    """``method.sync_every.params=64``."""
    (*parents, last), value = parsed_option(override, "-o steps=500 or -o method.sync_every.params=64")
    at = raw
    for parent in parents:
        inner = at.setdefault(parent, {})
        if isinstance(inner, str):
            inner = at[parent] = {"size" if inner in SIZES else SHORT.get(parent, "size"): inner}
        if not isinstance(inner, dict):
            raise RecipeError(
                f"-o {shown(override, 200)}: {shown(parent)[1:-1]} is {shown(inner)} and has no field {shown(last)}"
            )
        at = inner
    if last == "name" and at.get("name") != value:
        at.pop("options", None)  # those of another
    at[last] = value


def _names_no_part(override: str) -> bool:
    return not override.partition("=")[0].endswith(".name")
