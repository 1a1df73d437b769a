"""What is looked at along a run, and when. Reads only.

Over several processes all of them look together, at steps in which they meet anyway. What a worker shows by itself is told with
the losses. The agreed model is made for looking at it, once, when an evaluation or a look at the routers is due.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lab.data.tasks.data import IGNORED
from lab.engine.comm import Meeting
from lab.engine.stack import Stack
from lab.errors import Diverged
from lab.events import Evaluated, Event, Warned
from lab.probes.drift import squares_W
from lab.seeds import derive
from lab.seeds.draws import Draws

if TYPE_CHECKING:
    from lab.runs.trainer import Trainer


class Looks:
    """All looks at one run, those of its ``drift``, ``watch``, ``adapter_watch`` and ``measures``."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.agreed: Stack | None = None  # what the model is after this step, if that is looked at

    def evaluates(self, t: int) -> bool:
        recipe = self.trainer.recipe
        return t == recipe.steps or (recipe.eval_every > 0 and t % recipe.eval_every == 0)

    def routes(self, t: int) -> bool:
        return self.trainer.watch is not None and t % self.trainer.recipe.routing_every == 0

    def due(self, t: int) -> bool:
        """Whether there is something to look at together that no average gives an occasion for."""
        recipe = self.trainer.recipe
        measures = self.trainer.measures is not None and t % recipe.metrics_every == 0
        return self.evaluates(t) or self.routes(t) or measures

    def at_average(self, meeting: Meeting) -> None:
        """The communicator's observer."""
        trainer = self.trainer
        evaluated = self.evaluates(trainer.comm.t)
        trainer.drift.before_average(meeting, trainer.comm.t, evaluated)
        if trainer.watch is not None and meeting.mean is not None:
            trainer.watch.at_average(meeting.state, meeting.stack, meeting.mean)
        if trainer.adapter_watch is not None:
            trainer.adapter_watch.before_average(meeting, evaluated)

    def by_worker(self, t: int) -> Iterator[Event]:
        """After local step ``t``: what is told together with its losses."""
        trainer = self.trainer
        if self.evaluates(t) or self.routes(t):
            self.agreed = trainer.agreed()
        if self.evaluates(t):
            trainer.drift.look(t, None if trainer.state.served else self.agreed)
        if trainer.adapter_watch is not None and trainer.adapter_watch.covered is not None:
            yield trainer.adapter_watch.new(t)
        yield from trainer.drift.new
        trainer.drift.new.clear()

    def together(self, t: int) -> Iterator[Event]:
        """After local step ``t``: what all processes look at together. What only the first sees is told by it alone."""
        trainer, agreed, self.agreed = self.trainer, self.agreed, None
        if trainer.measures is not None:
            yield from trainer.measures.after(t)
        if agreed is None:
            return
        whole, first = trainer.world.gather_blocks(agreed, trainer.last_up), trainer.world.first
        if self.evaluates(t):
            yield from self._of_buffers(t)
            yield self._evaluated(t, agreed, whole)
            if trainer.adapter_watch is not None and first:
                yield trainer.adapter_watch.truncated(t, whole, self.validation_loss, self.scores)
        if trainer.watch is not None and self.routes(t):
            with self.precision():
                routed = trainer.watch.look(t, trainer.fleet.whole_model(whole) if first else None)
            yield routed

    def _of_buffers(self, t: int) -> Iterator[Warned]:
        """At the first evaluation, what is done about buffers that training moves."""
        recipe, names = self.trainer.recipe, list(self.trainer.fleet.agreed_buffers)
        if names and t == (min(recipe.eval_every, recipe.steps) or recipe.steps):
            yield Warned(
                t,
                f"{len(names)} buffers that training moves (such as {names[0]}) are each worker's own and are not sent: the model is "
                "evaluated with their means",
            )

    @torch.no_grad()
    def _evaluated(self, t: int, agreed: Stack, whole: Stack) -> Evaluated:
        trainer = self.trainer
        square_W, count_W = squares_W([(trainer.state.local["params"], agreed)], trainer.last_up)
        found: tuple[float, dict[str, float]] = 0.0, {}
        if trainer.world.first:
            found = self.validation_loss(whole), self.scores(trainer.fleet.whole_model(whole))
        seen = trainer.world.all_gather_json([sum(square_W), sum(count_W), *found])
        loss, scores = seen[0][2:]
        if not math.isfinite(loss):
            raise Diverged(f"the averaged model's validation loss is {loss} after step {t}")
        drift = math.sqrt(sum(x[0] for x in seen) / max(1, sum(x[1] for x in seen)))
        return Evaluated(t, loss, drift, scores)

    def precision(self) -> AbstractContextManager[object]:
        """Models are looked at as precisely as they are trained."""
        return self.trainer.recipe.compute.precision(self.trainer.fleet.device)

    def draws(self, *purpose: str | int) -> Draws:
        """For a model that draws random numbers also where it is only looked at."""
        return Draws(derive(self.trainer.recipe.seed, *purpose, self.trainer.t))

    def scores(self, model: nn.Module) -> dict[str, float]:
        """What the task of the run says of a model; nothing for running text."""
        with self.precision(), self.draws("scores"):
            return self.trainer.text.scores(model) if self.trainer.text else {}

    def validation_loss(self, agreed: Stack | nn.Module) -> float:
        """Nats per token of a model, or of one with these values: the mean over all validation targets, however many a row has."""
        fleet = self.trainer.fleet
        model = fleet.whole_model(agreed) if isinstance(agreed, Stack) else agreed

        def one(i: int, batch: tuple[Tensor, Tensor]) -> tuple[float, int]:
            num = int((batch[1] != IGNORED).sum())
            if not num:  # a mean over nothing
                return 0.0, 0
            with torch.no_grad(), self.precision(), self.draws("validation", i):
                return float(model.loss(*batch)) * num, num  # type: ignore[operator]

        sums = list(fleet.pool.map(one, count(), self.trainer.validation))
        return sum(s for s, _ in sums) / sum(n for _, n in sums)
