"""What cannot mean anything is refused in one line; what makes no difference gets a note before the run; all else is taken."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.engine.optim import ELEMENTWISE, Optimizer
from lab.events import Routed, Warned
from lab.ground.config import parse_value
from lab.ground.errors import RecipeError, shown
from lab.methods import METHODS, method, name_of
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.models.gpt import GPT
from lab.models.lora import LoRA
from lab.models.moe import MoE
from lab.models.shape import Shape
from lab.optimizers.options import KINDS, options_of
from lab.optimizers.schedule import Schedule
from lab.recipes.notes import notes
from lab.recipes.presets import PRESETS, in_words
from lab.recipes.recipe import SIZES as NAMED
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Scenario
from lab.runs.build import check_memory, check_size
from lab.runs.trainer import Trainer
from tests.support.recipes import corpus
from tests.support.recipes import recipe as tiny

INF, NAN = float("inf"), float("nan")


def refused(make: Callable[[], Any]) -> str:
    """The one line with which this is refused."""
    with pytest.raises(RecipeError) as info:
        make()
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 1200
    assert info.value.exit_code == 2
    return message


# --- numbers ---------------------------------------------------------------------------------------------------------

NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"steps": True}, "steps = True is not allowed: an integer is needed, not true or false"),
    ({"steps": "4"}, "steps = '4' is not allowed: an integer is needed, not text"),
    ({"steps": "4_0"}, "an integer is needed, not text"),
    ({"steps": 4.5}, "steps = 4.5"),
    ({"steps": 10**30}, "steps = 1000000000000000019884624838656|steps = 10+ is not allowed: at most 9,223"),
    ({"steps": 1e30}, "at most 9,223,372,036,854,775,807"),
    ({"num_workers": True}, "num_workers = True"),
    ({"seed": "0x"}, "seed = '0x'"),
    ({"seed": True}, "seed = True"),
    ({"batch_size": "2"}, "batch_size = '2'"),
    ({"method": {"name": "ddp", "inner": {"lr": INF}}}, "method.inner.lr = inf.*finite number"),
    ({"method": {"name": "ddp", "inner": {"lr": -INF}}}, "method.inner.lr = -inf.*finite number"),
    ({"method": {"name": "ddp", "inner": {"lr": NAN}}}, "method.inner.lr = nan.*finite number"),
    ({"method": {"name": "ddp", "inner": {"lr": "inf"}}}, "method.inner.lr = 'inf'.*a number is needed, not text"),
    ({"method": {"name": "ddp", "inner": {"lr": 1e31}}}, r"method.inner.lr = 1e\+31 is not allowed: at most 1e\+30"),
    ({"method": {"name": "ddp", "inner": {"lr": True}}}, "method.inner.lr = True.*not true or false"),
    ({"method": {"name": "ddp", "max_norm": INF}}, "method.max_norm = inf"),
    ({"method": {"name": "des_loc", "sync_every": {"params": 2, "exp_avg": 1e30}}}, "sync_every.exp_avg = 1e"),
    ({"method": {"name": "lordo", "rotate": 1}}, "method.rotate = 1.*valid boolean"),
    ({"method": {"name": "lordo", "rotate": "yes"}}, "method.rotate = 'yes'.*valid boolean"),
    ({"lora": {"ranks": [4], "scale": INF}}, "lora.scale = inf"),
    ({"lora": {"ranks": [True]}}, "lora.ranks.0 = True"),
    ({"scenario": {"mean_outage": INF}}, "scenario.mean_outage = inf"),
    ({"scenario": {"slow": {"1": INF}}}, "scenario.slow.1 = inf"),
    ({"scenario": {"slow": {"1": True}}}, "scenario.slow.1 = True"),
    ({"scenario": {"slow": {"1": 1e308}}}, "scenario.slow.1 = 1e"),
    ({"scenario": {"slow": {"1.0": 2}}}, "scenario.slow has the key '1.0'"),
    ({"scenario": {"slow": {"01": 2}}}, "scenario.slow has the key '01'"),
    ({"scenario": {"slow": {"true": 2}}}, "scenario.slow has the key 'true'"),
    ({"model": {"size": "moe-nano", "balance": INF}}, "model.balance = inf"),
    ({"model": {"size": "moe-nano", "skip_token": 1}}, "model.skip_token = 1.*valid boolean"),
    ({"method": {"name": "noloco", "lr": 1e308}}, "method.lr = 1e"),
    ({"compute": {"vectorised": 1}}, "compute.vectorised = 1"),
]


@pytest.mark.parametrize(("raw", "words"), NUMBERS, ids=lambda v: json.dumps(v)[:60] if isinstance(v, dict) else "")
def test_a_number_is_a_finite_number(raw: dict[str, Any], words: str) -> None:
    """No text, no true or false, nothing infinite, nothing that cannot be reckoned with; true and false are no numbers."""
    assert re.search(words, refused(lambda: Recipe.of(raw)))


def _numbers_in(raw: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = raw.items() if isinstance(raw, dict) else ()
    mine = [path] if isinstance(raw, int | float) and not isinstance(raw, bool) else []
    return mine + [p for key, value in inner for p in _numbers_in(value, (*path, key))]


@pytest.mark.parametrize(
    "preset", ["des_loc", "mt_dao", "streaming_diloco", "noloco", "demo", "fomoe", "prelort", "photon"]
)
@pytest.mark.parametrize("bad", [INF, -INF, NAN, True, "1", [1], 10**40, None])
def test_every_number_of_a_recipe_is_one(preset: str, bad: Any) -> None:
    """Each field that holds a number in a preset refuses what is none, with its name; None only where a field is optional."""
    whole = Recipe.of(preset).to_dict()
    for path in _numbers_in(whole):
        raw = json.loads(json.dumps(whole))
        at = raw
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = bad
        if bad is None and (path[-1] in ("max_norm", "sample") or path == ("placement", "overlap")):
            Recipe.of(raw)
        else:
            assert path[-1] in refused(lambda raw=raw: Recipe.of(raw))


def test_integers_may_be_written_as_numbers_with_a_point() -> None:
    """JSON has one kind of number: 4.0 is 4, and makes the same recipe. In a shell Python's ways of writing one are known as well."""
    four = Recipe.of({"steps": 4})
    assert Recipe.of({"steps": 4.0}).id == four.id
    assert Recipe.of({}, ["steps=4.0"]) == Recipe.of({}, ["steps=4"]) == four
    r = Recipe.of("des_loc", ["steps=1_000", "method.inner.lr=.5", "method.max_norm=None", "compute.vectorised=True"])
    assert (r.steps, r.method.inner.lr, r.method.max_norm, r.compute.vectorised) == (1000, 0.5, None, True)
    assert Recipe.of("des_loc", ["method.inner.lr=1e-2"]).method.inner.lr == 0.01
    for text in ("1__0", "0x10", "inf", "٤", "4-2", ".", "1e400", "Infinity", "'4'", '"4"', "True"):
        refused(lambda text=text: Recipe.of("des_loc", [f"steps={text}"]))
    one, other = ({"name": "ddp", "inner": {"options": {"weight_decay": x}}} for x in (0, 0.0))
    assert Recipe.of({"method": one}).id == Recipe.of({"method": other}).id


@pytest.mark.parametrize(
    ("text", "value", "in_a_notebook"),
    [
        ("1", 1, 1), ("-3", -3, -3), ("1.5", 1.5, 1.5), ("1e5", 1e5, 1e5), (".5", 0.5, 0.5), ("1_000", 1000, 1000), (" 7 ", 7, 7),
        ("None", None, None), ("null", None, None), ("true", True, True), ("True", True, True), ('"x"', "x", "x"),
        ("[1, 2]", [1, 2], [1, 2]), ('{"a": 1}', {"a": 1}, {"a": 1}), ("fast", "fast", "fast"), ("", "", ""), ("010", "010", "010"),
        ("a=b", "a=b", "a=b"), ("'x'", "'x'", "x"), ("(1, 2)", "(1, 2)", (1, 2)), ("[1, 2,]", "[1, 2,]", [1, 2]),
        ("{'a': 1}", "{'a': 1}", {"a": 1}), ("0x10", "0x10", 16), ("[" * 5000, RecipeError, "[" * 5000),
        ('{"a": true, "a": 1}', RecipeError, {"a": 1}),
    ],
)  # fmt: skip
def test_what_a_text_on_the_command_line_means(text: str, value: Any, in_a_notebook: Any) -> None:
    """Of a recipe JSON, and Python's numbers and words; of a notebook all that Python can write down, and then JSON."""
    if value is RecipeError:
        with pytest.raises(RecipeError):
            parse_value(text)
    else:
        assert (parse_value(text), type(parse_value(text))) == (value, type(value))
    assert (parse_value(text, literals=True), type(parse_value(text, literals=True))) == (
        in_a_notebook,
        type(in_a_notebook),
    )


def test_by_hand_it_is_one_line_as_well() -> None:
    """Parts made in a notebook, by name or by place."""
    assert refused(lambda: Recipe(steps=-1)).startswith("steps = -1 is not allowed")
    assert refused(lambda: Schedule("wsd", True)).startswith("warmup = True is not allowed")
    assert refused(lambda: Schedule("wsd", 1, 0.1, 0.0, 5)) == (
        "Schedule takes 4 values at most: kind, warmup, decay_fraction, final"
    )
    assert refused(lambda: Optimizer("AdamW", INF)).startswith("lr = inf")
    assert str(inspect.signature(Schedule)).startswith(
        "(kind: \"Literal['constant', 'cosine', 'wsd', 'exponential']\" = 'constant', "
    )


# --- options of optimizers -------------------------------------------------------------------------------------------

OPTIONS: dict[str, set[str]] = {
    "AdamW": {"betas", "eps", "weight_decay", "amsgrad", "foreach", "fused"},
    "RMSprop": {"alpha", "eps", "weight_decay", "momentum", "centered", "foreach"},
    "Rprop": {"etas", "step_sizes", "foreach"},
    "SGD": {"momentum", "dampening", "weight_decay", "nesterov", "foreach", "fused"},
    "SGDM": {"momentum"},
    "PlainAdam": {"betas", "eps"},
    "QHM": {"betas", "weights"},
    "FedMom": {"momentum"},
    "Muon": {"momentum", "nesterov", "betas", "eps", "weight_decay", "ns_steps", "adjust_lr_fn", "weight"},
    "FedAdam": {"betas", "tau"},
}
LEFT_OUT = {"self", "params", "lr", "maximize", "capturable", "differentiable", "foreach", "fused"}

MEANINGLESS: dict[str, list[Any]] = {
    "betas": [
        [0.9],
        {"0": 1, "1": 2},
        [5, -3],
        [1.5, 2],
        [-1, 0.9],
        [0.9, 1.0],
        [True, True],
        ["a", "b"],
        "ab",
        3,
        None,
    ],
    "eps": [-1, "x", None, INF, NAN, True],
    "tau": [-1, 0, "x"],
    "momentum": [-1, 1, 2, 5, "x", True],
    "dampening": [-5, 2],
    "weight_decay": [-1, "x", None],
    "alpha": [-0.1, 1.5],
    "rho": [-0.1, 1.5],
    "etas": [[1.2, 0.5], [0.5], [0, 2]],
    "step_sizes": [[5, 1], [0, 1]],
    "weights": [[2], [-0.1], "x"],
    "weight": [2, -0.1, "x", True],
    "lr_decay": [-1],
    "initial_accumulator_value": [-1],
    "momentum_decay": [-1],
    "clip_exponent": [-1, "x"],
    "ns_steps": [0, 100, "x", None, True],
    "adjust_lr_fn": ["other", 1, None],
    **{
        name: ["x", 1, "true"]
        for name in ("amsgrad", "nesterov", "centered", "foreach", "fused", "decoupled_weight_decay")
    },
    **{name: [True, False, "x"] for name in ("maximize", "capturable", "differentiable")},
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_options_of_optimizers_have_types_and_ranges(name: str) -> None:
    """Every optimizer, every option: what means nothing is refused with the optimizer's and the option's name."""
    taken = set(inspect.signature(ELEMENTWISE[name]).parameters)
    declared = set(options_of(ELEMENTWISE[name]))
    assert declared == OPTIONS.get(name, declared)
    assert taken - LEFT_OUT <= declared <= taken  # a new option has to be declared
    assert set(MEANINGLESS) >= set(KINDS)
    for option, values in MEANINGLESS.items():
        for value in values:
            if value == [0.9] and name == "QHM":
                continue  # as many decays as it has weights
            message = refused(lambda o=option, v=value: Optimizer(name, 1e-3, {o: v}))
            assert name in message
            assert option in message


def test_options_that_do_not_go_together() -> None:
    assert "Nesterov" in refused(lambda: Optimizer("SGD", 0.1, {"nesterov": True}))
    assert "together" in refused(lambda: Optimizer("SGD", 0.1, {"foreach": True, "fused": True}))
    assert "as many weights" in refused(lambda: Optimizer("QHADOPT", 0.1, {"betas": [0.9]}))
    assert "at most 1" in refused(lambda: Optimizer("QHM", 0.1, {"betas": [0.9, 0.8], "weights": [0.6, 0.6]}))
    assert refused(lambda: Optimizer("AdamW", 0.1, {"betas": [0.9]})) == (
        "AdamW does not accept betas = [0.9]: it is a list of two numbers, for example [0.9, 0.95]"
    )


# --- names and shapes ------------------------------------------------------------------------------------------------

SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"method": ["ddp"]}, "method = ['ddp'] is not allowed: it is a name"),
    ({"method": 5}, "method = 5 is not allowed: it is a name"),
    ({"method": True}, "method = True is not allowed: it is a name"),
    ({"method": None}, "method = None is not allowed: it is a name"),
    ({"method": {"name": ["ddp"]}}, "unknown method"),
    ({"method": {"name": {}}}, "unknown method"),
    ({"method": {"name": 5}}, "unknown method '5'"),
    ({"method": ""}, "unknown method ''"),
    ({"method": {}}, "method.name is missing"),
    ({"model": {"size": []}}, "unknown model '[]'"),
    ({"model": {"size": {}}}, "unknown model '{}'"),
    ({"model": {"size": 5}}, "unknown model '5'"),
    ({"model": ["nano"]}, "model = ['nano'] is not allowed: it is the name of a size (pico, "),
    ({"model": None}, "model = None is not allowed"),
    ({"model": 5}, "model = 5 is not allowed"),
    ({"model": {"path": "x", "dim": 4}}, "unknown option 'model.dim': use one of model.path (did"),
    ({"model": {"num_layers": 5000}}, "model.num_layers = 5000"),
    ({"model": {"num_experts": 200_000, "num_layers": 2, "expert_dim": 2}}, "at most 262,144 in all"),
    ({"lora": {"targets": []}}, "lora.targets is empty"),
    ({"lora": {"values": "somewhere"}}, "there is none without lora.ranks"),
    ({"scenario": {"outages": [{"worker": 1, "first": 9, "last": 3}]}}, "first must not be greater than last"),
    ({"split": "nonsense"}, "unknown split 'nonsense'"),
    ({"split": "dirichlet:0.5 "}, "write dirichlet:<number>"),
    ({"split": "dirichlet:٠.٥"}, "write dirichlet:<number>"),
    ({"split": "size:1e9999"}, "write size:<number>"),
    ({"codecs": {"params": "topk: 0.5"}}, "unknown codec 'topk: 0.5'"),
    ({"codecs": {"params": "topk:0_1.5"}}, "unknown codec 'topk:0_1.5'"),
    ({"codecs": {"params": "topk:٠.٥"}}, "unknown codec"),
    ({"codecs": {"params": "topk:nan"}}, "unknown codec 'topk:nan'"),
    ({"codecs": {"params": 8}}, "codecs.params = 8"),
    ({"method": {"name": "demo", "chunk": 10**9}}, "method.chunk = 1000000000"),
]


@pytest.mark.parametrize(("raw", "words"), SHAPES, ids=lambda v: json.dumps(v)[:60] if isinstance(v, dict) else "")
def test_what_is_no_name_or_no_shape(raw: dict[str, Any], words: str) -> None:
    assert words in refused(lambda: Recipe.of(raw))


def test_what_no_json_can_hold() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    circle: dict[str, Any] = {}
    circle["steps"] = circle
    for raw in ({"steps": deep}, circle, {"steps": 10**5000}, {("a",): 1}, {"steps": object()}, {"steps": {1, 2}}):
        refused(lambda raw=raw: Recipe.of(raw))
    for spec in (5, None, ["ddp"], True):
        assert "a recipe is" in refused(lambda spec=spec: Recipe.of(spec))  # type: ignore[arg-type]


def test_a_refusal_is_short_however_long_the_mistake() -> None:
    """Values and keys are cut, and the list of what is allowed stays readable."""
    long, many = "x" * 1_000_000, list(range(100_000))
    for raw in (
        {long: 1},
        {"steps": long},
        {"steps": many},
        {"method": long},
        {"method": many},
        {"method": {"name": "ddp", long: 1}},
        {"method": {"name": "ddp", "inner": {"options": {long: 1}}}},
        {"method": {"name": "ddp", "inner": {"options": {"betas": many}}}},
        {"method": {"name": "des_loc", "sync_every": {long: 2}}},
        {"method": {"name": "des_loc", "sync_every": {"params": 2, long: 2}}},
        {"codecs": {long: "int8"}},
        {"codecs": {"params": long}},
        {"model": long},
        {"model": {"dim": many}},
        {"scenario": {"slow": {long: 2}}},
        {"split": long},
        {"dtype": long},
        {"metrics": [long]},
        {"lora": {"ranks": [4] * 100_000}},
    ):
        refused(lambda raw=raw: Recipe.of(raw))
    refused(lambda: Recipe.of(long))
    refused(lambda: Recipe.of({}, [long]))
    refused(lambda: Recipe.of({}, [f"{long}=1"]))
    refused(lambda: Recipe.of({}, [f"steps={long}"]))
    refused(lambda: Recipe.of({}, [f"steps.{long}=1"]))
    assert shown("short") == "'short'"


def test_a_key_stands_once(tmp_path: Path) -> None:
    """In files, in nested objects and in values of ``-o``. The same ``-o`` twice: the last counts, as everywhere in a shell."""
    file = tmp_path / "r.json"
    for text, words in {
        '{"steps": 4, "seed": 1, "steps": 5}': "the key 'steps' stands twice, as 4 and 5: keep one",
        '{"scenario": {"sample": 1, "sample": 1}}': "the key 'sample' stands twice",
        '{"scenario": {"outages": [{"worker": 1, "worker": 2, "last": 3}]}}': "the key 'worker' stands twice",
        '{"method": {"name": "ddp", "inner": {"lr": 0.1, "lr": 0.2}}}': "the key 'lr' stands twice",
    }.items():
        file.write_text(text)
        message = refused(lambda: Recipe.of(str(file)))
        assert words in message
        assert "r.json" in message
    assert "'1' stands twice" in refused(lambda: Recipe.of({}, ['scenario.slow={"1":2,"1":3}']))
    assert Recipe.of({}, ["steps=4", "steps=5"]).steps == 5


def test_odd_files(tmp_path: Path) -> None:
    """Nested deep, another encoding, too long, a name that no file can have: one line each; a BOM is no mistake."""
    file = tmp_path / "r.json"
    for data in (
        b"[" * 100_000,
        '{"steps": "é"}'.encode("latin-1"),
        b"{}" + b" " * (1 << 24),
        b"",
        b"\0",
        b'{"steps": 1' + b"0" * 5000 + b"}",
    ):
        file.write_bytes(data)
        assert "r.json" in refused(lambda: Recipe.of(str(file)))
    for name in ("\0", "x" * 5000, "x" * 5000 + ".json"):
        refused(lambda name=name: Recipe.of(name))
    file.write_bytes(b'\xef\xbb\xbf{"steps": 4}')
    assert Recipe.of(str(file)).steps == 4


# --- objects ---------------------------------------------------------------------------------------------------------


class MyDiLoCo(DiLoCo):
    def step(self, *_: Any) -> Any:
        raise AssertionError


class MySchedule(Schedule):
    pass


class MyGPT(GPT):
    pass


class MyOptimizer(Optimizer):
    pass


class MyScenario(Scenario):
    pass


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Recipe(method=MyDiLoCo()), "MyDiLoCo"),
        (lambda: Recipe().but(method=MyDiLoCo()), "MyDiLoCo"),
        (lambda: Recipe.of({"method": MyDiLoCo()}), "MyDiLoCo"),
        (lambda: lab.train({"method": MyDiLoCo()}), "MyDiLoCo"),
        (lambda: Recipe(schedule=MySchedule("wsd")), "MySchedule"),
        (lambda: Recipe().but(schedule=MySchedule("wsd")), "MySchedule"),
        (lambda: Recipe(model=MyGPT()), "MyGPT"),
        (lambda: Recipe().but(model=MyGPT()), "MyGPT"),
        (lambda: DiLoCo(inner=MyOptimizer("AdamW")), "MyOptimizer"),
        (lambda: DESLOC(outer=MyOptimizer("SGD")), "MyOptimizer"),
        (lambda: Recipe(scenario=MyScenario()), "MyScenario"),
        (lambda: Recipe(method=object()), "object is not registered"),
        (lambda: Recipe(method=DiLoCo), "give an object of it, DiLoCo(…)"),
        (lambda: name_of(MyDiLoCo()), "write @method('mydiloco') from lab.methods above its class"),
    ],
)
def test_nothing_else_is_trained_than_what_was_given(make: Callable[[], Any], name: str) -> None:
    """A recipe goes through names: an object of a class that no name stands for is refused, and never replaced by its parent."""
    assert name in refused(make)


def test_objects_of_the_lab_are_taken_as_they_are() -> None:
    """Also within a mapping, where they become what a file would say."""
    r = Recipe().but(
        method=DiLoCo(sync_every=3), schedule=Schedule("wsd"), model=GPT(dim=32), scenario=Scenario(sample=2)
    )
    assert r == Recipe(
        method=DiLoCo(sync_every=3), schedule=Schedule("wsd"), model=GPT(dim=32), scenario=Scenario(sample=2)
    )
    assert Recipe.of(r) is r
    assert Recipe.of({"method": DESLOC()}).method == DESLOC()


def one_of_my_own(steps: list[int]) -> type[DiLoCo]:
    class Mine(DiLoCo):
        def step(self, s: Any, grad: Any, comm: Any, t: int) -> Any:
            steps.append(t)
            return super().step(s, grad, comm, t)

    return Mine


def another(steps: list[int]) -> type[DiLoCo]:
    class Mine(DiLoCo):
        def step(self, s: Any, grad: Any, comm: Any, t: int) -> Any:
            steps.append(-t)
            return super().step(s, grad, comm, t)

    return Mine


def test_a_registered_method_of_ones_own_is_trained_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has a name; and its source belongs to the id, so that a run of an earlier version is not shown for it."""
    ids = []
    for make, sign in ((one_of_my_own, 1), (another, -1)):
        stepped: list[int] = []
        monkeypatch.setitem(METHODS, "mine", method("mine")(make(stepped)))
        r = tiny(METHODS["mine"](sync_every=2), corpus="grammar?tokens=20000")  # type: ignore[call-arg]
        assert lab.train(r.to_dict()).started is not None
        assert stepped == [sign * t for t in range(1, 7)]
        assert r.id.startswith("mine-3w-")
        assert "is known to this process alone" in refused(lambda r=r: lab.start(r, processes=3))
        ids.append(r.id)
    assert ids[0] != ids[1]


# --- sizes -----------------------------------------------------------------------------------------------------------

SIZES = [
    "model.dim=1000000000",
    f"model.vocab_size={2**63 - 1}",
    "num_workers=1000000000000",
    "batch_size=1000000000000",
]
SIZES += ["context=1000000000000", "steps=1000000000000000", "model.mlp_dim=1000000000000", "lora.ranks=[1000000000]"]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_beyond_the_machine_are_refused_on_numbers_alone(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before text is read or anything is made: at once, and without memory."""
    monkeypatch.setattr("lab.runs.build.training_data", lambda *_: pytest.fail("the text was read"))
    before = psutil.Process().memory_info().rss
    r = Recipe.of("ddp", [size, "corpus=grammar"])
    if "lora" in size:
        r = r.but(model={"dim": 10**6, "num_heads": 2})
    message = refused(lambda: Trainer(r))
    assert "GB of memory" in message or "more than can be counted" in message
    assert psutil.Process().memory_info().rss - before < 1e8
    if not size.startswith(("batch_size", "lora", "model.mlp_dim")):
        refused(lambda: Trainer(r.but(context=2**62) if "context" in size else r, dry=True))


def test_so_many_workers_take_no_time_to_check() -> None:
    """Neither their ranks nor the overlaps that would fit are listed one by one."""
    many = 2**63 - 1
    assert Recipe.of({"num_workers": many, "lora": {"ranks": [2]}}).num_workers == many
    fomoe = {"method": "fomoe", "model": "moe-nano", "num_workers": many, "placement": {"overlap": 2}}
    assert f"use an overlap of {many}, or other" in refused(lambda: Recipe.of(fomoe))
    assert "use an overlap of 3, 6, or other" in refused(lambda: Recipe.of(fomoe | {"num_workers": 6}))


@pytest.mark.parametrize(
    "model",
    [
        GPT(dim=8, num_layers=3, num_heads=2),
        GPT(dim=8, mlp_dim=5, vocab_size=11),
        MoE(dim=8, num_layers=3),
        MoE(dim=8, skip_token=True, num_experts=4, num_shared_experts=2, expert_dim=3, vocab_size=300),
    ],
)
def test_parameters_are_counted_without_a_model(model: GPT | MoE) -> None:
    with torch.device("meta"):
        module = model.build(256, 16)
    unit = getattr(module, "tensor_unit", lambda name: None)
    experts = sum(p.numel() for name, p in module.named_parameters() if unit(name))
    everywhere = sum(p.numel() for name, p in module.named_parameters() if not unit(name))
    assert model.num_params(256) == (everywhere, experts)


def test_what_is_asked_for_at_first_is_not_more_than_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the memory that is needed in the end, neither look refuses; with a little less, both do."""
    needed: list[float] = []
    monkeypatch.setattr("lab.runs.build._refuse_above", lambda parts, *_: needed.append(sum(parts.values())))
    for r in (tiny(), tiny(model=MoE(dim=8)), tiny("fedit", lora=LoRA(ranks=(2,)))):
        check_size(r, 3, torch.device("cpu"))
        check_memory(r, Shape(256, r.context), 3, torch.device("cpu"))
        modules = (20_000 + 50_000 * r.model.num_layers + 8_000 * r.model.num_layers * 8) * 4
        assert needed[0] - modules - 1000 <= needed[1]
        needed.clear()


# --- notes -----------------------------------------------------------------------------------------------------------

NO_DIFFERENCE: dict[str, list[tuple[list[str], str]]] = {
    "fedprox": [
        (
            ["clients.inner_states=kept", "method.inner_states=reset"],
            "with method.inner_states = 'reset' every round begins",
        ),
        (["split=draw:1", "clients.held_out=0.2"], "holds out nothing"),
        (["corpus=grammar"], "corpus = 'grammar' makes no difference without running text"),
    ],
    "des_loc": [
        (["steps=40"], "method.sync_every.exp_avg = 48 is longer than the 40 steps of the run"),
        (
            ['scenario.outages=[{"worker":1,"first":900,"last":999}]'],
            "worker 1 is to be down from step 900 on, after the",
        ),
        (
            ['scenario.outages=[{"worker":1,"last":999}]'],
            "down in every step, and so without a part in anything: worker 1",
        ),
        (
            ['scenario.outages=[{"worker":0,"last":384},{"worker":1,"last":200},{"worker":1,"first":150,"last":999}]'],
            "workers 0, 1",
        ),
        (
            [f"scenario.outages={json.dumps([{'worker': w, 'last': 999} for w in range(4)])}"],
            "all workers are down in every step: nothing is trained",
        ),
        (["codecs.grads=int8"], "codecs.grads = 'int8': des_loc never sends grads, but params, exp_avg, exp_avg_sq"),
        (['metrics=["rates","rates"]'], "metrics names rates 2 times"),
        (['metrics=["rates"]', "metrics_every=1000"], "metrics are not measured"),
        (["metrics_every=7"], "metrics_every = 7 makes no difference without metrics"),
        (["scenario.mean_outage=3"], "scenario.mean_outage = 3.0 makes no difference without scenario.failure_rate"),
        (["scenario.sample_every=3"], "scenario.sample_every = 3 makes no difference without scenario.sample"),
        (["schedule.kind=constant", "schedule.final=0.5"], "schedule.final = 0.5 makes no difference without"),
        (["routing_every=3"], "routing_every = 3 makes no difference without a model with experts"),
        (["placement.every=3"], "placement.every = 3 makes no difference without a model with experts"),
        (["lora.alpha=3"], "lora.alpha = 3.0 makes no difference without lora.ranks"),
        (
            ["method.max_norm=null", "method.clip=value"],
            "method.clip = 'value' makes no difference without method.max_norm",
        ),
    ],
    "diloco": [
        (["codecs.grads=int8"], "never sends grads"),
        (["method.sync_every=999"], "nothing is ever synchronised"),
    ],
    "ddp": [(["codecs.exp_avg=int8"], "ddp never sends exp_avg, but grads")],
    "mt_dao": [
        (["steps=128"], "method.warm.steps = 128 lasts for the 128 steps of the run: method.inner takes no step")
    ],
    "noloco": [(["method.group_size=99"], "method.group_size = 99 is more than the 4 workers")],
    "sparta": [
        (['method.outer={"name":"SGD","lr":1}'], "method.outer_every = 1,000 is longer than"),
        (["method.outer_every=3"], "method.outer_every = 3 makes no difference without method.outer"),
    ],
    "fomoe": [(["placement.kind=random", "placement.every=99"], "no expert moves")],
    "prelort": [
        (['lora.targets=["attention.qkv","attention.qkv"]'], "lora.targets names attention.qkv 2 times"),
        (["lora.alpha=3", "lora.scale=5"], "lora.scale = 5 makes no difference beside lora.alpha"),
        (
            ["method.nested=none", "method.omega=rank"],
            "method.omega = 'rank' makes no difference without method.nested",
        ),
    ],
}


@pytest.mark.parametrize(
    ("preset", "overrides", "words"), [(p, o, w) for p, cases in NO_DIFFERENCE.items() for o, w in cases]
)
def test_what_makes_no_difference_gets_a_note(preset: str, overrides: list[str], words: str) -> None:
    said = notes(Recipe.of(preset, overrides))
    assert any(words in note for note in said), said
    assert all("\n" not in note for note in said)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_need_no_note(preset: str) -> None:
    assert notes(Recipe.of(preset)) == []


def test_notes_come_before_the_run() -> None:
    """As events of step 0, once, also where the whole trace is needed to know; a resumed run does not repeat them."""
    never = Scenario(failure_rate=1.0, mean_outage=1e30)
    r = tiny(DiLoCo(sync_every=2), scenario=never, codecs={"grads": "int8"})
    events = list(Trainer(r, corpus=corpus()).events())
    warned = [(i, e) for i, e in enumerate(events) if isinstance(e, Warned) and e.step == 0]
    assert [i for i, _ in warned] == [1, 2]
    assert [e.message[:24] for _, e in warned] == ["all workers are down in ", "codecs.grads = 'int8': d"]


def test_run_and_plan_tell_them(tmp_path: Path) -> None:
    """`lab run` and `lab plan` as lines beside their output, ``--json`` as a list."""
    options = ["-o", "steps=4", "-o", "model=nano", "-o", "schedule.warmup=0", "-o", "method.sync_every=9"]
    run = ["-o", "corpus=grammar?tokens=20000", "-o", "eval_windows=4", "-o", "batch_size=2", "--runs", str(tmp_path)]
    note = "note: method.sync_every = 9 is longer than the 4 steps of the run: nothing is ever synchronised\n"
    for command in (["plan", "diloco", *options], ["run", "diloco", *options, *run]):
        out = CliRunner().invoke(main, command)
        assert out.exit_code == 0, out.output
        assert note in out.stderr
    told = json.loads(CliRunner().invoke(main, ["plan", "diloco", *options, "--json"]).stdout)
    assert told["notes"] == [note.removeprefix("note: ").rstrip()]


@pytest.mark.parametrize("override", ["split=nonsense", "corpus=nonsense", "corpus=text:/no/such/folder"])
def test_plan_refuses_what_a_run_would(override: str) -> None:
    out = CliRunner().invoke(main, ["plan", "diloco", "-o", override])
    assert out.exit_code == 2
    assert len(out.stderr.strip().splitlines()) == 1


# --- what is odd and fine --------------------------------------------------------------------------------------------

FINE: list[tuple[str, list[str]]] = [
    ("des_loc", ['scenario.outages=[{"worker":1,"first":3,"last":999}]']),
    ("des_loc", ["scenario.failure_rate=1"]),
    ("diloco", ["codecs.params=topk:1e-30"]),
    ("ddp", ["model.vocab_size=1000000"]),
    ("ddp", ["model.dropout=0.999999999"]),
    ("ddp", ["method.max_norm=1e-30"]),
    ("ddp", ['method.inner.options={"eps":1e18}']),
    ("lordo", ["method.rank=1000000", 'method.full_rank=["foo"]']),
    ("demo", ["method.topk=1000000", "method.decay=1"]),
    ("sparta", ["method.fraction=1e-30"]),
    ("diloco", ['method.outer={"name":"Rprop"}']),
    ("fomoe", ["model.num_shared_experts=9"]),
    ("fomoe", ["placement.kind=random", "placement.warmup=1000000"]),
]


def test_experts_whose_numbers_are_drawn() -> None:
    """SPARTA averages numbers that belong to no tensor by name; its routers are looked at all the same."""
    r = tiny("sparta", model=MoE(dim=8), routing_every=2)
    events = list(Trainer(r, corpus=corpus()).events())
    routed = [e for e in events if isinstance(e, Routed)]
    assert len(routed) == 3
    assert all(x is None for row in routed[-1].divergence_LE for x in row)


@pytest.mark.parametrize(("preset", "overrides"), FINE)
def test_what_is_odd_and_means_something_is_taken(preset: str, overrides: list[str]) -> None:
    """At least one element is sent, a rank is cut to the shorter side, an outage may last to the end: documented, so no note."""
    assert notes(Recipe.of(preset, overrides)) == []


def test_presets_in_words_are_what_they_are() -> None:
    for name in PRESETS:
        recipe, (method, *others) = Recipe.of(name), in_words(name).split(", ")
        assert METHODS[method] is type(recipe.method), name
        workers = f"{recipe.clients.num:,} clients" if recipe.clients.num else f"{recipe.num_workers} worker"
        assert any(words.startswith(workers) for words in others), name
        assert others[-1] == f"{recipe.steps:,} steps", name
        model = next((size for size, shape in NAMED.items() if shape == recipe.model), None)
        assert model is None or model in others, name
