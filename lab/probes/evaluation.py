"""What the agreed model can do: its loss on the validation data, and the scores of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import count

import torch
from torch import Tensor, nn

from lab.events import Evaluated, Event, Warned
from lab.ground.errors import Diverged
from lab.ground.seeds import derive
from lab.ground.seeds.draws import Draws
from lab.probes.drift import squares_W
from lab.probes.probe import Agreed, Probe, Setup


class Evaluator:
    """Scores any model as the agreed one of a run is scored."""

    def __init__(self, setup: Setup):
        self.setup = setup

    def precision(self) -> AbstractContextManager[object]:
        """Context manager: evaluate in the precision that the run trains in."""
        return self.setup.recipe.compute.precision(self.setup.fleet.device)

    def draws(self, *purpose: str | int) -> Draws:
        """Context manager: random numbers for a model that draws them in eval mode, too."""
        return Draws(derive(self.setup.recipe.seed, *purpose, self.setup.comm.t))

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of a model on the run's task; empty for running text."""
        with self.precision(), self.draws("scores"):
            return self.setup.data.scores(model) if self.setup.data else {}

    def loss(self, model: nn.Module) -> float:
        """The mean over all validation targets, however many a row has: nats per token of text, else in the task's own units."""
        data = self.setup.data
        assert data is not None

        def one(i: int, batch: tuple[Tensor, Tensor]) -> tuple[float, int]:
            num = data.num_targets(batch[1])
            if not num:  # a mean over nothing
                return 0.0, 0
            with torch.no_grad(), self.precision(), self.draws("validation", i):
                return float(model.loss(*batch)) * num, num  # type: ignore[operator]

        sums = list(self.setup.fleet.pool.map(one, count(), data.validation))
        return sum(s for s, _ in sums) / sum(n for _, n in sums)


class EvaluationProbe(Probe):
    """Every ``eval_every`` local steps, and after the last."""

    def __init__(self, setup: Setup):
        self.setup, self.evaluator = setup, Evaluator(setup)

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Event]:
        if self.due(t):
            first = agreed.gather_()
            yield from self._of_buffers(t)
            yield self._evaluated(t, agreed, first)

    def _of_buffers(self, t: int) -> Iterator[Warned]:
        """At the first evaluation, warn how buffers that training changes are treated."""
        recipe, names = self.setup.recipe, list(self.setup.fleet.agreed_buffers)
        if names and recipe.buffers.kind == "local" and t == (min(recipe.eval_every, recipe.steps) or recipe.steps):
            yield Warned(
                t,
                f"{len(names)} buffers that training moves (such as {names[0]}) are each worker's own and are not sent: the model is "
                "evaluated with their means (buffers=averaged sends them)",
            )

    @torch.no_grad()
    def _evaluated(self, t: int, agreed: Agreed, first: bool) -> Evaluated:
        setup = self.setup
        square_W, count_W = squares_W([(setup.state.local["params"], agreed.here)], setup.fleet.last_up)
        found: tuple[float, dict[str, float]] = 0.0, {}
        if first:
            found = self.evaluator.loss(agreed.model()), self.evaluator.scores(agreed.model())
        seen = setup.world.all_gather_json([sum(square_W), sum(count_W), *found])
        loss, scores = seen[0][2:]
        if not math.isfinite(loss):
            raise Diverged(f"the averaged model's validation loss is {loss} after step {t}")
        drift = math.sqrt(sum(x[0] for x in seen) / max(1, sum(x[1] for x in seen)))
        return Evaluated(t, loss, drift, scores)
