"""A recipe is everything needed to repeat a run. It is checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SkipValidation
from pydantic_core import to_jsonable_python

from lab.config import Count, checked, config, parse_value, unique_keys
from lab.data.splits import parse_split
from lab.engine.codecs import codec
from lab.engine.schedule import Schedule
from lab.errors import RecipeError, one_of, shown
from lab.methods.des_loc import DESLOC
from lab.methods.registry import METHODS, Method, check_method, name_of, parse_method, source_of
from lab.models import gpt, moe
from lab.models.gpt import GPT
from lab.models.hf import HF
from lab.models.lora import LoRA
from lab.models.moe import MoE
from lab.recipes.compute import Compute
from lab.recipes.placement import Experts, Placement
from lab.recipes.presets import PRESETS
from lab.recipes.scenario import Scenario

Metric = Literal["alignment", "spectrum", "rates", "gradients", "activations", "noise"]


SIZES: dict[str, GPT | MoE] = {**gpt.SIZES, **moe.SIZES}
MODELS = (GPT, MoE, HF)
MOST_BYTES = 1 << 24  # of a recipe's file


def _model(value: Any) -> Any:
    """A named size, or a size with changes: ``{"size": "micro", "dropout": 0.1}``. A model with experts has num_experts.

    ``hf:<name or folder>`` is a causal language model of Hugging Face's ``transformers``.
    """
    if type(value) in MODELS:
        return value
    if isinstance(value, str) and value.startswith("hf:"):
        return HF(value.removeprefix("hf:"))
    if isinstance(value, dict) and "path" in value:
        return checked(HF, value, "model")
    if isinstance(value, str):
        value = {"size": value}
    if isinstance(value, MODELS):
        parent = next(cls.__name__ for cls in MODELS if isinstance(value, cls))
        raise RecipeError(
            f"model: {type(value).__name__} is derived from {parent}, and a recipe can name {parent} alone, which would be used "
            "instead: use that one"
        )
    if not isinstance(value, dict):
        raise RecipeError(
            f"model = {shown(value)} is not allowed: it is the name of a size ({', '.join(SIZES)}), hf:<name or folder>, or an "
            "object with the fields of GPT or MoE"
        )
    changes = dict(value)
    name = changes.pop("size", None)
    if name is not None and not (isinstance(name, str) and name in SIZES):
        raise RecipeError(one_of("model", name, SIZES))
    base = SIZES[name] if name is not None else MoE() if "num_experts" in changes else GPT()
    return checked(type(base), vars(base) | changes, "model") if changes else base


@config
class Recipe:
    """One run.

    method
        a name from ``lab list``, or ``{"name": …, option: value}``.
    model
        a named size, the fields of `lab.models.gpt.GPT` or `lab.models.moe.MoE`, or ``hf:<name or folder>``.
    start
        where its first values come from: drawn from the seed (none), ``pretrained`` (a model that the lab trains once on the
        standard library and keeps), or the path of a ``.safetensors`` file.
    lora
        low-rank adapters: then the model is frozen, and they are what is trained.
    placement
        which worker holds which expert of a `MoE`.
    corpus, tokenizer, split
        see `lab.data`: where the text comes from, how it becomes tokens, which worker sees what. ``task:<name>`` is one of the
        tasks of `lab.data.tasks` instead of running text.
    batch_size, context
        sequences per worker and local step; tokens per sequence.
    steps
        local steps of every worker.
    codecs
        what travels instead of a state where the method takes means of it, e.g. ``{"params": "int8"}``; the states of each
        method are those of its ``averages`` (`lab.methods.Method`).
    routing_every
        local steps between two looks at the routers of a `MoE` (0: none).
    metrics, metrics_every
        what else to measure, by the names in `lab.probes.measure`, and how often: ``alignment``, ``spectrum``, ``rates``,
        ``gradients``, ``activations``, ``noise``. Nothing unless it is asked for.
    eval_every, eval_windows
        how often the averaged model is scored (0: never but at the end), and on how many validation windows.
    checkpoint_every
        steps between two checkpoints (0: none).
    dtype
        of parameters, gradients and states, and so of what travels.
    compute
        where, how precisely and how much at a time.
    """

    method: Annotated[SkipValidation[Method], BeforeValidator(parse_method)] = Field(default_factory=DESLOC)
    model: Annotated[GPT | MoE | HF, BeforeValidator(_model)] = Field(default_factory=lambda: SIZES["nano"])
    start: str = ""
    lora: LoRA = Field(default_factory=LoRA)
    placement: Placement = Field(default_factory=Placement)
    corpus: str = "stdlib"
    tokenizer: str = "bytes"
    split: str = "iid"
    num_workers: Count = 4
    steps: Count = 200
    batch_size: Count = 8
    context: Annotated[int, Field(ge=2)] = 64
    seed: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = Field(default_factory=Schedule)
    codecs: dict[str, str] = Field(default_factory=dict)
    scenario: Scenario = Field(default_factory=Scenario)
    routing_every: Annotated[int, Field(ge=0)] = 16
    metrics: tuple[Metric, ...] = ()
    metrics_every: Count = 32
    eval_every: Annotated[int, Field(ge=0)] = 50
    eval_windows: Count = 64
    checkpoint_every: Annotated[int, Field(ge=0)] = 100
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    compute: Compute = Field(default_factory=Compute)

    def __post_init__(self) -> None:
        parse_split(self.split)
        for part in (self.scenario, self.compute, self.model, self.lora, self.placement, self.schedule):
            part.check(self)
        check_method(self.method, self)
        _check_codecs(self.codecs, self.method)

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
        for override in overrides:
            _apply(raw, override)
        return checked(cls, raw)

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return Recipe.of(self.to_dict() | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Recipe.of`` reads them back."""
        raw: dict[str, Any] = to_jsonable_python(replace(self))
        raw["method"] = {"name": name_of(self.method)} | raw["method"]
        return raw

    @property
    def experts(self) -> Experts | None:
        """Where the experts of the model lie, at the start of a run; None for a model without."""
        num_layers, num_experts = self.model.layers_and_experts
        if not num_experts:
            return None
        return Experts(self.placement, num_layers, num_experts, self.num_workers, self.seed)

    @property
    def id(self) -> str:
        """Method, workers and eight digits of a hash of the whole recipe, with the source of a method that is not the lab's."""
        text = json.dumps(self.to_dict(), sort_keys=True) + source_of(self.method)
        return f"{name_of(self.method)}-{self.num_workers}w-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _check_codecs(codecs: Mapping[str, str], method: Method) -> None:
    """Raises RecipeError for a codec that there is not, or one for a state that the method does not have."""
    for state, spec in codecs.items():
        codec(spec)
        states = dict.fromkeys((*method.averages, "params", "grads", *method.inner.state_names))
        if state not in states:
            raise RecipeError(one_of("state in codecs", state, states))


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping as JSON has it."""
    if not isinstance(spec, Mapping):
        raise RecipeError(f"a recipe is the name of a preset, the path of a .json file or an object, not {shown(spec)}")
    try:
        raw: dict[str, Any] = json.loads(json.dumps(dict(spec), default=_jsonable))
    except (TypeError, ValueError, RecursionError) as error:
        reason = shown(str(error).splitlines()[0])
        raise RecipeError(f"a recipe holds plain values alone, those that JSON has ({reason})") from None
    return raw


def _jsonable(value: Any) -> Any:
    """Parts that are given as objects: a method with its name, all others as their fields."""
    if type(value) in METHODS.values():
        return {"name": name_of(value)} | to_jsonable_python(value)
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
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"-o {shown(override, 200)}: write key=value, for example -o steps=500 or -o method.sync_every.params=64"
        )
    try:
        value = parse_value(text)
    except RecipeError as error:
        raise RecipeError(f"-o {shown(override, 200)}: {error}") from None
    *parents, last = key.split(".")
    at = raw
    for parent in parents:
        inner = at.setdefault(parent, {})
        if isinstance(inner, str):
            inner = at[parent] = {"name" if parent == "method" else "size": inner}
        if not isinstance(inner, dict):
            raise RecipeError(
                f"-o {shown(override, 200)}: {shown(parent)[1:-1]} is {shown(inner)} and has no field {shown(last)}"
            )
        at = inner
    at[last] = value
