"""Recipes: read back as they were written, told apart by their id, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.engine.optim import ELEMENTWISE, ZERO_AT_START, Nesterov, Optimizer
from lab.ground.errors import RecipeError
from lab.methods import METHODS, name_of, parse_method
from lab.models.gpt import GPT, SIZES
from lab.optimizers.schedule import Schedule
from lab.recipes.presets import PRESETS
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from tests.support.listed import LISTED

# --- round trips -----------------------------------------------------------------------------------------------------

rates = st.floats(1e-6, 1.0)
betas = st.tuples(st.floats(0.1, 0.99), st.floats(0.1, 0.999))
optimizers = st.one_of(
    st.builds(Optimizer, st.sampled_from(sorted(ELEMENTWISE)), rates),
    st.builds(lambda lr, b: Optimizer("AdamW", lr, {"betas": b, "weight_decay": 0.1}), rates, betas),
    st.builds(lambda lr, b: Optimizer("Adam", lr, {"betas": list(b), "amsgrad": True}), rates, betas),
)
periods = st.integers(1, 300)
norms = st.none() | st.floats(0.01, 10)


def des_loc(inner: Optimizer, every: int, outer: Optimizer | None, coin: int | None) -> Any:
    chosen = {name: every * (i + 1) for i, name in enumerate(("params", *inner.state_names))}
    return METHODS["des_loc"](sync_every=chosen, inner=inner, outer=outer, coin_seed=coin)  # type: ignore[call-arg]


methods = st.one_of(
    st.sampled_from(list(LISTED.values())),
    st.builds(METHODS["ddp"], inner=optimizers, max_norm=norms),
    st.builds(METHODS["local_adam"], sync_every=periods, inner=optimizers, max_norm=norms),
    st.builds(METHODS["diloco"], sync_every=periods, inner=optimizers, outer=optimizers, max_norm=norms),
    st.builds(
        METHODS["local_sgd"],
        sync_every=periods,
        inner=optimizers.filter(lambda o: o.name in ZERO_AT_START),
        inner_states=st.sampled_from(["kept", "reset"]),
    ),
    st.builds(des_loc, optimizers, periods, st.none() | st.just(Nesterov()), st.none() | st.integers(0, 9)),
)
scenarios = st.builds(
    Scenario,
    outages=st.lists(st.builds(Outage, worker=st.integers(0, 2), first=st.just(2), last=st.integers(2, 9))).map(tuple),
    sample=st.none() | st.integers(1, 3),
    failure_rate=st.floats(0, 1),
    slow=st.dictionaries(st.integers(0, 2), st.floats(1, 9), max_size=2),
    catch_up=st.sampled_from(["all", "params"]),
)
recipes = st.builds(
    Recipe,
    method=methods,
    model=st.sampled_from([*SIZES.values(), GPT(dim=8, num_heads=2, dropout=0.25)]),
    corpus=st.text(max_size=8),
    num_workers=st.integers(3, 9),
    steps=st.integers(20, 10**6),
    seed=st.integers(0, 2**40),
    schedule=st.builds(Schedule, st.sampled_from(["constant", "cosine", "wsd"]), st.integers(0, 19), st.floats(0, 1)),
    codecs=st.dictionaries(st.sampled_from(["params", "grads"]), st.sampled_from(["int8", "topk:0.1", "bfloat16"])),
    scenario=scenarios,
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
)


@given(recipes)
def test_round_trip(r: Recipe) -> None:
    """``Recipe.of`` reads back what ``to_dict`` writes, through JSON text as well, and the id is that of the content."""
    assert Recipe.of(r.to_dict()) == r
    again = Recipe.of(json.loads(json.dumps(r.to_dict())))
    assert again == r
    assert again.id == r.id
    assert again.to_dict() == r.to_dict()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_read_back(name: str) -> None:
    """Every preset is a recipe, reads back, and is not changed by being read."""
    before = json.dumps(PRESETS[name])
    r = Recipe.of(name, ["steps=100000"])
    assert Recipe.of(r.to_dict()) == r
    assert json.dumps(PRESETS[name]) == before
    assert Recipe.of(name) == Recipe.of(name)


@pytest.mark.parametrize("name", METHODS)
def test_methods_by_name(name: str) -> None:
    """A method's name alone is that method with its defaults."""
    assert name_of(parse_method(name)) == name
    assert parse_method(name) == METHODS[name]() == parse_method({"name": name})
    assert Recipe(method=name).to_dict()["method"]["name"] == name


# --- the id ----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "method": "ddp",
    "model": "micro",
    "data": "tests.support.parts:blobs",
    "corpus": "grammar",
    "tokenizer": "hub:gpt2",
    "split": "domain",
    "num_workers": 5,
    "groups": [[0, 1], [2, 3]],
    "clients": {"num": 9},
    "adaptation": {"clients": 9},
    "server": {"labelled": 3},
    "steps": 201,
    "batch_size": 9,
    "context": 65,
    "seed": 1,
    "schedule": {"warmup": 3},
    "codecs": {"params": "int8"},
    "buffers": "averaged",
    "scenario": {"sample": 2},
    "eval_every": 51,
    "eval_windows": 65,
    "checkpoint_every": 101,
    "dtype": "float64",
    "placement": {"every": 2},
    "routing_every": 17,
    "start": "pretrained",
    "metrics": ["rates"],
    "metrics_every": 33,
    "lora": {"ranks": [4]},
    "compute": {"accumulate": 2},
    "privacy": {"delta": 1e-6},
    "keep_every": 100,
    "mean": {"by": "median"},
    "weighting": {"by": "uniform"},
}


def test_every_field_is_in_the_id() -> None:
    """Changing any one field gives another id; the table above names every field there is."""
    assert set(CHANGES) == {f.name for f in dataclasses.fields(Recipe)} - {"own"}  # which is filled in by itself
    ids = [Recipe().id, *(Recipe().but(**{key: value}).id for key, value in CHANGES.items())]
    assert len(set(ids)) == len(ids)
    nested = ["method.inner.lr=0.5", "method.inner.options.weight_decay=0.5", "method.coin_seed=1", "model.dim=32"]
    assert len({Recipe.of("des_loc", [o]).id for o in nested}) == len(nested)


def test_the_id_is_the_same_in_every_process() -> None:
    """No salt, no order of dictionaries: a fresh interpreter with another hash seed gives the same id."""
    code = "from lab.recipes.recipe import Recipe; print(Recipe.of('des_loc').id, Recipe().id)"
    for seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert out.stdout.split() == [Recipe.of("des_loc").id, Recipe().id]
    assert Recipe.of("des_loc").id.startswith("des_loc-4w-")


def test_the_order_of_keys_does_not_matter() -> None:
    """A recipe is what it says, not how it was typed."""
    raw = Recipe.of("des_loc").to_dict()
    assert Recipe.of(dict(reversed(raw.items()))).id == Recipe.of("des_loc").id


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"stesp": 5}, r"stesp.*did you mean 'steps'"),
    ({"method": "deslok"}, r"unknown method 'deslok'.*did you mean 'des_loc'"),
    ({"method": {"sync_every": 3}}, r"method\.name is missing.*ddp"),
    ({"method": {"name": "diloco", "sink_every": 3}}, r"method\.sink_every.*did you mean 'method\.sync_every'"),
    (
        {"method": {"name": "diloco", "inner": {"nam": "SGD"}}},
        r"method\.inner\.nam.*did you mean 'method\.inner\.name'",
    ),
    ({"method": {"name": "diloco", "inner": {"name": "AdanW"}}}, r"optimizer 'AdanW'.*did you mean 'AdamW'"),
    (
        {"method": {"name": "ddp", "inner": {"options": {"weight_decai": 0.1}}}},
        r"AdamW option 'weight_decai'.*did you mean 'weight_decay'",
    ),
    ({"method": {"name": "ddp", "inner": {"options": {"betas": 3}}}}, r"AdamW does not accept"),
    ({"method": {"name": "ddp", "inner": {"lr": 0}}}, r"method\.inner\.lr = 0 is not allowed.*greater than 0"),
    ({"method": {"name": "ddp", "max_norm": -1}}, r"method\.max_norm = -1"),
    ({"method": {"name": "local_adam", "sync_every": 0}}, r"method\.sync_every = 0 is not allowed.*at least|.*greater"),
    ({"method": {"name": "local_adam", "sync_every": 2.5}}, r"method\.sync_every = 2\.5"),
    ({"method": {"name": "des_loc", "sync_every": {"params": 0}}}, r"method\.sync_every\.params = 0"),
    ({"method": {"name": "des_loc", "sync_every": {"params": 1, "exp_agv": 2}}}, r"exp_agv.*did you mean 'exp_avg'"),
    ({"method": {"name": "des_loc", "sync_every": {"exp_avg": 2}}}, r"no 'params'"),
    ({"method": {"name": "des_loc", "clip": "nrom"}}, r"method\.clip = 'nrom'.*'norm'"),
    (
        {"method": {"name": "local_sgd", "inner_states": "reset", "inner": {"name": "Rprop"}}},
        r"not available with Rprop",
    ),
    ({"method": {"name": "local_sgd", "inner_states": "keep"}}, r"method\.inner_states = 'keep'.*'kept'"),
    ({"model": "nanoo"}, r"unknown model 'nanoo'.*did you mean 'nano'"),
    ({"model": {"dimm": 8}}, r"model\.dimm.*did you mean 'model\.dim'"),
    ({"model": {"dim": 9}}, r"num_heads = 2 does not fit model\.dim = 9"),
    ({"model": {"dropout": 1.0}}, r"model\.dropout = 1\.0"),
    ({"codecs": {"params": "int9"}}, r"unknown codec 'int9'.*did you mean 'int8'"),
    ({"codecs": {"params": "topk:2"}}, r"topk fraction = 2\.0 is not allowed.*\(0, 1\]"),
    ({"codecs": {"params": "topk:many"}}, r"unknown codec 'topk:many'"),
    ({"codecs": {"parms": "int8"}}, r"state in codecs 'parms'.*did you mean 'params'"),
    ({"scenario": {"sample": 5}}, r"scenario\.sample = 5 is more than num_workers = 4"),
    ({"scenario": {"outages": [{"worker": 4, "last": 3}]}}, r"worker 4, but the workers are 0 … 3"),
    ({"scenario": {"outages": [{"worker": 1}]}}, r"last is missing"),
    ({"scenario": {"slow": {"7": 2.0}}}, r"worker 7"),
    ({"scenario": {"slow": {"1": 0.5}}}, r"scenario\.slow\.1 = 0\.5"),
    ({"scenario": {"smaple": 2}}, r"scenario\.smaple.*did you mean 'scenario\.sample'"),
    ({"scenario": {"failure_rate": 1.5}}, r"scenario\.failure_rate = 1\.5"),
    ({"schedule": {"kind": "cosinus"}}, r"schedule\.kind = 'cosinus'.*'cosine'"),
    ({"schedule": {"warmup": 200}}, r"schedule\.warmup = 200 leaves nothing of the 200 steps"),
    ({"schedule": {"warm_up": 2}}, r"schedule\.warm_up.*did you mean 'schedule\.warmup'"),
    ({"dtype": "float23"}, r"dtype = 'float23'.*float32"),
    ({"num_workers": 0}, r"num_workers = 0"),
    ({"steps": -1}, r"steps = -1"),
    ({"steps": "many"}, r"steps = 'many'.*integer"),
    ({"context": 1}, r"context = 1"),
    ({"seed": -1}, r"seed = -1"),
]


@pytest.mark.parametrize(("raw", "pattern"), MISTAKES, ids=[json.dumps(raw)[:60] for raw, _ in MISTAKES])
def test_a_mistake_is_one_line(raw: dict[str, Any], pattern: str) -> None:
    """A wrong key or value is named, with what is allowed and the nearest right one, on one line."""
    with pytest.raises(RecipeError, match=pattern) as info:
        Recipe.of(raw)
    message = str(info.value)
    assert "\n" not in message
    assert "pydantic" not in message
    assert info.value.exit_code == 2


def test_files(tmp_path: Path) -> None:
    """A recipe from a file is that recipe; a file that is missing or no JSON object is named."""
    good = tmp_path / "good.json"
    good.write_text(json.dumps(Recipe.of("diloco").to_dict()))
    assert Recipe.of(str(good)) == Recipe.of("diloco")
    bad = tmp_path / "bad.json"
    bad.write_text('{"steps": 3')
    with pytest.raises(RecipeError, match=r"bad\.json is not JSON"):
        Recipe.of(str(bad))
    bad.write_text("[1]")
    with pytest.raises(RecipeError, match="one JSON object"):
        Recipe.of(str(bad))
    with pytest.raises(RecipeError, match=r"cannot read .*none\.json"):
        Recipe.of(str(tmp_path / "none.json"))
    with pytest.raises(RecipeError, match=r"unknown preset 'dilloco'.*did you mean 'diloco'.*\.json"):
        Recipe.of("dilloco")
    with pytest.raises(RecipeError, match="cannot read"):
        Recipe.of(str(tmp_path))


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides() -> None:
    """``key=value`` with dots for nesting; the value is JSON where it can be and a string otherwise."""
    r = Recipe.of("des_loc", ["steps=500", "method.sync_every.params=64", "corpus=text:a=b.txt", "codecs.params=int8"])
    assert (r.steps, r.corpus, r.codecs) == (500, "text:a=b.txt", {"params": "int8"})
    assert r.method.sync_every == {"params": 64, "exp_avg": 48, "exp_avg_sq": 96}
    assert Recipe.of("des_loc", ["model=micro", "model.dropout=0.1"]).model == GPT(128, 4, 4, dropout=0.1)
    assert Recipe.of("des_loc", ["method=diloco", "method.sync_every=7"]).method.sync_every == 7
    assert Recipe.of("des_loc", ["method.max_norm=null"]).method.max_norm is None
    assert Recipe.of("des_loc", ["seed=1", "seed=2"]).seed == 2
    assert Recipe.of(r, ["seed=3"]) == r.but(seed=3)


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("steps", r"-o 'steps': write key=value"),
        ("=5", r"-o '=5': write key=value"),
        ("stepz=5", r"stepz.*did you mean 'steps'"),
        ("steps.more=5", r"steps is 384 and has no field 'more'"),
        ("method.sync_every.parms=5", r"parms.*did you mean 'params'"),
        ("method.inner.options.beta=[0.9, 0.9]", r"AdamW option 'beta'.*did you mean 'betas'"),
    ],
)
def test_wrong_overrides(override: str, pattern: str) -> None:
    """A wrong override is one line that shows it."""
    with pytest.raises(RecipeError, match=pattern) as info:
        Recipe.of("des_loc", [override])
    assert "\n" not in str(info.value)
    with pytest.raises(RecipeError, match="overrides are a list: write"):
        Recipe.of("des_loc", override)


def test_but_checks_as_well() -> None:
    """``but`` gives another recipe, checks it, and leaves the first alone."""
    r = Recipe()
    assert r.but(steps=7).steps == 7
    assert r.steps == 200
    with pytest.raises(RecipeError, match="did you mean 'steps'"):
        r.but(stepps=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.steps = 3  # type: ignore[misc]


def test_a_recipe_can_be_made_wherever_tensors_are_made():
    """Its optimizer is tried on two numbers that have to be there."""
    with torch.device("meta"):
        assert Recipe.of("prelort") == Recipe.of("prelort")


def test_options_belong_to_the_optimizer_that_has_them() -> None:
    """Another name drops the preset's; those that are given along with it stay, in whatever order."""
    said = ["method.inner.options.momentum=0.9", "method.inner.name=SGD", "method.inner.lr=0.1"]
    inner = Recipe.of("diloco", said).method.inner
    assert (inner.name, inner.lr, inner.options["momentum"]) == ("SGD", 0.1, 0.9)
    same = Recipe.of("diloco", ["method.inner.name=AdamW"]).method.inner
    assert same == Recipe.of("diloco").method.inner


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            '"spectal"',
            "method.beta = 'spectal' is not allowed: a number is needed, not text, or input should be 'spectral'",
        ),
        (
            "0.5",
            "method.beta = 0.5 is not allowed: input should be greater than or equal to 1, or input should be 'spectral'",
        ),
    ],
)
def test_where_a_number_or_a_word_would_do_both_are_said(given: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.of("sparsyfed", [f"method.beta={given}"])
    assert str(caught.value) == says


def test_options_of_a_part_by_number_are_told_like_any_other() -> None:
    spec = {"method": {"name": "worldlm", "tree": "2", "privacy": {"1": {"clip": 1, "nosie": 0.1}}}, "num_workers": 4}
    with pytest.raises(RecipeError, match=r"nosie.*use one of method\.privacy\.1\.clip, method\.privacy\.1\.noise"):
        Recipe.of(spec)
    with pytest.raises(RecipeError, match="an object with the fields clip, noise"):
        Recipe.of({"method": {"name": "worldlm", "privacy": {"1": 0.1}}})


def test_what_an_option_looks_like_is_told_by_its_default() -> None:
    with pytest.raises(RecipeError, match=r'it is an object, for example \{"1": "ewc"\}'):
        Recipe.of("pafl", ["method.losses=ewc"])
    with pytest.raises(RecipeError, match=r"it is a list, for example \[2\]"):
        Recipe.of("worldlm", ["method.rounds=often"])


@pytest.mark.parametrize(
    "given", [["method.outer.lr=0.4"], ["method.outer.options.momentum=0.5"], ["method.inner.options.eps=1e-6"]]
)
def test_a_part_of_an_optimizer_changes_that_part_alone(given: list[str]) -> None:
    """DiLoCo's outer optimizer is Nesterov, also at another rate: it does not become the optimizer that a bare one is."""
    for start in ({"method": "diloco"}, "diloco"):
        changed, before = (Recipe.of(start, options).to_dict()["method"] for options in (given, []))
        key, value = given[0].split("=")
        *parents, last = key.split(".")[1:]
        inside = before
        for parent in parents:
            inside = inside[parent]
        inside[last] = float(value)
        assert changed == before
    other = Recipe.of("diloco", ["method.outer.name=AdamW", "method.outer.lr=0.1"]).to_dict()["method"]["outer"]
    assert other == {"name": "AdamW", "lr": 0.1, "options": {}}
