"""The laws that every method keeps. Each is a function of a `Subject` that raises `Broken`; ``tests/laws`` holds the lab's own methods to them.

They need no recipe of a paper and no text: three workers with 40 parameters each, in float64, for a few steps of several rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.data.training_data import BatchSource
from lab.engine.comm import Communicator
from lab.engine.stack import Stack
from lab.events import Sent, Stepped
from lab.ground.errors import Diverged, shown
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.trainer import Trainer, dry_run
from lab.testing.generators import own_generators
from lab.testing.report import Broken, Laws, NotApplicable, words
from lab.testing.resume import stop_and_go
from lab.testing.subject import (
    OTHER,
    Bench,
    Deal,
    Subject,
    difference,
    in_words,
    off,
    rows,
    same_ledgers,
    together,
    unchanged,
)
from lab.testing.threads import InThreads, in_threads

LAWS: Laws[Subject] = Laws()
CLOSE = 1e-10  # for what is added up in another order
ROUNDING = 1e-12  # relative and absolute, of float64


def other(*workers: int) -> Deal:
    """These workers see batches that nobody else sees."""
    return lambda worker, t: (worker, t + OTHER * (worker in workers))


# --- what it says of itself ------------------------------------------------------------------------------------------


@LAWS.law(
    "recipe",
    "made, written down in a recipe as JSON, and read again",
    "options are fields under @config, of types that JSON has",
)
def recipe(s: Subject) -> None:
    r = s.recipe()
    again = Recipe.of(r.to_dict()).method
    for f in fields(s.method):  # type: ignore[arg-type]
        was, now = getattr(s.method, f.name), getattr(again, f.name)
        if was != now:
            raise Broken(f"{f.name} = {shown(was)} comes back as {shown(now)}")
    s.bench().close()
    for name in exceptions(s.method):
        if name not in LAWS.names():
            raise Broken(f"exceptions() names a law {name!r}, and the laws are {words(LAWS.names())}")


@LAWS.law(
    "averages",
    "which states go through comm.mean, against what averages says",
    "averages lists the states that codecs can be given for",
)
def averages(s: Subject) -> None:
    heard: set[str] = set()

    class Listening(Communicator):
        def mean(self, stack: Stack, state: str, *, codec: Any = None, **rest: Any) -> Stack:
            if codec is None:  # else it is the method's own business
                heard.add(state)
            return Communicator.mean(self, stack, state, codec=codec, **rest)

    bench = s.bench(dry=True)
    bench.comm = Listening(bench.state.fleet)
    bench.run(2 * s.steps)
    if odd := sorted(heard ^ set(s.method.averages)):
        raise Broken(
            f"{odd[0]!r} is {'averaged and not in averages' if odd[0] in heard else 'in averages and never averaged'}"
        )


def exceptions(method: Any) -> Mapping[str, str]:
    """Laws that a method does not claim, each with its reason (`lab.methods.Method`)."""
    return method.exceptions() if "exceptions" in dir(type(method)) else {}


# --- one worker and its neighbours -----------------------------------------------------------------------------------


@LAWS.law(
    "isolation",
    "only one worker is heard, and all others see other data: for that one nothing may change, bit for bit",
    "usually a norm, mean or product over all rows of a stack; what is between workers goes through comm",
)
def isolation(s: Subject) -> None:
    for w in (0, s.num_workers - 1):
        mine, changed = s.bench(heard=w), s.bench(heard=w, deal=other(*set(s.workers) - {w}))
        for t in together(mine, changed, s.steps):
            if odd := difference(mine.state, changed.state, [(w, w)]):
                raise Broken(f"what the others see changes {odd}, after step {t}")


@LAWS.law(
    "solitude",
    "only one worker is heard: it has to go the way of a run with that worker alone",
    "usually a sum where a mean is meant, or a number of workers that is counted twice",
)
def solitude(s: Subject) -> None:
    s.need_equal_workers()
    for w in (0, s.num_workers - 1):
        alone, among = s.bench(1, deal=lambda _, t, w=w: (w, t)), s.bench(heard=w)  # type: ignore[misc]
        for t in together(alone, among, s.steps):
            if odd := difference(alone.state, among.state, [(0, w)], CLOSE):
                raise Broken(f"alone and among silent ones: {odd}, after step {t}")


@LAWS.law(
    "hearing",
    "other data at one worker reaches all others within a few rounds",
    "nothing is sent, or what comm returns is not used (mean returns, mean_ works in place)",
)
def hearing(s: Subject) -> None:
    mine, changed = s.bench(), s.bench(deal=other(1))
    deaf = set(s.workers) - {1}
    for _ in together(mine, changed, 3 * s.steps):
        deaf = {w for w in deaf if not difference(mine.state, changed.state, [(w, w)], of="local")}
        if not deaf:
            return
    raise Broken(f"worker {min(deaf)} never hears of worker 1 in {3 * s.steps} steps")


@LAWS.law(
    "relabelling",
    "the same batches dealt to other workers: all results move along, and the same is sent",
    "a worker with a special number, or a draw by number: say so in exceptions() if it is meant",
)
def relabelling(s: Subject) -> None:
    s.need_equal_workers()
    deal = {w: (w - 1) % s.num_workers for w in s.workers}
    label = {old: new for new, old in deal.items()}
    plain, dealt = s.bench(), s.bench(deal=lambda w, t: (deal[w], t))
    for t in together(plain, dealt, s.steps):
        if odd := difference(plain.state, dealt.state, [(deal[w], w) for w in s.workers], CLOSE):
            raise Broken(f"{odd}, after step {t}")
        assert plain.loss_W is not None, "step returned no losses"
        assert dealt.loss_W is not None, "step returned no losses"
        if off(plain.loss_W[[deal[w] for w in s.workers]], dealt.loss_W, CLOSE):
            raise Broken(f"losses of step {t} are not those of the same batches")
    renamed = [replace(r, workers=tuple(sorted(label[w] for w in r.workers))) for r in plain.records]
    same_ledgers(_in_order(renamed), _in_order(dealt.records), "renamed, the ledgers differ")


def _in_order(records: Sequence[Sent]) -> list[Sent]:
    """Of what one call sent, that of the worker with the lowest number stands first, whatever others call it."""
    return sorted(records, key=lambda r: (r.step, r.state, r.op, r.workers))


@LAWS.law(
    "equal workers",
    "four workers that all see the same data are one worker",
    "usually a sum where a mean is meant, or weights that do not add up to 1",
)
def equal_workers(s: Subject) -> None:
    s.need_equal_workers()
    crowd, alone = s.bench(4, deal=lambda _, t: (0, t)), s.bench(1, deal=lambda _, t: (0, t))
    for t in together(crowd, alone, s.steps):
        if odd := difference(crowd.state, alone.state, [(w, 0) for w in range(4)], CLOSE):
            raise Broken(f"{odd}, after step {t}")


@LAWS.law(
    "plain optimizer",
    "one worker alone against torch's own optimizer, on the gradients as the method leaves them",
    "usually options of inner that are not used, a step too many, or another copy that is moved; if it is meant, say so in exceptions()",
)
def plain_optimizer(s: Subject) -> None:
    bench, inner = s.bench(1), s.method.inner
    if "inner" not in bench.state.optimizers:
        raise NotApplicable('it has no s.optimizers["inner"]')
    optimizer, params = bench.state.optimizers["inner"], bench.state.local["params"]
    given: list[list[Tensor]] = []
    optimizer.register_step_pre_hook(
        lambda opt, *_: given.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in _leaves(opt)])
    )
    own = inner.over(params.clone())
    leaves = _leaves(own)
    for t in range(1, s.steps + 1):
        bench.step()
        if not given:
            raise NotApplicable('s.optimizers["inner"] takes no steps: the method does')
        if len(given) != t:
            raise Broken(f's.optimizers["inner"] has taken {len(given)} steps after {t} local steps')
        for leaf, g in zip(leaves, given[-1], strict=True):
            leaf.grad = g
        own.step()
        far = max(off(x, leaf.detach(), CLOSE) for x, leaf in zip(params.blocks, leaves, strict=True))
        if far and (beside := _beside(bench, inner.state_names)):
            raise NotApplicable(f"it keeps {words(beside)} beside, which moves one worker alone as well")
        if far:
            raise Broken(f"after step {t} parameters are off by {far:.1e} from those of torch.optim's {inner.name}")


def _leaves(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return list(optimizer.param_groups[0]["params"])


def _beside(bench: Bench, known: tuple[str, ...]) -> list[str]:
    """The states of a method that are no parameters and not its inner optimizer's."""
    s = bench.state
    return [
        *(f"s.local[{name!r}]" for name in s.local if name not in ("params", *known)),
        *(f"s.shared[{name!r}]" for name in s.shared),
        *(f"s.optimizers[{name!r}]" for name in s.optimizers if name != "inner"),
    ]


# --- what is sent ----------------------------------------------------------------------------------------------------


@LAWS.law(
    "dry run",
    "the same step on tensors without storage writes the same ledger; so does lab.plan, with workers away and sampled",
    "traffic that depends on values: what needs numbers goes into a @numeric function, and shapes follow from options and t",
)
def dry(s: Subject) -> None:
    real, without = s.bench().run(s.steps), s.bench(dry=True).run(s.steps)
    same_ledgers(real.records, without.records, "in the run and in the dry run")
    if not real.records:
        raise Broken(f"nothing is sent in {s.steps} steps")
    away = Scenario(outages=(Outage(worker=1, first=2, last=s.round + 1), Outage(worker=2, last=2)))
    for scenario in (Scenario(), away, Scenario(sample=2, sample_every=s.round, catch_up="params")):
        r = s.recipe(scenario=scenario, steps=s.steps)
        sent = [e for e in s.trainer(r).events() if isinstance(e, Sent)]
        same_ledgers(sent, dry_run(r), "in the run and in its plan")


@LAWS.law(
    "processes",
    "three processes (threads of this one) with a worker each: states and ledgers are those of one process",
    "every process makes the same calls of comm: ask block.everywhere who holds a tensor, and block.holders whose rows are here",
)
def processes(s: Subject) -> None:
    one = s.bench().run(s.steps)

    def work(world: InThreads) -> Bench:
        return s.bench(world=world).run(s.steps)

    for w, part in enumerate(in_threads(s.num_workers, work)):
        same_ledgers(one.records, part.records, f"in one process and in process {w} of {s.num_workers}")
        served_elsewhere = part.state.served and w > 0  # the server's state is at the first process
        of = "local" if served_elsewhere else "both"
        if odd := difference(one.state, part.state, [(w, w)], CLOSE, of):
            raise Broken(f"process {w} of {s.num_workers}: {odd}, after {s.steps} steps")


# --- what is remembered, and what is drawn ---------------------------------------------------------------------------


@LAWS.law(
    "memory",
    "two runs of one object, step by step in turn: neither changes the other",
    "what a run remembers is in s.local, s.shared, s.optimizers or s.facts, never in the object, its class or its module",
)
def memory(s: Subject) -> None:
    if not type(s.method).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise Broken(f"{type(s.method).__name__} is not frozen: write @config from lab.ground.config above it")
    before = _attributes(s.method)
    straight, first, second = s.bench().run(s.steps), s.bench(), s.bench(deal=other(*s.workers))
    for _ in together(first, second, s.steps):
        pass
    now = _attributes(s.method)
    for name, value in now.items():
        if name not in before or before[name] != value:
            raise Broken(f"self.{name} has changed in a run")
    if odd := difference(straight.state, first.state, [(w, w) for w in s.workers]):
        raise Broken(f"with another run beside it {odd}")


def _attributes(method: Any) -> dict[str, str]:
    """Fields of an object and values of its class, as text."""
    own = {
        name: value for name, value in vars(type(method)).items() if not name.startswith("__") and not callable(value)
    }
    return {name: repr(value) for name, value in (own | vars(method)).items() if not isinstance(value, property)}


@LAWS.law(
    "seed",
    "twice the same run, with other global generators: the same numbers, and no global generator has moved",
    "draw from lab.ground.seeds.generator(seed, purpose, t), with a seed that is an option of the method",
)
def seed(s: Subject) -> None:
    with own_generators() as drawn:
        first = s.bench().run(s.steps)
        moved = drawn(reseed=True)
        second = s.bench().run(s.steps)
    if moved:
        raise Broken(f"it draws from {moved}")
    if odd := difference(first.state, second.state, [(w, w) for w in s.workers]):
        raise Broken(f"a second run is another one: {odd}")


@LAWS.law(
    "schedule",
    "with a schedule of zero no worker moves",
    "the inner step is self.inner.step_(s, t), or scaled by s.schedule(t)",
)
def schedule(s: Subject) -> None:
    s.need_equal_workers()
    bench = s.bench(4, schedule=lambda t: 0.0)
    before = rows({"params": bench.state.local["params"]}, 0)
    for t in range(1, s.steps + 1):
        bench.step()
        when = f"in step {t} although the schedule says 0"
        unchanged(before, bench.state.local, 0, when, ROUNDING)  # a weighted mean of equal numbers may round


@LAWS.law(
    "losses",
    "a loss that is not a number, at one worker: the step returns it, and the run ends and says so",
    "return the losses that grad(s) gave, as they are",
)
def losses(s: Subject) -> None:
    if s.data.vocab_size:
        raise NotApplicable("tokens are always numbers")
    trainer, at = s.trainer(s.recipe(steps=s.steps)), s.steps - 1
    data = trainer.built.grad.data
    assert data is not None
    trainer.built.grad.data = replace(data, batches=Poisoned(data.batches, 1, at))
    try:
        for _ in trainer.events():
            pass
    except Diverged as error:
        if f"step {at}" not in str(error):
            raise Broken(f"worker 1 has no number for a loss in step {at}, and the run says: {error}") from None
        return
    raise Broken(f"worker 1 has no number for a loss in step {at}, and the run goes on to its end")


class Poisoned:
    """Batches, of which that of one worker in one step holds no numbers."""

    def __init__(self, batches: BatchSource, worker: int, step: int):
        self.batches, self.at = batches, (worker, step)

    def get(self, worker: int, t: int) -> tuple[Tensor, Tensor]:
        x, y = self.batches.get(worker, t)
        return (x * float("nan") if (worker, t) == self.at else x), y


# --- down and back ---------------------------------------------------------------------------------------------------


def steps_of(trainer: Trainer) -> Iterator[int]:
    """The numbers of a run's steps, each as soon as it is done."""
    for event in trainer.events():
        if isinstance(event, Stepped):
            yield event.step


@LAWS.law(
    "down",
    "a worker that is away for a round neither moves nor sends, and the others go on",
    "rows of workers that are down stay: inner.step_ and copy_(…, s.fleet.up) see to that, in-place operations on whole blocks do not",
)
def down(s: Subject) -> None:
    first, last = 3, 2 + max(3, s.round)
    r = s.recipe(steps=last + 1, scenario=Scenario(outages=(Outage(worker=1, first=first, last=last),)))
    trainer = s.trainer(r)
    before: dict[tuple[str, str], Tensor] = {}
    for t in steps_of(trainer):
        if t == first - 1:
            before, others = rows(trainer.state.local, 1), rows(trainer.state.local, 0)
        elif t in range(first, last + 1):
            unchanged(before, trainer.state.local, 1, f"in step {t}, in which it is down")
    spoke = [r for r in trainer.comm.ledger if 1 in r.workers and first <= r.step <= last]
    if spoke:
        raise Broken(f"worker 1 is down from step {first} to {last}, and the ledger has {in_words(spoke[0])}")
    now = rows(trainer.state.local, 0)
    if not any(off(x, now[key]) for key, x in others.items()):
        raise Broken("worker 0 does not move while worker 1 is down")


@LAWS.law(
    "back",
    "who comes back, or joins late, is told first what all agree on; what it had itself does not matter",
    "with server=True the method hands out itself: at the beginning of a round, and to s.returned",
)
def back(s: Subject) -> None:
    joined, left, returned = 3, 4, 4 + s.round
    away = (Outage(worker=1, last=joined - 1), Outage(worker=2, first=left, last=returned - 1))
    r = s.recipe(steps=returned + s.round, scenario=Scenario(outages=away, catch_up="params"))
    plain, spoilt = s.trainer(r), s.trainer(r)
    _spoil_(spoilt, 1)
    for event, _ in zip(plain.events(), spoilt.events(), strict=True):
        if isinstance(event, Stepped) and event.step >= joined:
            up = [w for w in s.workers if w != 2 or event.step not in range(left, returned)]
            if odd := difference(plain.state, spoilt.state, [(w, w) for w in up], of="local"):
                raise Broken(f"what a worker had before it was away still shows after step {event.step}: {odd}")
        if isinstance(event, Stepped) and event.step == left:
            _spoil_(spoilt, 2)
    for w, t in ((1, joined), (2, returned)):
        heard = [r for r in plain.comm.ledger if r.step == t and w in r.workers]
        if not heard or heard[0].op != "broadcast":
            told = in_words(heard[0]) if heard else "nobody tells it anything"
            raise Broken(f"worker {w} is back in step {t} and speaks before it listens: {told}")


@torch.no_grad()
def _spoil_(trainer: Trainer, worker: int) -> None:
    """Other parameters at one worker."""
    params = trainer.state.local["params"]
    for i, x in enumerate(params.blocks):
        x[params.rows(i, [w == worker for w in range(trainer.recipe.num_workers)])] = 7.0


@LAWS.law(
    "nobody up",
    "in steps with all workers away no state moves, nothing is sent, and no loss is reported",
    "comm.mean needs fallback= where what was agreed is to stay, and an outer step must not go on without anybody",
)
def nobody_up(s: Subject) -> None:
    bench = s.bench().run(s.steps - 2)
    before = [(stacks, w, rows(stacks, w)) for stacks in (bench.state.local, bench.state.shared) for w in s.workers]
    num, fleet = len(bench.records), bench.state.fleet
    fleet.up = [False] * s.num_workers
    for _ in range(s.round + 1):
        bench.step()
        for stacks, w, was in before:
            unchanged(was, stacks, w, f"in step {bench.t}, in which nobody is up")
        if len(bench.records) > num:
            raise Broken(f"nobody is up {in_words(bench.records[num])}")
        assert bench.loss_W is not None, "step returned no losses"
        if not bench.loss_W.isnan().all():
            raise Broken(f"nobody is up in step {bench.t}, and losses are {bench.loss_W.tolist()}")


@LAWS.law(
    "resume",
    "stopped after every step and resumed from its checkpoint: as if it had never stopped, bit for bit",
    "what a run remembers is in s.local, s.shared, s.optimizers or s.facts (small JSON values): that is what a checkpoint holds",
)
def resume(s: Subject) -> None:
    r = s.recipe(steps=min(s.steps, max(4, s.round + 1)), checkpoint_every=1)
    with tempfile.TemporaryDirectory() as folder:
        stop_and_go(r, Path(folder), s.corpus)
