"""The step loop of sites that do not wait without end for each other (`lab.processes.deadline`).

What a run does between two meetings is kept back until the second one counts. If it does not, since a site was left out, those that are
left go back to the end of the first and do these steps again: their own numbers are the same, and nothing of what the other has done since
is in them, as if it had been down from there. It goes back as well, and waits until the first site has it come back; then it receives
what a worker receives that was down (`lab.recipes.scenario`).
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lab.engine.checkpoint import Checkpoint, Json
from lab.events import Event
from lab.ground.errors import RecipeError
from lab.methods import name_of
from lab.methods.registry import round_steps
from lab.processes.deadline import Deadline, Missed
from lab.processes.peers import ManyProcesses, listening, share_out
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.build import Built
from lab.runs.roll_call import RollCall


class Steps(Protocol):
    """What is needed of a `lab.runs.trainer.Trainer`."""

    t: int  # finished local steps
    built: Built
    pending: list[Event]
    again: dict[int, dict[str, Any]]

    def next_step(self) -> Generator[Event, None, bool]: ...
    def build_anew_(self) -> None: ...
    def restore(self, checkpoint: Checkpoint) -> None: ...


@dataclass(frozen=True)
class Moment:
    """All that this site needs to go on from the end of a step."""

    own: Checkpoint
    pending: list[Event]
    again: dict[int, dict[str, Any]]


class Meetings:
    """How one site takes its steps.

    Parameters
    ----------
    world
        all sites, of which each has a deadline.
    """

    def __init__(self, world: ManyProcesses, deadline: Deadline):
        self.world, self.deadline = world, deadline
        self.before: Moment | None = None  # at the end of the last meeting that counts
        self.held: list[Event] = []  # since then

    def follow(self, roll_call: RollCall) -> None:
        """Have a run count the workers of sites that are left out as down."""
        roll_call.away = lambda: [w for p in self.deadline.away for w in self.world.workers_of(p)]

    def next_step(self, run: Steps) -> Generator[Event, None, bool]:
        """Take a step; yields what has happened since the last meeting when one counts. Returns whether the run is to stop instead."""
        self.before = self.before or self._moment(run)
        while True:
            self.deadline.prepare()
            missed, stopping, steps = None, False, run.next_step()
            try:
                while True:
                    self.held.append(next(steps))
            except StopIteration as ended:
                stopping = bool(ended.value)
            except Missed as what:
                missed = what
            with listening(self.world.timeout_seconds):
                admits = (
                    run.t % round_steps(run.built.knobs.method) == 0
                )  # a worker that is down may forget at a round's end
                verdict = self.deadline.conclude(run.t, missed, admits, lambda: self._welcome(run))
            if verdict is None:  # nobody has asked for the others
                return stopping
            if verdict.counts:
                yield from self.held
                self.held, self.before = [], None
                return stopping
            self._go_back_(run, self.before)
            if self.deadline.post.index in self.deadline.away:
                self._come_back_(run, self.before)
                return False

    def rest(self) -> list[Event]:
        """What has happened since the last meeting, at the end of a run."""
        held, self.held = self.held, []
        return held

    def _moment(self, run: Steps) -> Moment:
        with self.world.as_alone():
            tensors = {x.key: x.tensor.detach().clone() for part in run.built.parts for x in part.tensors()}
        return Moment(Checkpoint(run.t, 0, tensors, _values(run), own=True), [*run.pending], dict(run.again))

    def _go_back_(self, run: Steps, to: Moment) -> None:
        run.build_anew_()
        self.world.alone = True
        run.restore(to.own)
        self.world.alone = False
        run.pending, run.again, self.held = [*to.pending], dict(to.again), []

    def _welcome(self, run: Steps) -> Json:
        """What a site that comes back needs besides what it is sent then: small values, and which states there are by now."""
        with self.world.as_alone():
            states = [x for part in run.built.parts for x in part.tensors() if not x.key.startswith("watch/")]
        shapes = {x.key: [str(x.tensor.dtype).removeprefix("torch."), *x.tensor.shape] for x in states}
        return {"step": run.t, "values": _values(run), "shapes": shapes}

    def _come_back_(self, run: Steps, before: Moment) -> None:
        with listening(self.world.timeout_seconds):
            told = self.deadline.ask_to_come_back()
        made = {key: _zeros(*shape) for key, shape in told["shapes"].items()}
        now = Checkpoint(told["step"], 0, made | before.own.tensors, told["values"], own=True)
        self._go_back_(run, Moment(now, [], {}))
        self.before = None


def _values(run: Steps) -> Json:
    values: Json = {}
    for part in run.built.parts:
        values |= part.json()
    copy: Json = json.loads(json.dumps(values))
    return copy


def _zeros(dtype: str, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype))


MOST_OF_TIMEOUT = 0.2  # so that those who wait for a verdict are not lost themselves


def check_deadline(recipe: Recipe, num: int, seconds: float, timeout_seconds: float) -> None:
    """Raises RecipeError for a run that could not go on without one of its sites.

    Parameters
    ----------
    num
        sites.
    """
    what = f"--deadline {seconds:g}"
    if not 0 < seconds <= MOST_OF_TIMEOUT * timeout_seconds:
        raise RecipeError(
            f"{what}: give seconds above 0 and of at most a fifth of --timeout {timeout_seconds:g}, as others wait for who waits"
        )
    scenario, each = recipe.scenario, share_out(recipe.num_workers, num)
    comes_and_goes = scenario.outages or scenario.sample is not None or scenario.failure_rate
    alone = recipe.experts is not None and (recipe.placement.overlap or recipe.num_workers) < recipe.num_workers
    reasons = {
        "the recipe's scenario has workers that are down at other times: leave them out": comes_and_goes,
        "clients take turns (clients.num), and what one keeps could be lost with a site: use as many workers as clients": (
            recipe.clients.num > recipe.num_workers
        ),
        "some experts live at few workers, and could be lost with a site: leave placement.overlap out": alone,
        "privacy.secure_sum has secrets that are lost with a site: leave one of them out": recipe.privacy.secure_sum,
        "with scenario.catch_up=params a worker that is back goes on with its inner states, and this method resets them meanwhile: use all": (
            scenario.catch_up == "params" and getattr(recipe.method, "inner_states", "kept") == "reset"
        ),
        "metrics look at all workers: leave them out": recipe.metrics,
        "with checkpoint_every=0 no site keeps what it would come back with: give a period": not recipe.checkpoint_every,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise RecipeError(f"{what}: {reason}")
    for p in range(1, num):
        outages = tuple(Outage(worker=w, last=1) for w in range(p * each, (p + 1) * each))
        try:
            recipe.but(scenario=Scenario(outages=outages, catch_up=scenario.catch_up))
        except RecipeError as error:
            raise RecipeError(f"{what}: {name_of(recipe.method)} cannot go on without site {p} ({error})") from None
