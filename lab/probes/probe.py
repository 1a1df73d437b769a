"""What looks at a run and never touches it: the protocol, and all that a probe may see.

Over several processes all of them have the same probes and call them in the same order, since looking at the agreed model makes it
travel. What a worker shows by itself is told together with the losses, when the processes meet anyway.
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
    grad_at: Callable[
        [int], Tensor
    ]  # fill the gradients of local step t with those of the model's own loss; losses ``[N]``

    @property
    def dry(self) -> bool:
        return self.data is None

    def evaluates(self, t: int) -> bool:
        """Whether the agreed model is evaluated after local step ``t``."""
        every = self.recipe.eval_every
        return t == self.recipe.steps or (every > 0 and t % every == 0)

    def latest(self, name: str) -> Stack:
        """A local state as those have it who hold the present one; where nobody does, what a method keeps as agreed."""
        mine, shared = self.state.local[name], self.state.shared.get(name) if name == "params" else None
        return self.comm.agreed(mine, self.fleet.last_up, shared if shared and shared.layout is mine.layout else None)

    def agreed(self) -> Stack:
        """What the model is at this moment: the server's, or else the mean over those who hold its present state.

        The whole model that is made of it has the means of the workers' buffers.
        """
        self.fleet.agreed_buffers = buffers.means(self.fleet, self.fleet.last_up, self.world)
        if self.state.served:
            return self.world.sync_server_state(self.state.shared["params"])
        return self.latest("params")


class Agreed:
    """The agreed model after one local step, made when the first probe asks for it: then all processes do."""

    def __init__(self, setup: Setup):
        self.setup = setup

    @cached_property
    def here(self) -> Stack:
        """Those of its blocks that this process knows, ``[1, P]``."""
        return self.setup.agreed()

    @cached_property
    def whole(self) -> Stack:
        """At the first process, all blocks."""
        return self.setup.world.gather_blocks(self.here, self.setup.fleet.last_up)

    def gather_(self) -> bool:
        """All processes call this; whether this is the one that has the `model` then."""
        return len(self.whole.blocks) > 0 and self.setup.world.first

    def model(self) -> nn.Module:
        """The first process makes one of the whole, in eval mode, as views of the values."""
        return self.setup.fleet.whole_model(self.whole)


class Probe(Part, Protocol):
    """Looks, never touches. What a probe does not say for itself is as here: it does nothing there, and remembers nothing."""

    def due(self, t: int) -> bool:
        """Whether all processes have to look together after local step ``t``, also where no average gives an occasion."""
        return False

    def before_average(self, meeting: Meeting) -> None:
        """Copies come together, and nothing has been done with the result yet."""
        return None

    def by_worker(self, t: int, agreed: Agreed) -> Iterable[Event]:
        """After local step ``t``: what is told together with its losses."""
        return ()

    def after_step(self, t: int, agreed: Agreed) -> Iterable[Event]:
        """After local step ``t``, when its losses are known: what all processes look at together."""
        return ()

    def ended(self, t: int) -> Iterable[Event]:
        """After the last step of the recipe, when its checkpoint is written."""
        return ()

    def forget(self) -> None:
        """The run goes on with other data: what was seen until here is nothing to compare with."""
        return None
