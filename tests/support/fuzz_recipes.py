"""Recipes as a careless hand, a broken program or a hostile one writes them, read, planned and, some of them, run.

Seeded: number ``i`` is the same recipe on every machine. ``python tests/support/fuzz_recipes.py 5000 500`` reads 5,000, runs 500 of those
that are accepted (clamped to small sizes where the mutation is not about them), and prints what became of them; the suite
does so with a few (``ISTHMUS_FUZZ=5000`` there means the same).
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

import lab.runs.build
from lab.engine.optim import ELEMENTWISE
from lab.ground.errors import LabError, RecipeError
from lab.methods import METHODS, declared
from lab.models.gpt import GPT
from lab.models.moe import MoE
from lab.optimizers.options import KINDS
from lab.recipes.notes import notes
from lab.recipes.presets import PRESETS
from lab.recipes.recipe import Recipe
from lab.runs.build import check_size
from lab.runs.plan import plan
from lab.runs.trainer import train

MOST_SECONDS = 30.0  # of computing, for reading, planning and running one
FREE = 500_000_000  # bytes that a run may ask for: what it then takes is to be near that
Path_ = tuple[Any, ...]

DEEP: Any = 0
for _ in range(300):
    DEEP = [DEEP]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 0.0, -0.0, 0.5, 1.5, -2.5, 1e-300, 1e-9, 1e9, 1e30, 1e31, 1e308, 4.0, 1e12),
    *(float("inf"), float("-inf"), float("nan"), 2**31, 2**63 - 1, 2**63, 10**30, 10**400, -(10**30)),
    *(
        "",
        " ",
        "0",
        "4",
        "4_0",
        "٣",
        "inf",
        "nan",
        "None",
        "true",
        "null",
        "x" * 20_000,
        "naïve",
        "🦊",
        "\0",
        "a\nb",
        "\x1b[31m",
        "\ud800",
    ),
    *(
        "../..",
        "/dev/null",
        "text:/no/such",
        "hf:/no/such",
        "task:nothing",
        "topk:0.5",
        "int8",
        "AdamW",
        "params",
        "iid",
        "%s",
        "{}",
    ),
    *(
        [],
        [[]],
        {},
        [0],
        [1, 2, 3],
        ["a"],
        [None],
        [{}],
        {"a": 1},
        {"": 0},
        {"0": 1},
        {"0": 2, "1": 3},
        {"name": "AdamW"},
        {"size": "nano"},
    ),
    *({"params": 2}, {"🦊": "🦊"}, [1] * 5_000, {str(i): i for i in range(2_000)}, DEEP, {"worker": 0, "last": 3}),
]
FACTORS = (0, -1, 0.5, 2, 3, 10, 1e3, 1e6, 1e12, 1e-3, 1e-12, 1e40)
STATES = (
    "params",
    "grads",
    "exp_avg",
    "exp_avg_sq",
    "slow",
    "momentum",
    "momentum_buffer",
    "residual",
    "nothing",
    "exp_avg_1",
)
CODECS = (
    "bfloat16",
    "float16",
    "int8",
    "e3m0",
    "topk:0.1",
    "topk:0.1:forget",
    "topk:0",
    "topk:2",
    "topk:1e-9",
    "int9",
    "topk:x",
)
SPLITS = (
    "iid",
    "domain",
    "dirichlet:0.3",
    "dirichlet:0",
    "size:1",
    "size:-1",
    "size",
    "IID",
    "dirichlet:0.5 ",
    "dirichlet:1e9",
    "draw:3",
    "draw:3:0.5",
    "draw:0",
    "by:person",
    "by:",
)
CORPORA = (
    "grammar",
    "grammar?tokens=20000",
    "grammar?tokens=x",
    "grammar?tokens=0",
    "stdlibx",
    "text:",
    "text:/no/such",
    " grammar",
)


class Draw(random.Random):
    """What a mutation is made of."""

    def odd(self) -> Any:
        return json.loads(json.dumps(self.choice(ODD)))

    def whole(self) -> int:
        return self.choice([0, 1, 1, 2, 2, 3, 4, 5, 8, 16, 32, 100, 1000, -1, 10**6, 10**9, 10**12, 2**63 - 1, 2**63])

    def real(self) -> float:
        return self.choice(
            [0.0, 1e-12, 1e-3, 0.1, 0.3, 0.5, 0.9, 0.95, 0.999, 1.0, 1.1, 2.0, 5.0, 1e3, 1e9, 1e29, -0.1, -1.0]
        )

    def optimizer(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name in self.sample(
            [*KINDS, "maximize", "capturable", "differentiable", "lr", "nothing"], self.choice([0, 0, 1, 2, 3])
        ):
            pair = [self.real() for _ in range(self.choice([1, 2, 2, 2, 3]))]
            options[name] = self.choice([self.real(), pair, self.random() < 0.5, self.odd()])
        return {
            "name": self.choice([*ELEMENTWISE, "adamw"]),
            "lr": self.choice([1e-3, 0.1, self.real()]),
            "options": options,
        }

    def outage(self) -> dict[str, int]:
        times = sorted(self.choice([1, 2, 3, 4, 5, 9, 999]) for _ in range(2))
        if self.random() < 0.1:
            times.reverse()
        return {"worker": self.choice([0, 1, 2, 3, 4, 99]), "first": times[0], "last": times[1]}

    def part(self) -> tuple[str, Any]:
        """A field of a recipe, and what it may be set to; most of it means something."""
        return self.choice(
            [
                ("method", {"name": self.choice(list(METHODS))}),
                ("method", {"name": self.choice(list(METHODS)), "inner": self.optimizer()}),
                ("method", {"name": self.choice(["diloco", "photon", "des_loc", "fomoe", "sparta", "prelort"]), "outer": self.optimizer()}),
                ("model", self.choice(["nano", "moe-nano", "micro", "13B", "nowhere"])),
                ("model", {self.choice(["dim", "num_layers", "num_heads", "mlp_dim", "vocab_size"]): self.whole()}),
                ("model", {"size": "moe-nano", self.choice(["num_experts", "top_k", "expert_dim", "depth_base"]): self.whole()}),
                ("model", {"size": "moe-nano", self.choice(["skip_token", "renormalise"]): True, "gate": "softmax"}),
                ("model", {"dropout": self.real()}),
                ("lora", {"ranks": [self.choice([1, 2, 4, 8, 99]) for _ in range(self.choice([0, 1, 1, 3, 4, 10]))]}),
                ("lora", {"ranks": [2], "targets": self.choice([[], ["mlp.0"], ["attention.qkv", "mlp.2"], ["mlp.0"], ["x"], ["qkv"]])}),
                ("lora", {"ranks": [2], "alpha": self.real(), "train": self.choice(["B", "both", "A"]), "init": "gaussian"}),
                ("placement", {"overlap": self.choice([1, 2, 3, 4, 99]), "kind": self.choice(["fixed", "random"])}),
                ("placement", {"every": self.whole(), "warmup": self.whole(), "kind": "random", "overlap": 2}),
                ("codecs", {self.choice(STATES): self.choice(CODECS)}),
                ("codecs", {"params": self.choice(CODECS), "grads": self.choice(CODECS)}),
                ("scenario", {"outages": [self.outage() for _ in range(self.choice([0, 1, 2, 5]))]}),
                ("scenario", {"sample": self.choice([1, 2, 3, 99]), "sample_every": self.whole()}),
                ("scenario", {"failure_rate": self.real(), "mean_outage": self.real(), "catch_up": "params"}),
                ("scenario", {"slow": {self.choice(["0", "1", "99", "-1", "1.0"]): self.real()}}),
                ("schedule", {"kind": self.choice(["wsd", "cosine", "constant", "linear"]), "final": self.real()}),
                ("schedule", {"warmup": self.whole(), "kind": "wsd", "decay_fraction": self.real()}),
                ("metrics", self.sample(["alignment", "spectrum", "rates", "gradients", "activations", "noise", "membership"], self.randint(0, 3))),
                ("metrics_every", self.choice([1, 2, 3])),
                ("compute", {"accumulate": self.whole(), "vectorised": self.choice([None, True, False])}),
                ("compute", {"mixed_precision": "bf16", "device": self.choice(["cpu", "auto", "cuda", "mps", "tpu"])}),
                ("dtype", self.choice(["float32", "float64", "bfloat16", "float16"])),
                ("split", self.choice(SPLITS)),
                ("corpus", self.choice(CORPORA)),
                *((name, self.whole()) for name in ("num_workers", "steps", "batch_size", "context", "seed", "eval_every")),
                *((name, self.whole()) for name in ("routing_every", "eval_windows", "checkpoint_every")),
            ]
        )  # fmt: skip


def places(raw: Any, at: Path_ = ()) -> list[Path_]:
    """Where something can be put in another's place."""
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) and len(raw) < 50 else ()
    return ([at] if at else []) + [p for key, value in inner for p in places(value, (*at, key))]


def _at(raw: Any, path: Path_) -> Any:
    for key in path:
        raw = raw[key]
    return raw


def mutated(seed: int) -> tuple[dict[str, Any], set[str]]:
    """A recipe that may be wrong in several ways, and which of its fields were touched."""
    draw = Draw(seed)
    name = draw.choice(list(PRESETS))
    raw: dict[str, Any] = json.loads(json.dumps(PRESETS[name] if draw.random() < 0.5 else Recipe.of(name).to_dict()))
    touched: set[str] = set()
    for _ in range(draw.choice([1, 1, 1, 1, 2, 2, 3])):
        how = draw.random()
        if how < 0.45:
            key, value = draw.part()
            old = raw.get(key)
            raw[key] = (
                old | value if isinstance(old, dict) and isinstance(value, dict) and draw.random() < 0.6 else value
            )
            touched.add(key)
            continue
        path = draw.choice(places(raw) or [("method",)])
        touched.add(str(path[0]))
        holder, last = _at(raw, path[:-1]) if len(path) > 1 else raw, path[-1]
        if how < 0.7:
            holder[last] = draw.odd()
        elif how < 0.85 and isinstance(holder, dict) and isinstance(holder.get(last), int | float):
            with contextlib.suppress(OverflowError, ValueError):
                changed = holder[last] * draw.choice(FACTORS)
                holder[last] = int(changed) if isinstance(holder[last], int) and draw.random() < 0.8 else changed
        elif how < 0.9 and isinstance(holder, dict):
            value = holder.pop(last, None)
            if draw.random() < 0.7:
                holder[draw.choice([str(last) + "s", str(last)[:-1], "🦊", "", str(last).upper()])] = value
        elif how < 0.95 and isinstance(holder, dict):
            holder[
                draw.choice(["x", "name", "size", "path", "params", "0", "lr", "steps", "__class__", "x" * 5_000])
            ] = draw.odd()
        else:
            holder[last] = json.loads(json.dumps(_at(raw, draw.choice(places(raw)))))
    return raw, touched


def clamped(recipe: Recipe, touched: set[str], running: bool) -> Recipe:
    """The same in small. Raises RecipeError where that cannot be."""
    raw = recipe.to_dict()
    limits = {"steps": 6, "batch_size": 2, "context": 16, "eval_windows": 4, "num_workers": 10, "metrics_every": 4}
    if not running:
        limits = {"steps": 200, "num_workers": 64}
    for name, most in limits.items():
        raw[name] = min(raw[name], most)
    raw["schedule"]["warmup"] = min(raw["schedule"]["warmup"], raw["steps"] - 1)
    raw["scenario"]["outages"] = [o for o in raw["scenario"]["outages"] if o["worker"] < raw["num_workers"]]
    raw["scenario"]["slow"] = {w: x for w, x in raw["scenario"]["slow"].items() if int(w) < raw["num_workers"]}
    raw["compute"]["accumulate"] = min(raw["compute"]["accumulate"], raw["batch_size"])
    if raw["scenario"]["sample"]:
        raw["scenario"]["sample"] = min(raw["scenario"]["sample"], raw["num_workers"])
    if len(raw["lora"]["ranks"]) > 1:
        raw["lora"]["ranks"] = raw["lora"]["ranks"][: raw["num_workers"]]
    if not running:
        model = recipe.model
        if isinstance(model, MoE) and model.num_layers * model.num_experts > 256:  # 65,536 experts take their time
            raw["model"]["num_layers"] = max(1, 256 // model.num_experts)
        return Recipe.of(raw)
    for name, period in {"sync_every": raw["method"].get("sync_every")}.items():
        if "method" not in touched and isinstance(period, int):
            raw["method"][name] = min(period, max(2, raw["method"].get("num_fragments", 2)))
        elif "method" not in touched and isinstance(period, dict):
            raw["method"][name] = {state: min(p, 2 + i) for i, (state, p) in enumerate(period.items())}
    if declared(METHODS[raw["method"]["name"]]).server:
        raw["scenario"]["sample_every"] = raw["method"]["sync_every"]
    raw["start"] = ""  # what is pre-trained takes minutes
    if "lora" not in touched:
        raw["lora"]["ranks"] = [min(rank, 8) for rank in raw["lora"]["ranks"]]
    if "corpus" not in touched:
        raw["corpus"], raw["tokenizer"] = "grammar?tokens=20000", "bytes"
    if isinstance(recipe.model, GPT | MoE) and "model" not in touched:
        raw["model"] |= {"dim": 16, "num_layers": 2, "num_heads": 2, "vocab_size": None}
        raw["model"] |= (
            {"num_experts": 8, "expert_dim": 8, "top_k": 2} if isinstance(recipe.model, MoE) else {"mlp_dim": 24}
        )
    return Recipe.of(raw)


class Hang(BaseException):
    """Too long."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """So many seconds of computing, and twenty times as many of waiting: other programs may have the machine."""

    def ring(*_: Any) -> None:
        raise Hang

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 20 * seconds)}
    before = {which: signal.signal(which, ring) for which in clocks}
    for clock, limit in clocks.values():
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for clock, _ in clocks.values():
            signal.setitimer(clock, 0)
        for which, handler in before.items():
            signal.signal(which, handler)


@dataclass
class Figures:
    """What became of them."""

    count: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # tracebacks and hangs
    slowest: float = 0.0
    peak_bytes: int = 0  # resident, above that at the beginning
    longest: int = 0  # characters of a refusal
    lines: dict[str, list[str]] = field(default_factory=dict)  # refusals that came late, by when

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {what}" for what, n in self.count.most_common())
        return f"{counts}; slowest {self.slowest:.1f} s, peak {self.peak_bytes / 1e6:.0f} MB, longest refusal {self.longest}"


def fuzz(count: int, runs: int, first: int = 0, seconds: float = MOST_SECONDS) -> Figures:
    """Read ``count`` recipes, plan those that are accepted, and run ``runs`` of them, as if `FREE` bytes were free."""
    before, lab.runs.build.free_bytes = lab.runs.build.free_bytes, lambda device: FREE
    try:
        return _fuzz(count, runs, first, seconds)
    finally:
        lab.runs.build.free_bytes = before


def _fuzz(count: int, runs: int, first: int, seconds: float) -> Figures:
    figures, base = Figures(), psutil.Process().memory_info().rss
    for seed in range(first, first + count):
        began, stage = time.process_time(), "reading"
        raw, touched = mutated(seed)
        try:
            with within(seconds):
                recipe = Recipe.of(raw)
                assert Recipe.of(recipe.to_dict()) == recipe, "it reads back as another"
                assert Recipe.of(json.loads(json.dumps(recipe.to_dict()))).id == recipe.id, (
                    "it reads back under another id"
                )
                figures.count["accepted"] += 1
                stage = "noting"
                figures.count["with notes"] += bool(notes(recipe))
                stage = "weighing"
                with refusals(figures, "refused for their size"):
                    check_size(recipe, recipe.num_workers, torch.device("cpu"))
                stage = "planning"
                with refusals(figures, "refused by the plan"):
                    plan(clamped(recipe, touched, running=False)).to_text()
                    figures.count["planned"] += 1
                if figures.count["run"] < runs:
                    stage = "running"
                    with refusals(figures, "refused when run"):
                        small = clamped(recipe, touched, running=True)
                        figures.count["run"] += 1
                        with tempfile.TemporaryDirectory() as folder:
                            train(small, folder)
                        figures.count["run to the end"] += 1
        except RecipeError as error:
            figures.count["refused"] += 1
            said(figures, error)
        except Hang:
            figures.faults.append(f"seed {seed}: {stage} takes longer than {seconds:g} s: {shortly(raw)}")
        except Exception:
            last = traceback.format_exc().strip().splitlines()
            figures.faults.append(f"seed {seed}: {stage}: {' | '.join(last[-9:])[-900:]}: {shortly(raw)}")
        figures.slowest = max(figures.slowest, time.process_time() - began)
        figures.peak_bytes = max(figures.peak_bytes, psutil.Process().memory_info().rss - base)
    return figures


@contextlib.contextmanager
def refusals(figures: Figures, what: str) -> Iterator[None]:
    """Inside, an error for users is an answer like any other."""
    try:
        yield
    except LabError as error:
        figures.count[what if isinstance(error, RecipeError) else "diverged"] += 1
        figures.lines.setdefault(what, []).append(str(error))
        said(figures, error)


def said(figures: Figures, error: LabError) -> None:
    figures.longest = max(figures.longest, len(str(error)))
    assert "\n" not in str(error), f"several lines: {str(error)[:300]!r}"


def shortly(raw: Any) -> str:
    return json.dumps(raw)[:1500]


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = [int(x) for x in sys.argv[1:]]
    found = fuzz(*(numbers or [500, 50]))
    for what, lines in found.lines.items():
        print(what, *sorted(lines), sep="\n  ")
    print(*found.faults, found, sep="\n")
    sys.exit(bool(found.faults))
