"""The protocol of probes, which observe a run and never change it, and what they are given.

All processes have the same probes and call them in the same order, since looking at the agreed model makes it travel. What
probes report per worker (`Probe.by_worker`) is exchanged together with the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor, nn

from lab.data.training_data import TrainingData
from lab.engine.checkpoint import Part
from lab.engine.comm import Communicator, Meeting
from lab.engine.fleet import Fleet
from lab.engine.stack import Stack
from lab.engine.state import State
from lab.engine.world import World
from lab.events import Event
from lab.methods.lora_factors import Adapters
from lab.probes import buffers
from lab.recipes.placement import Experts
from lab.recipes.recipe import Recipe


@dataclass(frozen=True)
class Setup:
    """What a run works with, built and checked before anything is written (`lab.runs.build`)."""

    recipe: Recipe
    fleet: Fleet
    state: State
    comm: Communicator
    world: World
    data: TrainingData | None  # None in a dry run
    experts: Experts | None  # where they are, if the model has any
    adapters: Adapters | None  # who holds which rank segments, if the model has adapters
    grad_at: Callable[[int], Tensor]  # fills the gradients of local step t, of the model's own loss; losses ``[N]``

    @property
    def dry(self) -> bool:
        return self.data is None

    def evaluates(self, t: int) -> bool:
        """Whether the agreed model is evaluated after local step ``t``."""
        every = self.recipe.eval_every
        return t == self.recipe.steps or (every > 0 and t % every == 0)

    def latest(self, name: str) -> Stack:
        """Return the mean of a local state over the workers that were up last; of ``params`` that none of them holds, the shared."""
        mine, shared = self.state.local[name], self.state.shared.get(name) if name == "params" else None
        return self.comm.agreed(mine, self.fleet.last_up, shared if shared and shared.layout is mine.layout else None)

    def agreed(self) -> Stack:
        """Return the agreed model: the server's state, or else the mean over the workers that were up last, ``[1, P]``.

        Also sets the buffers of the whole model: the server's, or means of the workers' (`lab.recipes.buffers.Buffers.of_model`).
        """
        of_model = self.recipe.buffers.of_model(self.fleet.last_up)
        self.fleet.agreed_buffers = buffers.means(self.fleet, of_model, self.world)
        kept = self.state.shared.get("buffers") if self.state.served else None
        if kept is not None:
            self.fleet.agreed_buffers |= {name: kept[name][0] for name in kept.names()}
        if self.state.served:
            return self.world.sync_server_state(self.state.shared["params"])
        return self.latest("params")


class Agreed:
    """The agreed model after one local step, computed when a probe first asks for it (in all processes at once)."""

    def __init__(self, setup: Setup):
        self.setup = setup

    @cached_property
    def here(self) -> Stack:
        """The blocks that this process has, ``[1, P]``."""
        return self.setup.agreed()

    @cached_property
    def whole(self) -> Stack:
        """All blocks, at the first process."""
        return self.setup.world.gather_blocks(self.here, self.setup.fleet.last_up)

    def gather_(self) -> bool:
        """Gather the model at the first process; all processes call it. Returns True there, where `model` may be called."""
        return len(self.whole.blocks) > 0 and self.setup.world.first

    def model(self) -> nn.Module:
        """Return the agreed model, in eval mode, as views of the values; at the first process only."""
        return self.setup.fleet.whole_model(self.whole)


class Probe(Part, Protocol):
    """Observes a run. The trainer calls the methods below; a probe overrides those that it needs, the defaults do nothing."""

    def due(self, t: int) -> bool:
        """Whether the processes are to exchange losses after local step ``t`` even if nothing was sent, as `after_step` needs all."""
        return False

    def before_average(self, meeting: Meeting) -> None:
        """Called at every average and gather, before the method uses the result."""
        return None

    def by_worker(self, t: int, agreed: Agreed) -> Iterable[Event]:
        """Events after local step ``t`` with values of this process's workers, in lists by worker with None for all others.

        Every process gives as many. What stands in a field ``…_W`` is joined with that of the other processes.
        """
        return ()

    def after_step(self, t: int, agreed: Agreed) -> Iterable[Event]:
        """Events after local step ``t`` that are the same in all processes, when its losses are known."""
        return ()

    def ended(self, t: int) -> Iterable[Event]:
        """Events after the last step of the recipe, when its checkpoint is written."""
        return ()

    def forget(self) -> None:
        """Drop what was remembered: the run goes on with other data, so earlier looks cannot be compared with."""
        return None
