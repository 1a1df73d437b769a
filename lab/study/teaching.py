"""Exercises whose checks hint, and the run that the classroom replays.

A check compares an answer with what the lab's own ledger, plan or optimizer says, and with what typical slips would have
given; it says which idea to think over, and never the solution. What was not answered yet is no error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor

from lab.costs.network import human
from lab.engine.ledger import Ledger
from lab.engine.optim import Nesterov
from lab.ground.errors import LabError, RecipeError
from lab.ground.seeds import generator
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.knobs import periods, with_periods
from lab.runs.plan import Plan, plan
from lab.runs.trainer import Trainer, dry_run
from lab.study.predictions import CHECKED

CLOSE = 0.005  # relative: three digits are enough
RIGHT, NOT_YET, OPEN = "Right", "Not yet", "Not answered yet"
P = ParamSpec("P")


@dataclass(frozen=True)
class Checked:
    """What a check says: `RIGHT`, `NOT_YET` with hints, or `OPEN`. Shows itself as words.

    ``exercise``: which it is, for whoever gathers them (`lab.study.predictions`).
    """

    verdict: str
    hints: tuple[str, ...] = ()
    exercise: str = ""

    @property
    def right(self) -> bool:
        return self.verdict == RIGHT

    def __repr__(self) -> str:
        if len(self.hints) < 2:
            return f"{self.verdict}: {self.hints[0]}." if self.hints else f"{self.verdict}."
        return f"{self.verdict}. Several slips would give this:\n" + "\n".join(f"- {hint}" for hint in self.hints)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Words, and what is gathered from notebooks."""
        kept = {"exercise": self.exercise, "verdict": self.verdict, "hints": list(self.hints)}
        return {"text/plain": repr(self), CHECKED: kept}


def not_yet(*hints: str) -> Checked:
    return Checked(NOT_YET, hints)


def exercise(name: str) -> Callable[[Callable[P, Checked]], Callable[P, Checked]]:
    """Checks say which exercise they are of."""

    def named(check: Callable[P, Checked]) -> Callable[P, Checked]:
        @wraps(check)
        def checked(*given: P.args, **options: P.kwargs) -> Checked:
            return replace(check(*given, **options), exercise=name)

        return checked

    return named


# --- how many bytes? -------------------------------------------------------------------------------------------------


@exercise("bytes of one worker")
def check_sent_bytes(answer: object, recipe: Recipe) -> Checked:
    """Is this the payload, in bytes, that one worker hands over in the whole run of ``recipe``?

    What is right comes from a dry run. The recipe's workers must all send the same.

    Raises
    ------
    RecipeError
        for a recipe whose workers do not all send the same: the question would have several answers.
    """
    forecast = plan(recipe)
    if len(set(forecast.payload_bytes_W)) != 1 or not forecast.payload_bytes:
        raise RecipeError("workers that send nothing, or not all the same, are no exercise: take one recipe for all")
    if answer is None or answer is ...:
        return Checked(OPEN, ("put the number of bytes in place of the dots",))
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer) or answer <= 0:
        return not_yet(f"{answer!r} is no number of bytes: give one number greater than 0")
    right = forecast.payload_bytes
    if _close(answer, right):
        return Checked(RIGHT, ("the ledger of a dry run has the same number",))
    slips = [
        hint for value, hint in _byte_slips(recipe, forecast) if _close(answer, value) and not _close(value, right)
    ]
    if slips:
        return not_yet(*dict.fromkeys(slips))
    far = "too much" if answer > right else "too little"
    return not_yet(
        f"{far}. Take one state at a time: in how many steps does it travel, and how large is one copy of it"
    )


def _byte_slips(recipe: Recipe, forecast: Plan) -> Iterator[tuple[float, str]]:
    """What typical slips give, and what to say about them."""
    right, states, workers = forecast.payload_bytes, forecast.states, recipe.num_workers
    bits = "links are sold in bits per second, payload is counted in bytes, and 8 bits are a byte"
    yield 8 * right, bits
    yield right / 8, bits
    yield (
        sum(forecast.payload_bytes_W),
        "that is what all workers hand over together: the question is about one of them",
    )
    yield right / workers, "a worker hands over its whole copy, not its share of one: do not divide by the workers"
    yield forecast.wire_bytes, "that is what a link of a ring carries, 2(n−1)/n times the payload: asked is the payload"
    yield (
        forecast.wire_bytes * workers,
        "that is what all links of a ring carry together: asked is one worker's payload",
    )
    number = torch.float32.itemsize
    yield right / number, "so many numbers travel, but each of them is several bytes long (float32)"
    yield right / 2, "numbers travel as float32 here, not in 16 bits"
    yield 2 * right, "numbers travel as float32 here, not in 64 bits"
    totals = [s.total_bytes for s in states]
    for size in range(1, len(states)):
        for some in combinations(totals, size):
            words = f"only {size} of {len(states)} states" if size > 1 else "one state alone"
            yield sum(some), f"{words} would give this: parameters and both moments travel, each on a period of its own"
    yield forecast.ddp_bytes, "that is one copy in every step, as DDP sends: here nothing travels between two syncs"
    if len(states) > 1:
        yield len(states) * forecast.ddp_bytes, "that is all states in every step: nothing travels between two syncs"
    rarely = "travel more rarely than the parameters" if len(states) > 1 else "do not travel"
    yield forecast.local_adam_bytes, f"that is Local Adam: here the moments {rarely}"
    each = sum(s.bytes_each for s in states)
    yield each, "that is one sync of every state: how many syncs fit into the run"
    yield right + each, "one sync too many of every state: the first comes after a whole period, not at the start"
    every = periods(recipe.method)
    if every is not None:
        by_state = every if isinstance(every, dict) else {s.state: every for s in states}
        whole = sum(s.bytes_each * recipe.steps / by_state[s.state] for s in states)
        yield whole, "a sync takes place or it does not: round the number of syncs of each state down"
        up = sum(s.bytes_each * math.ceil(recipe.steps / by_state[s.state]) for s in states)
        yield up, "the last sync of a state that would come after the end of the run does not take place: round down"
    for power, decimal, binary in ((1, "kB", "KiB"), (2, "MB", "MiB"), (3, "GB", "GiB")):
        yield right / 1000**power, f"that looks like {decimal}: asked are bytes"
        yield right / 1024**power, f"that looks like {binary}: asked are bytes"
        yield right * (1000 / 1024) ** power, f"a {decimal} is {1000**power:,} bytes here, as networks count"
        yield right * (1024 / 1000) ** power, f"a {decimal} is {1000**power:,} bytes here, as networks count"


# --- which periods fit? ----------------------------------------------------------------------------------------------


@exercise("periods within a budget")
def check_periods(answer: object, recipe: Recipe, budget_bytes: float, at_least: float = 0.8) -> Checked:
    """Do these sync periods keep one worker's payload within a budget, and make use of it?

    Parameters
    ----------
    answer
        local steps between two syncs by state, as DES-LOC's ``sync_every``: parameters and every state of the inner optimizer.
    recipe
        of DES-LOC; its own periods do not matter.
    budget_bytes
        payload that one worker may hand over in the whole run.
    at_least
        the part of the budget that is to be used.
    """
    names = ["params", *recipe.method.inner.state_names]
    if answer is None or answer is ...:
        return Checked(OPEN, (f"give a period to each of {', '.join(names)}",))
    if not isinstance(answer, Mapping):
        return not_yet(f"{answer!r} is one value: give each state its own, as in {{'params': …, …}}")
    if missing := [name for name in names if name not in answer]:
        return not_yet(f"{_and(missing)} would never be averaged: a state without a period stays with its worker")
    try:
        given = periods(with_periods(recipe.method, dict(answer)))
        chosen = recipe.but(method=recipe.to_dict()["method"] | {"sync_every": given})
    except LabError as error:
        return not_yet(str(error))
    every = periods(chosen.method)
    assert isinstance(every, dict)  # as in the recipe that was given
    if never := [name for name in names if every[name] > recipe.steps]:
        return not_yet(f"{_and(never)} would never travel: the run has only {recipe.steps:,} steps")
    ledger = Ledger(dry_run(chosen))
    share = ledger.total_bytes(0) / budget_bytes
    if share > 1:
        by_state = ledger.by("state", worker=0)
        (dearest,) = max(by_state, key=lambda state: by_state[state])
        hint = f"over the budget, by a factor of {share:.2f}; {dearest} takes the largest part of it"
        return not_yet(hint + _other_budget(share, at_least, recipe.num_workers))
    if every["params"] > min(every[name] for name in names[1:]):
        return not_yet(
            "it fits, but some moment travels more often than the parameters. What is lost of each if it is averaged more rarely: a mean over "
            "many steps, a mean over a few, or all that was learned since the last average"
        )
    if share < at_least:
        hint = f"it fits, but {1 - share:.0%} of the budget is left: which state would gain most from travelling more often"
        return not_yet(_other_budget(share, at_least, recipe.num_workers) or hint)
    return Checked(RIGHT, (f"{human(ledger.total_bytes(0))} a worker, {share:.0%} of the budget",))


def _other_budget(share: float, at_least: float, num_workers: int) -> str:
    """What was taken for the budget, if with that it would have been used well; else nothing. ``share`` of it that is used."""

    def nearly(factor: float) -> bool:
        """Whether the budget would be used well if it were ``factor`` times what it is."""
        return at_least <= share / factor <= 1

    if share > 1 and nearly(8):
        return ". It would do if the budget were in bits: it is in bytes"
    if share > 1 and nearly(num_workers):
        return f". It would do if the budget were that of all {num_workers} workers: it is that of one"
    if share < 1 and nearly(1 / 8):
        return "far below the budget, as if it had been divided by 8: payload and budget are both in bytes"
    if share < 1 and nearly(1 / num_workers):
        return "far below the budget, as if all workers shared it: each of them has a budget of its own"
    return ""


# --- an update rule --------------------------------------------------------------------------------------------------

Outer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # shared [P], local_W [W, P], velocity [P]


@exercise("outer step")
def check_outer_step(rule: Callable[..., Any], lr: float = 0.7, momentum: float = 0.9) -> Checked:
    """Is ``rule(shared, local_W, velocity) -> (shared, velocity)`` DiLoCo's outer step, Nesterov on the pseudo-gradient?

    Parameters
    ----------
    rule
        from the agreed parameters ``[P]``, every worker's own ``[W, P]`` at the end of a round, and the velocity ``[P]`` (zero at
        first) to the new agreed parameters and velocity. How the velocity is scaled is up to the rule.
    lr, momentum
        that the rule uses.
    """
    moves = torch.randn(
        4, 3, 5, generator=generator(0, "outer step"), dtype=torch.float64
    )  # rounds, workers, parameters
    try:
        got = _walk(rule, moves)
    except Exception as error:
        return not_yet(f"the rule raised {type(error).__name__}: {error}")
    if got == OPEN:
        return Checked(OPEN, ("write the rule in place of the dots",))
    if isinstance(got, str):
        return not_yet(got)
    right = _walk(_oracle(lr, momentum), moves)
    if _same(got, right):
        return Checked(
            RIGHT, (f"{len(moves)} rounds agree with torch.optim.SGD(nesterov=True) on the pseudo-gradient",)
        )
    for wrong, hint in _outer_slips(lr, momentum):
        if _same(got, _walk(wrong, moves)):
            return not_yet(hint)
    where = next(k for k, (a, b) in enumerate(zip(got, right, strict=True)) if not _same([a], [b]))
    hint = f"the first {where} of {len(moves)} rounds are right, the next is not: what does the velocity remember"
    if where == 0:
        away = ((got[0] - _start(moves)) @ moves[0].mean(0)).item() < 0
        hint = "the first round already differs: by hand, with velocity 0, what should become of the parameters"
        hint = "the parameters move away from where the workers went" if away else hint
    return not_yet(hint)


def _outer_slips(lr: float, m: float) -> Iterator[tuple[Outer, str]]:
    """Rules that are nearly right, and what to say about them."""

    def nesterov(x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = m * v + g
        return x - lr * (g + m * v), v

    def plain_momentum(x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = m * v + g
        return x - lr * v, v

    def running_mean(x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = m * v + (1 - m) * g
        return x - lr * (g + m * v), v

    sign = "the sign: a pseudo-gradient is shared − local, since an optimizer goes against a gradient"
    yield _rule(nesterov, _backwards), sign
    yield _rule(plain_momentum, _backwards), sign
    hint = "the velocity alone moves the parameters: Nesterov looks one step ahead of it. What does it add"
    yield _rule(plain_momentum), hint
    hint = "that is the plain average: where do the outer rate and the velocity come in"
    yield _rule(lambda x, g, v: (x - g, v)), hint
    hint = "the velocity never comes in: a round should remember the rounds before it"
    yield _rule(lambda x, g, v: (x - lr * g, v)), hint
    hint = "the velocity forgets the rounds before: use the one that comes in, and return the new one"
    yield _rule(lambda x, g, v: nesterov(x, g, 0 * v)), hint
    hint = "the velocity is a running mean: Nesterov's is a running sum, as in torch.optim.SGD"
    yield _rule(running_mean), hint
    yield _rule(lambda x, g, v: nesterov(x, g / lr, v)), "the outer learning rate is missing"
    hint = "the sum over the workers: it should be their mean"
    yield _rule(nesterov, lambda x, local_W: (x - local_W).sum(0)), hint
    yield _rule(nesterov, lambda x, local_W: x - local_W[0]), "only one worker is listened to: take the mean over all"


def _pseudo_gradient(x: Tensor, local_W: Tensor) -> Tensor:
    return x - local_W.mean(0)


def _backwards(x: Tensor, local_W: Tensor) -> Tensor:
    return local_W.mean(0) - x


def _rule(
    step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    gradient: Callable[[Tensor, Tensor], Tensor] = _pseudo_gradient,
) -> Outer:
    """A step from parameters, gradient and velocity, on this gradient."""
    return lambda x, local_W, v: step(x, gradient(x, local_W), v)


def _oracle(lr: float, momentum: float) -> Outer:
    """The outer optimizer as the lab makes it, on one tensor."""
    spec = Nesterov(lr, momentum)

    def rule(shared: Tensor, local_W: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        leaf = torch.nn.Parameter(shared.clone())
        optimizer = torch.optim.SGD([leaf], lr=spec.lr, **spec.options)
        optimizer.state[leaf]["momentum_buffer"] = velocity.clone()
        leaf.grad = shared - local_W.mean(0)
        optimizer.step()
        return leaf.detach(), optimizer.state[leaf]["momentum_buffer"]

    return rule


def _start(moves: Tensor) -> Tensor:
    return torch.linspace(-1, 1, moves.shape[-1], dtype=moves.dtype)


def _walk(rule: Callable[..., Any], moves: Tensor) -> list[Tensor] | str:
    """The agreed parameters after every round in which workers move so, or what is wrong with what the rule gives back."""
    shared, out = _start(moves), list[Tensor]()
    velocity = torch.zeros_like(shared)
    for moves_W in moves:
        back = rule(shared.clone(), shared + moves_W, velocity.clone())
        if back is None or back is ... or (isinstance(back, tuple) and any(part is ... for part in back)):
            return OPEN
        if not isinstance(back, Sequence) or len(back) != 2 or not all(isinstance(part, Tensor) for part in back):
            return "give back two tensors: the new shared parameters and the new velocity"
        for part, name in zip(back, ("parameters", "velocity"), strict=True):
            if part.shape != shared.shape:
                return f"the {name} come back as {list(part.shape)} instead of {list(shared.shape)}: average over the workers"
            if not part.isfinite().all():
                return f"the {name} are no longer finite"
        shared, velocity = (part.detach().double() for part in back)
        out.append(shared)
    return out


def _same(a: Any, b: Any) -> bool:
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in zip(a, b, strict=True))


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * abs(b)


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)


# --- the run that is replayed ----------------------------------------------------------------------------------------

STORED: dict[str, Any] = {
    "model": "nano",
    "corpus": "stdlib",
    "num_workers": 4,
    "steps": 192,
    "batch_size": 8,
    "context": 64,
    "eval_every": 8,
    "eval_windows": 32,
    "checkpoint_every": 0,
    "schedule": {"kind": "constant", "warmup": 16},
    "method": {"name": "des_loc", "sync_every": {"params": 8, "exp_avg": 24, "exp_avg_sq": 48}},
}
KNOB_CHANGES: dict[int, dict[str, Any]] = {  # by the first local step in which they are effective
    65: {"lr": 8.0},
    97: {"lr": 1.0},
    129: {"sync_every": {"params": 32}},
    145: {"down": [3]},
    177: {"down": []},
}


def with_knobs(trainer: Trainer, turned: Mapping[int, Mapping[str, Any]]) -> Trainer:
    """A trainer whose knobs are turned at these steps."""
    trainer.knob_source = lambda t: turned.get(t, {}).items()
    return trainer


def record(folder: str | Path) -> RunFolder:
    """Make the stored run anew: ``python -m lab.study.teaching notebooks/stored/turned``. Needs some seconds, and no network."""
    run = RunFolder(folder)
    for _ in with_knobs(Trainer(Recipe.of(STORED)), KNOB_CHANGES).events(run):
        pass
    return run


if __name__ == "__main__":
    print(record(sys.argv[1]).path)
