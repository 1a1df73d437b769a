"""What a recipe will send and how long that takes, before anything trains: a dry run and its price."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lab.costs.calendar import Calendar, calendar
from lab.costs.energy import Energy, Joules, human_joules, joules
from lab.costs.fomoe import Costs
from lab.costs.network import DEVICES, NETWORKS, Bill, Network, Turn, described, device_named, duration, human
from lab.costs.network import step_seconds as seconds_of_step
from lab.costs.weighting import Scoring, scoring
from lab.engine.fleet import Fleet
from lab.engine.state import State
from lab.events import Sent
from lab.methods.registry import declared, name_of, round_steps
from lab.models.abbie import AbbIE
from lab.models.in_groups import group_models
from lab.models.moe import MoE
from lab.recipes import accountant
from lab.recipes.groups import in_words
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.build import build
from lab.runs.columns import used_by
from lab.runs.data import shape_of
from lab.runs.trial import products

MANY = 16  # workers that are no longer told one by one
UNITS = {"hours": 1, "minutes": 60, "seconds": 3600}  # in an hour


@dataclass(frozen=True)
class StatePlan:
    """One state's traffic by one operation, per worker; at a ``level`` above 0 per node of a tree."""

    state: str
    op: str
    times: int  # local steps in which there is some
    bytes_each: int
    total_bytes: int
    level: int = 0


@dataclass(frozen=True)
class Forecast:
    """Hours of the run on one network; ``ddp_hours`` is the same model and steps with a gradient average per step."""

    network: str  # its name
    link: str  # its numbers
    compute_hours: float
    communication_hours: float
    total_hours: float
    ddp_hours: float
    ddp_communication_hours: float
    joules: Joules | None = None  # where anything was said of energy
    ddp_joules: Joules | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        drawn = {"joules": self.joules, "ddp_joules": self.ddp_joules}
        return vars(self) | {name: x and x.to_dict() for name, x in drawn.items()}


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    calendar: Calendar
    num_params: int
    params_per_worker: list[int]
    state_bytes_per_worker: int  # params, gradients and optimizer states of the largest worker, and what is agreed
    frozen_bytes: int  # of the model that adapters are added to, at every worker
    states: list[StatePlan]  # of the worker that sends most; and of the nodes above workers
    payload_bytes_W: list[int]
    served: bool  # between workers and a server, no worker with another
    wire_bytes: float  # on a ring, or to and from a server, of the worker that sends most
    ddp_bytes: int  # per worker, the same recipe with DDP
    ddp_wire_bytes: float  # on a ring
    local_adam_bytes: int  # per worker, Local Adam with the period of params
    seconds_per_step: float
    device: str  # what a worker is assumed to compute with
    devices_per_worker: int
    forecasts: list[Forecast]
    flops_per_step: float  # of a worker
    up_TW: np.ndarray  # who is up, bool ``[steps, workers]``
    turns: Sequence[Turn]  # how fast workers are, where that changes with those who sit there
    groups: str = ""  # of clients, in words
    measured: bool = False  # what a step takes, rather than reckoned from a device
    scoring: Scoring | None = None  # of a worker's samples, where they are weighed

    @cached_property
    def ledger(self) -> list[Sent]:
        """The calendar, record by record."""
        return list(self.calendar)

    @property
    def payload_bytes(self) -> int:
        """The payload of the worker that sends most."""
        return max(self.payload_bytes_W)

    @property
    def adaptation_steps(self) -> int:
        """Local steps of clients that adapt the model, of all together and beside those of the run."""
        return self.recipe.adaptation.local_steps_in_all(self.recipe.num_clients, self.recipe.steps)

    @property
    def adaptation_flops(self) -> float:
        """What they compute, at most."""
        return self.flops_per_step * self.recipe.adaptation.passes_in_all(self.recipe.num_clients, self.recipe.steps)

    @property
    def fits(self) -> bool:
        """Whether what a worker holds, without activations, fits into the memory of its devices."""
        held = self.state_bytes_per_worker + self.frozen_bytes
        return held <= DEVICES[self.device].memory_bytes * self.devices_per_worker

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "num_params": self.num_params,
            "params_per_worker": self.params_per_worker,
            "state_bytes_per_worker": self.state_bytes_per_worker,
            "frozen_bytes_per_worker": self.frozen_bytes,
            "states": [vars(s) for s in self.states],
            "payload_bytes_per_worker": self.payload_bytes_W,
            "served": self.served,
            "wire_bytes_per_worker": self.wire_bytes,
            "times_less_than_ddp_on_wires": self.ddp_wire_bytes / self.wire_bytes if self.wire_bytes else None,
            "ddp_bytes_per_worker": self.ddp_bytes,
            "local_adam_bytes_per_worker": self.local_adam_bytes,
            "times_less_than_ddp": _ratio(self.ddp_bytes, self.payload_bytes),
            "times_less_than_local_adam": _ratio(self.local_adam_bytes, self.payload_bytes),
            "seconds_per_step": self.seconds_per_step,
            **self._spent(),
            "adaptation_steps": self.adaptation_steps,
            "adaptation_flops": self.adaptation_flops,
            **({} if self.scoring is None else {"weighting": self.scoring.to_dict()}),
            "notes": notes(self.recipe),
            "device": self.device,
            "devices_per_worker": self.devices_per_worker,
            "fits_into_device": self.fits,
            "forecasts": [f.to_dict() for f in self.forecasts],
        }

    def to_text(self) -> str:
        r, bounds = self.recipe, self.recipe.lora.bounds
        ranks = f" in adapters of rank {bounds[0]}" + (f" to {bounds[-1]}" if len(bounds) > 1 else "") if bounds else ""
        frozen = f", and {human(self.frozen_bytes)} of the frozen model" if self.frozen_bytes else ""
        together = f"; all {r.num_workers:,} together {human(r.num_workers * self.state_bytes_per_worker)}" * (
            r.scenario.sample is not None
        )
        clients = f" for {r.clients.num:,} clients" if r.clients.num else ""
        rows = [(self._label(s), s) for s in self.states if not s.level]
        wide = max([20, *(len(self._label(s)) for s in self.states)])
        lines = [
            f"{name_of(r.method)}: {r.num_workers} workers{clients} × {r.steps:,} local steps, {self.num_params:,} parameters{ranks}, "
            f"{r.num_workers * r.per_batch:,} {r.counted} a step",
            f"a worker holds {human(self.state_bytes_per_worker)} of parameters, gradients and optimizer states{frozen}{together}",
            f"groups of clients: {self.groups}\n" if self.groups else "",
            f"{'per worker':<{wide + 2}}{'times':>8}{'each':>12}{'payload':>12}",
        ]
        lines += [_row(label, s, wide) for label, s in rows]
        lines += [
            f"  {'all':<{wide}}{sum(s.times for _, s in rows):>8,}{'':>12}{human(self.payload_bytes):>12}",
            f"  {_less('DDP', self.ddp_bytes, self.payload_bytes)}   "
            f"{_less('Local Adam', self.local_adam_bytes, self.payload_bytes)}"
            + (f" (both with adapters of rank {bounds[-1]} at every worker)" if bounds else ""),
        ]
        on_ring = self.ddp_wire_bytes / self.wire_bytes if self.wire_bytes else 1.0
        if self.served:
            lines.append(f"  on the wires to and from the server {on_ring:.2f}× fewer than DDP on a ring")
        elif self.payload_bytes and abs(on_ring * self.payload_bytes / self.ddp_bytes - 1) > 0.005:
            lines.append(
                f"  on the wire of a ring {on_ring:.2f}× fewer than DDP: small groups send less, payloads that cannot be summed "
                "on the way more"
            )
        lines += [*self._differing(), *self._of_nodes(wide), *self._protecting(), *self._adapting(), *self._weighing()]
        if self.forecasts:
            longest = max(f.total_hours for f in self.forecasts)
            unit, per_hour = next(((u, n) for u, n in UNITS.items() if longest * n >= 2), ("seconds", 3600))
            head = f"{unit} with a server, links of" if self.served else f"{unit} on links of"
            longest_link = max(30, *(len(f.link) for f in self.forecasts))
            lines += [
                "",
                f"{head:<{longest_link + 2}}{'compute':>9}{'network':>9}{'together':>9}{'DDP':>10}{'gain':>10}",
            ]
            lines += [
                f"  {f.link:<{longest_link}}{f.compute_hours * per_hour:>9.3g}{f.communication_hours * per_hour:>9.3g}"
                f"{f.total_hours * per_hour:>9.3g}{f.ddp_hours * per_hour:>10.3g}"
                + (f"{f.ddp_hours / f.total_hours:>9.2f}×" if self.payload_bytes else f"{'–':>10}")
                for f in self.forecasts
            ]
            lines += [*self._drawing(longest_link), self._computing()]
        return "\n".join(lines)

    def _drawing(self, wide: int) -> Iterator[str]:
        """Joules of all workers together, where anything was said of energy."""
        known = [(f.link, f.joules, f.ddp_joules) for f in self.forecasts if f.joules is not None]
        if known:
            yield f"{'energy, all workers':<{wide + 2}}{'compute':>9}{'network':>9}{'waiting':>9}{'together':>10}{'DDP':>10}"
        for link, own, ddp in known:
            parts = "".join(f"{human_joules(x):>9}" for x in (own.computing, own.sending, own.waiting))
            yield f"  {link:<{wide}}{parts}{human_joules(own.total):>10}{human_joules(None if ddp is None else ddp.total):>10}"

    def _of_nodes(self, wide: int) -> Iterator[str]:
        """What goes between the nodes of a tree."""
        for level in sorted({s.level for s in self.states if s.level}):
            yield f"per node, on links {level} level{'s' * (level > 1)} above those of workers"
            yield from (_row(self._label(s), s, wide) for s in self.states if s.level == level)

    def _protecting(self) -> Iterator[str]:
        if self.recipe.privacy.clip is not None:
            yield f"privacy: {accountant.words(self.recipe, *accountant.planned(self.recipe))}"

    def _spent(self) -> dict[str, Any]:
        """The privacy that the run will spend, if its clients' updates are clipped; ``epsilon`` None: ∞."""
        if self.recipe.privacy.clip is None:
            return {}
        rounds = accountant.planned(self.recipe)
        spent = accountant.epsilon(self.recipe, *rounds)
        return {
            "privacy": {
                "epsilon": spent if math.isfinite(spent) else None,
                "delta": self.recipe.privacy.delta,
                "rounds": sum(rounds),
                "drawn": accountant.drawn(self.recipe),
            }
        }

    def _differing(self) -> list[str]:
        """Where workers send more or less than others: each of them, as long as they are few."""
        if len({human(b) for b in self.payload_bytes_W}) == 1:
            return []
        if len(self.payload_bytes_W) > MANY:
            return [f"  workers differ: {human(min(self.payload_bytes_W))} to {human(self.payload_bytes)}"]
        return ["  workers differ: " + ", ".join(f"{w}: {human(b)}" for w, b in enumerate(self.payload_bytes_W))]

    def _adapting(self) -> Iterator[str]:
        """What clients compute beside the run."""
        r, adaptation = self.recipe, self.recipe.adaptation
        if not adaptation.asked_for:
            return
        looks, clients = adaptation.looks(r.steps), adaptation.sampled(r.num_clients)
        of_ways = f"{len(adaptation.ways)} ways × {adaptation.steps:,} local steps" + f", {looks:,} times" * (looks > 1)
        alone = f"{adaptation.local_steps:,} local steps alone"
        each = " and ".join([of_ways] * bool(adaptation.ways) + [alone] * bool(adaptation.local_steps))
        yield (
            f"adaptation: {clients:,} clients, each {each}: {self.adaptation_steps:,} local steps beside the {r.num_workers * r.steps:,} of the "
            f"run, at most {self.adaptation_flops:.3g} operations; nothing of it is sent"
        )

    def _weighing(self) -> Iterator[str]:
        """What weights of samples cost, counted both ways."""
        cost, weighting = self.scoring, self.recipe.weighting
        if cost is None:
            return
        beside = (
            f"{cost.extra:.3g} operations beside the {cost.training:.3g} of a worker's training ({cost.share:+.2%})"
        )
        if not weighting.of_states:
            yield f"weighting by {weighting.by}: {beside if cost.extra else 'no operation beside those of training'}"
            return
        times = f"{cost.looks:,} time{'s' * (cost.looks > 1)}"
        yield (
            f"weighting by {weighting.by}: {weighting.looked_at:,} samples are looked at {times}, {beside}; as its paper charges it, with a "
            f"forward pass more for every token of training, {cost.charged:.3g} ({cost.share_charged:+.1%})"
        )

    def _computing(self) -> str:
        """Describe the device that a worker is assumed to have, and whether its state fits into the memory."""
        each = f"{self.devices_per_worker} × {self.device}" if self.devices_per_worker > 1 else f"one {self.device}"
        line = f"  computing as on {each} a worker (--device, --devices-per-worker)"
        if self.measured:
            line = f"  computing takes {duration(self.seconds_per_step)} a step, as was said; memory of {each} a worker"
        if self.fits:
            return line
        memory = DEVICES[self.device].memory_bytes * self.devices_per_worker
        return f"{line},\n  which has {human(memory)}: what a worker holds does not fit into it"

    def _label(self, s: StatePlan) -> str:
        """The state's name, with the operation where there are several."""
        alone = sum((other.state, other.level) == (s.state, s.level) for other in self.states) == 1
        return s.state if alone else f"{s.state}, {s.op}"


def _row(label: str, s: StatePlan, wide: int) -> str:
    return f"  {label:<{wide}}{s.times:>8,}{human(s.bytes_each):>12}{human(s.total_bytes):>12}"


def plan(
    recipe: Recipe | str,
    networks: dict[str, Network] | None = None,
    *,
    device: str = "h100",
    devices_per_worker: int = 1,
    step_seconds: float | None = None,
    energy: Energy | None = None,
) -> Plan:
    """Dry-run a recipe, and DDP and Local Adam of the same shape beside it.

    Parameters
    ----------
    device, devices_per_worker
        what a worker computes with; a step is counted as 6 operations per parameter and token.
    step_seconds
        of one local step at one worker, where it was measured.
    energy
        what a byte and a step draw; without it nothing is said of energy.
    networks
        what the run is priced on, and DDP beside it. A method that needs a server has one there, with a link like a
        worker's; DDP does without.
    """
    device_named(device)
    recipe = Recipe.of(recipe)
    with _nothing_to_collect():
        return _plan(recipe, networks or NETWORKS, device, devices_per_worker, step_seconds, energy)


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Context manager: no garbage collection, which would take a third of the time of a plan of the largest model."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _plan(
    recipe: Recipe,
    networks: Mapping[str, Network],
    device: str,
    devices_per_worker: int,
    step_seconds: float | None,
    energy: Energy | None,
) -> Plan:
    built = build(recipe, dry=True)
    sent = calendar(built.dry_run())
    fleet, state = built.setup.fleet, built.setup.state
    params_W = [fleet.num_params(w) for w in range(recipe.num_workers)]
    payload_W = [sent.total_bytes(w) for w in range(recipe.num_workers)]
    busiest = payload_W.index(max(payload_W))
    ddp, local_adam = _compared_with(recipe, fleet)
    frozen = list(fleet.constants.values()) if recipe.lora.ranks else []
    active = max(_active_params(recipe, p) for p in {*params_W})
    active += sum(x.numel() for x in frozen) * 2 / 3  # forward, and backward to what is before them
    turns = built.roll_call.seating.turns if built.roll_call.seating is not None else []
    scored = _scoring(recipe, max(params_W), sum(x.numel() for x in frozen), active)
    more = 1.0 if scored is None else 1 + scored.share
    seconds = step_seconds or seconds_of_step(active, recipe.per_batch, device) / devices_per_worker * more
    topology: Literal["ring", "server"] = "server" if state.served else "ring"
    priced = (recipe, sent, ddp, seconds, turns, built.roll_call.up_TW, energy)
    return Plan(
        recipe=recipe,
        calendar=sent,
        num_params=sum(b.numel for b in fleet.layout.blocks),
        params_per_worker=params_W,
        state_bytes_per_worker=max(_held_bytes_W(recipe, state)),
        frozen_bytes=sum(x.nbytes for x in frozen),
        states=_states(sent, busiest),
        payload_bytes_W=payload_W,
        served=state.served,
        wire_bytes=_on_wires(sent, recipe, topology),
        ddp_bytes=ddp.total_bytes(busiest),
        ddp_wire_bytes=_on_wires(ddp, recipe),
        local_adam_bytes=local_adam.total_bytes(busiest),
        seconds_per_step=seconds,
        device=device,
        devices_per_worker=devices_per_worker,
        forecasts=[_forecast(name, networks_of(recipe, net), *priced) for name, net in networks.items()],
        flops_per_step=6 * active * recipe.per_batch,
        up_TW=built.roll_call.up_TW,
        turns=turns,
        groups=in_words(state.groups),
        measured=step_seconds is not None,
        scoring=scored,
    )


def _scoring(recipe: Recipe, held: int, frozen: int, active: float) -> Scoring | None:
    """What weights of samples cost a worker. Where clients take turns, at most: each look is by another one."""
    if not recipe.weighting.asked_for:
        return None
    rounds = -(-recipe.steps // round_steps(recipe.method)) if recipe.clients.take_turns(recipe.num_workers) else 0
    return scoring(
        recipe.weighting,
        params=_active_params(recipe, held) + frozen,
        tokens=recipe.per_batch,
        context=recipe.context,
        steps=recipe.steps,
        training=6 * active * recipe.per_batch * recipe.steps,
        rounds=rounds,
    )


def networks_of(recipe: Recipe, network: Network) -> tuple[Network, Network]:
    """As the run uses it, and as DDP beside it would: in a ring over the slowest of the same links."""
    own = used_by(recipe, network)
    return own, replace(own, topology=network.topology).slowest


def _held_bytes_W(recipe: Recipe, state: State) -> list[int]:
    """Parameters, gradients and states of each worker."""
    stacks = [state.grads, *state.local.values()]
    # A server keeps the rest of what is agreed.
    held = {*declared(recipe.method).holds} if state.served else {*state.shared}
    held |= {"params"} if recipe.privacy.clip is not None else set()  # which a client's update is a difference from
    stacks += [state.shared[name] for name in held if name in state.shared]
    held_W = [0] * recipe.num_workers
    for block, x in ((block, x) for s in stacks for block, x in zip(s.layout.blocks, s.blocks, strict=True)):
        for w in block.everywhere:
            held_W[w] += x[0].nbytes
    return held_W


def _compared_with(recipe: Recipe, fleet: Fleet) -> tuple[Calendar, Calendar]:
    """What DDP and Local Adam would send with the whole model, and adapters of the largest rank, at every worker.

    Under DDP all workers are there all the time, also where clients take turns: it could not do without one of them.
    """
    inner = vars(recipe.method.inner)
    everywhere = recipe.but(codecs={}, placement={}, privacy={})
    if recipe.lora.ranks:
        everywhere = everywhere.but(lora=vars(recipe.lora) | {"ranks": recipe.lora.bounds[-1:], "train": "both"})
    same = (everywhere.placement, everywhere.lora) == (recipe.placement, recipe.lora)
    same = same and not group_models(fleet.modules[0])  # which other methods do not have
    as_ddp = everywhere.but(buffers="first") if recipe.buffers.kind == "averaged" else everywhere
    ddp, whole = _beside(as_ddp, {"name": "ddp", "inner": inner}, fleet if same else None)
    period = round_steps(recipe.method)
    local_adam, _ = _beside(everywhere, {"name": "local_adam", "inner": inner, "sync_every": period}, whole)
    return ddp, local_adam


def _active_params(recipe: Recipe, held: int) -> float:
    """Return how many of a worker's parameters one token uses: of a mixture, only the experts that it chooses.

    For an example of a task they are counted as often as they are used, as a convolution's are at every place.
    """
    model = recipe.model
    if recipe.data is not None:
        return products(recipe, shape_of(recipe, None)) or held
    if isinstance(model, AbbIE):
        return held + model.repeated_params
    if not isinstance(model, MoE) or recipe.lora.ranks:
        return held
    overlap = recipe.placement.overlap or recipe.num_workers
    costs = Costs(model=model, M=recipe.num_workers, O_e=overlap, vocab_size=256)
    resident = model.num_layers * costs.N_le * 2 * model.dim * costs.d_exp
    return held - resident + costs.flops(recipe.context)["experts"] / 6


def _beside(recipe: Recipe, method: dict[str, Any], fleet: Fleet | None) -> tuple[Calendar, Fleet]:
    """What another method would send with the same recipe, and the fleet, which the next one can take over."""
    built = build(recipe.but(method=method), dry=True, fleet=fleet)
    return calendar(built.dry_run()), built.setup.fleet


def _on_wires(sent: Calendar, recipe: Recipe, topology: Literal["ring", "server"] = "ring") -> float:
    own = replace(sent, kinds=tuple(tuple(r for r in kind if not r.level) for kind in sent.kinds))  # not that of nodes
    bill = own.price(Network(topology=topology), num_workers=recipe.num_workers)
    return float(bill.wire_bytes_W.max())


def _states(sent: Calendar, worker: int) -> list[StatePlan]:
    """Return the traffic of a worker by state, in the order in which states are first sent; then that of nodes, level by level.

    Of the nodes of a level it is that of the one that sends most.
    """
    times: dict[tuple[str, str, int], int] = defaultdict(int)
    total: dict[tuple[str, str, int], int] = defaultdict(int)
    of_seats: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for num_steps, kind in zip(sent.times, sent.kinds, strict=True):
        for r in (r for r in kind if r.level):
            for w in r.workers:
                of_seats[r.level][w] += num_steps * r.bytes_each
    seats = {level: max(of_all, key=of_all.__getitem__) for level, of_all in of_seats.items()} | {0: worker}
    for num_steps, kind in zip(sent.times, sent.kinds, strict=True):
        mine = [r for r in kind if seats[r.level] in r.workers]
        for r in mine:
            total[r.state, r.op, r.level] += num_steps * r.bytes_each
        for key in {(r.state, r.op, r.level) for r in mine}:
            times[key] += num_steps
    states = list(dict.fromkeys(state for state, *_ in total))
    ordered = sorted(total, key=lambda key: (key[2], states.index(key[0])))
    return [
        StatePlan(state, op, times[state, op, level], x // times[state, op, level], x, level)
        for state, op, level in ordered
        for x in (total[state, op, level],)
    ]


def _forecast(
    name: str,
    networks: tuple[Network, Network],
    recipe: Recipe,
    sent: Calendar,
    ddp: Calendar,
    seconds: float,
    turns: Sequence[Turn],
    up_TW: np.ndarray,
    energy: Energy | None,
) -> Forecast:
    """``networks``: of the method, and of DDP, whose workers are as fast and whose ring goes over the slowest links."""

    def price(network: Network, what: Calendar) -> Bill:
        slow = recipe.scenario.slow
        return what.price(network, num_workers=recipe.num_workers, compute_seconds=seconds, slow=slow, turns=turns)

    def drawn(network: Network, what: Calendar, bill: Bill, up_TW: np.ndarray) -> Joules | None:
        if energy is None:
            return None
        return joules(energy, network, what, up_TW, bill.at_step[1:], seconds, recipe.scenario.slow, turns)

    mine, theirs = price(networks[0], sent), price(networks[1], ddp)
    hours = 3600.0
    return Forecast(
        name,
        described(networks[0]),
        mine.compute_seconds / hours,
        mine.communication_seconds / hours,
        mine.total_seconds / hours,
        theirs.total_seconds / hours,
        theirs.communication_seconds / hours,
        drawn(networks[0], sent, mine, up_TW),
        drawn(networks[1], ddp, theirs, up_TW),
    )


def _ratio(a: int, b: int) -> float | None:
    return a / b if a and b else None


def _less(than: str, theirs: int, mine: int) -> str:
    ratio = _ratio(theirs, mine)
    if ratio is None:
        return f"nothing is sent in this run (against {than}: no ratio)"
    return f"{ratio:.2f}× fewer than {than}" if ratio >= 1 else f"{1 / ratio:.2f}× more than {than}"
