"""A recipe is everything needed to repeat a run. It is checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SkipValidation
from pydantic_core import to_jsonable_python

from lab.codecs import codec
from lab.compute import Compute
from lab.config import checked, config
from lab.errors import RecipeError, one_of
from lab.experts.placement import Experts, Placement
from lab.methods import DESLOC, FEDERATED, FoMoE, PreLort, name_of
from lab.methods import method as parse_method
from lab.models import gpt, moe
from lab.models.gpt import GPT
from lab.models.hf import HF
from lab.models.lora import LoRA
from lab.models.moe import MoE
from lab.optim import Schedule
from lab.presets import PRESETS
from lab.scenarios import Scenario

Count = Annotated[int, Field(ge=1)]
Metric = Literal["alignment", "spectrum", "rates", "gradients", "activations", "noise"]


SIZES: dict[str, GPT | MoE] = {**gpt.SIZES, **moe.SIZES}


def _model(value: Any) -> Any:
    """A named size, or a size with changes: ``{"size": "micro", "dropout": 0.1}``. A model with experts has num_experts.

    ``hf:<name or folder>`` is a causal language model of Hugging Face's ``transformers``.
    """
    if isinstance(value, str) and value.startswith("hf:"):
        return HF(value.removeprefix("hf:"))
    if isinstance(value, dict) and "path" in value:
        return checked(HF, value, "model")
    if isinstance(value, str):
        value = {"size": value}
    if isinstance(value, dict):
        changes = dict(value)
        name = changes.pop("size", None)
        if name is not None and name not in SIZES:
            raise RecipeError(one_of("model", name, SIZES))
        base = SIZES[name] if name is not None else MoE() if "num_experts" in changes else GPT()
        return checked(type(base), vars(base) | changes, "model") if changes else base
    return value


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
        tasks of `lab.tasks` instead of running text.
    batch_size, context
        sequences per worker and local step; tokens per sequence.
    steps
        local steps of every worker.
    codecs
        what travels instead of a state, e.g. ``{"params": "int8"}``.
    routing_every
        local steps between two looks at the routers of a `MoE` (0: none).
    metrics, metrics_every
        what else to measure, by the names in `lab.watching.measure`, and how often: ``alignment``, ``spectrum``, ``rates``,
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

    method: Annotated[SkipValidation[Any], BeforeValidator(parse_method)] = Field(default_factory=DESLOC)
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
        self.scenario.check(self.num_workers)
        self.compute.check(self.batch_size, self.dtype)
        if self.compute.vectorised:
            nested = isinstance(self.method, PreLort) and self.method.nested != "none"
            dropout = isinstance(self.model, GPT) and self.model.dropout > 0
            for what, there in (
                ("a model with experts", isinstance(self.model, MoE)),
                ("the nested loss of prelort", nested),
                ("dropout", dropout),
            ):
                if there:
                    raise RecipeError(f"compute.vectorised = true does not go with {what}: leave out one")
        period = getattr(self.method, "sync_every", 1)
        if name_of(self.method) in FEDERATED and self.scenario.sample and self.scenario.sample_every % period:
            raise RecipeError(
                f"scenario.sample_every = {self.scenario.sample_every} changes clients in the midst of rounds of {period} steps: "
                f"set it to {period}, or a multiple"
            )
        if self.lora.ranks:
            self.lora.ranks_W(self.num_workers)
            if self.placement.overlap is not None:
                raise RecipeError(
                    "placement.overlap spreads experts that are trained, but lora freezes them: leave out one"
                )
        if not isinstance(self.model, MoE):
            if self.placement.overlap is not None or self.placement.kind == "random":
                given = f"overlap = {self.placement.overlap}" if self.placement.overlap else "kind = 'random'"
                raise RecipeError(
                    f"placement.{given} is for models with experts: choose one, for example model=moe-nano, or set placement={{}}"
                )
        else:
            self.placement.check(self.model.num_experts, self.num_workers)
            if self.placement.kind == "random" and self.placement.overlap is None:
                raise RecipeError(
                    "placement.kind = 'random' moves nothing while every worker holds every expert: set placement.overlap, "
                    f"for example to {max(1, self.num_workers // 2)}"
                )
            if self.placement.moves(self.num_workers) and not isinstance(self.method, FoMoE):
                raise RecipeError(
                    f"placement.kind = 'random' moves experts between workers, which {name_of(self.method)} does not do: "
                    "use method fomoe, or placement.kind=fixed"
                )
        for state, spec in self.codecs.items():
            codec(spec)
            states = ("params", "grads", *self.method.inner.state_names)
            if state not in states:
                raise RecipeError(one_of("state in codecs", state, states))
        if self.schedule.warmup >= self.steps > 1:
            raise RecipeError(
                f"schedule.warmup = {self.schedule.warmup} leaves nothing of the {self.steps} steps: "
                "set schedule.warmup lower (0 for none) or steps higher"
            )

    @classmethod
    def of(cls, spec: Mapping[str, Any] | str | Recipe, overrides: Sequence[str] = ()) -> Recipe:
        """From a preset's name, the path of a JSON file, or a mapping; then ``key=value`` overrides, dots for nesting.

        Raises
        ------
        RecipeError
            one line: what was wrong, what is allowed.
        """
        if isinstance(spec, Recipe):
            spec = spec.to_dict()
        raw = _read(spec) if isinstance(spec, str) else json.loads(json.dumps(dict(spec), default=to_jsonable_python))
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
        if not isinstance(self.model, MoE):
            return None
        return Experts(self.placement, self.model.num_layers, self.model.num_experts, self.num_workers, self.seed)

    @property
    def id(self) -> str:
        """Method, workers and eight digits of a hash of the whole recipe."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return f"{name_of(self.method)}-{self.num_workers}w-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _read(spec: str) -> dict[str, Any]:
    if spec in PRESETS:
        return json.loads(json.dumps(PRESETS[spec]))  # type: ignore[no-any-return]
    path = Path(spec)
    if not spec.endswith(".json") and not path.exists():
        raise RecipeError(one_of("preset", spec, PRESETS) + "; or give the path of a .json file")
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"cannot read {spec}: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{spec} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{spec} must hold one JSON object with the fields of a recipe")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    """``method.sync_every.params=64``: the value is JSON where it can be, a string else."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"-o {override!r}: write key=value, for example -o steps=500 or -o method.sync_every.params=64"
        )
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    *parents, last = key.split(".")
    at = raw
    for parent in parents:
        inner = at.setdefault(parent, {})
        if isinstance(inner, str):
            inner = at[parent] = {"name" if parent == "method" else "size": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"-o {override!r}: {parent} is {inner!r} and has no field {last!r}")
        at = inner
    at[last] = value
