"""Probe of a model that goes through a part of itself several times (`lab.models.abbie`): what each time is worth.

Legend: B sequences, T positions, D width, V vocabulary, r iterations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lab.data.tasks.task import IGNORED
from lab.events import Iterated
from lab.models.abbie import AbbIE, AbbIEModule
from lab.probes.evaluation import Evaluator
from lab.probes.fairness import listed
from lab.probes.probe import Agreed, Probe, Setup


class IterationsProbe(Probe):
    """Whenever the agreed model is evaluated: its loss with different numbers of iterations, found in one pass with the most of them.

    It costs about as much as an evaluation of a model as deep as that, and a tail for each iteration.
    """

    def __init__(self, setup: Setup, model: AbbIE):
        self.setup, self.evaluator, self.model = setup, Evaluator(setup), model

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Iterated]:
        if not self.due(t):
            return
        first = agreed.gather_()
        found = [self._iterated(agreed)] if first else []
        yield Iterated(
            t, self.model.iterations, list(self.model.looks), **self.setup.world.all_gather_json(found)[0][0]
        )

    @torch.no_grad()
    def _iterated(self, agreed: Agreed) -> dict[str, list[float | None]]:
        """The fields of `Iterated`, but for what the recipe says."""
        module, data = agreed.model(), self.setup.data
        assert isinstance(module, AbbIEModule)
        assert data is not None
        before, module.iterations = module.iterations, self.model.looks[-1]
        try:
            with self.evaluator.precision():
                found = [looked_at(module, *batch) for batch in data.validation]
        finally:
            module.iterations = before
        num = sum(count for count, _ in found)
        mean = sum((sums for _, sums in found), torch.zeros(())) / max(num, 1)
        loss_K, change_K, settled_K = map(listed, mean.numpy())
        return {
            "loss_R": [loss_K[r - 1] for r in self.model.looks],
            "change_K": change_K,
            "settled_K": settled_K,
        }


def looked_at(module: AbbIEModule, ids: Tensor, targets: Tensor) -> tuple[int, Tensor]:
    """Of a batch ``[B, T]``: how many targets count, and sums over them after each iteration, float64 ``[3, r]``: of nats, of the change of
    the state's direction, and of those whose likeliest token does not change any more."""
    counts = targets != IGNORED
    directions, nats, likeliest = list[Tensor](), list[Tensor](), list[Tensor]()
    for k, (h, unit) in enumerate(module.states(ids)):
        some = h[counts].double()
        directions.append(some / some.norm(dim=-1, keepdim=True))
        if k:
            logits = module.read(h, unit)
            nats.append(module.criterion(logits, targets).double() * counts.sum())
            likeliest.append(logits[counts].argmax(-1))
    changes = [(b - a).norm(dim=-1).sum() for a, b in zip(directions[:-1], directions[1:], strict=True)]
    stays, settled = torch.ones_like(likeliest[-1], dtype=torch.bool), list[Tensor]()
    for one in reversed(likeliest):
        stays = stays & (one == likeliest[-1])
        settled.insert(0, stays.sum().double())
    sums = torch.stack([torch.stack(x).cpu() for x in (nats, changes, settled)])
    return int(counts.sum()), sums
