"""Who is up, who is sampled, who is slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.events import Event, WorkersChanged
from lab.ground.config import Count, Fraction, Period, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator

Worker = Annotated[int, Field(ge=0)]


@config
class Outage:
    """``worker`` is down from local step ``first`` to ``last``, both included. ``first=1`` is a worker that joins late."""

    worker: Worker
    last: Count
    first: Count = 1

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise RecipeError(
                f"scenario.outages: worker {self.worker} is down from step {self.first} to step {self.last}: first must not be "
                "greater than last"
            )


@config
class Scenario:
    """What happens to the workers. The default: all are up all the time and equally fast.

    A worker that is down neither computes nor sends. When it is back (or joins) it first receives ``params`` as those that
    were up hold them on average and, with ``catch_up="all"``, every state of the inner optimizer likewise; with
    ``"params"`` it goes on with whatever states it had (none, if it joins); in both cases it receives the agreed (shared) state,
    if the method has one. All of it counts as bytes. (With ``"params"`` the workers of DDP, which
    never average states, stay different for ever.)

    An optimizer's step count, of bias correction for one, is each worker's own: it stands still while the worker is down. With
    ``"all"`` it comes with the states, those of the others. An average of states leaves it as it is.

    outages
        fixed times.
    sample, sample_every
        a fresh uniform choice of ``sample`` workers every ``sample_every`` steps (clients of a federation).
    failure_rate, mean_outage
        each worker goes down with this probability per step and comes back with probability 1/``mean_outage`` per step.
    slow
        how many times longer a worker's local step takes: only the priced time changes, never the numbers.
    """

    outages: tuple[Outage, ...] = ()
    sample: Count | None = None
    sample_every: Period = 32
    failure_rate: Fraction = 0.0
    mean_outage: Annotated[float, Field(ge=1)] = 10.0
    slow: dict[Worker, Annotated[float, Field(ge=1)]] = Field(default_factory=dict)
    catch_up: Literal["all", "params"] = "all"

    def as_it_was(self, events: Iterable[Event], steps: int) -> Scenario:
        """The scenario with what has happened to the workers of a run, whatever took them down: so that it can be had again.

        ``events`` are the run's, and this is its scenario: how workers catch up, and who is slow, stay as they are.
        """
        down: dict[int, int] = {}  # since which step
        outages: list[Outage] = []
        for event in events:
            if isinstance(event, WorkersChanged):
                outages += [
                    Outage(worker=w, first=down.pop(w), last=event.step - 1) for w in event.returned if w in down
                ]
                down |= dict.fromkeys(event.left, event.step)
        outages += [Outage(worker=w, first=first, last=steps) for w, first in down.items()]
        ordered = tuple(sorted(outages, key=lambda o: (o.worker, o.first)))
        return Scenario(outages=ordered, slow=self.slow, catch_up=self.catch_up)

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where a worker does not exist or more are sampled than there are."""
        num_workers = recipe.num_workers
        for w in [o.worker for o in self.outages] + list(self.slow):
            if w >= num_workers:
                raise RecipeError(f"scenario names worker {w}, but the workers are 0 … {num_workers - 1}")
        if self.sample is not None and self.sample > num_workers:
            raise RecipeError(f"scenario.sample = {self.sample} is more than num_workers = {num_workers}")

    def trace(self, num_workers: int, steps: int, seed: int) -> Tensor:
        """``up[t − 1, worker]``, bool ``[steps, num_workers]``: the same for the same seed."""
        up = torch.ones(steps, num_workers, dtype=torch.bool)
        if self.failure_rate:
            draw = torch.rand(steps, num_workers, dtype=torch.float32, generator=generator(seed, "failures"))
            state = torch.ones(num_workers, dtype=torch.bool)
            for t in range(steps):
                state = torch.where(state, draw[t] >= self.failure_rate, draw[t] < 1 / self.mean_outage)
                up[t] = state
        for o in self.outages:
            up[o.first - 1 : o.last, o.worker] = False
        if self.sample is not None:
            for start in range(0, steps, self.sample_every):
                chosen = torch.randperm(num_workers, generator=generator(seed, "sample", start))[: self.sample]
                mask = torch.zeros(num_workers, dtype=torch.bool)
                mask[chosen] = True
                up[start : start + self.sample_every] &= mask
        return up
