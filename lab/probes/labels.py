"""Probe of clients without labels: which ones their examples would get, how many of them are right, and where examples lie among anchors.

Legend: E examples, p dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data.splits import evenly_spaced
from lab.data.tasks.dealt import TensorBatches
from lab.data.tasks.task import IGNORED
from lab.events import PseudoLabelled
from lab.methods.registry import labels_of, round_steps
from lab.models.two_heads import latents
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Agreed, Probe, Setup

MOST = 512  # examples of clients that are looked at
DRAWN, ANCHORS = 150, 100  # of those, and of the server's, that a picture shows
DIGITS = 3


class LabelProbe(Probe):
    """Looks at the server's model after the first step (in the first round it labels as it was handed out), and after every round.

    It alone knows the true classes of clients' examples. They are evenly spaced among all that are dealt.
    """

    def __init__(self, setup: Setup):
        self.setup, self.period = setup, round_steps(setup.recipe.method)
        self.evaluator = Evaluator(setup)
        assert setup.data is not None
        assert isinstance(setup.data.batches, TensorBatches)  # labels at a server are those of a task
        self.source = setup.data.batches

    def due(self, t: int) -> bool:
        return t == 1 or t % self.period == 0

    @torch.no_grad()
    def after_step(self, t: int, agreed: Agreed) -> Iterator[PseudoLabelled]:
        if self.due(t):
            first = agreed.gather_()
            found = self._look(t, agreed.model()) if first else {}
            yield PseudoLabelled(t, **self.setup.world.all_gather_json(found)[0])

    def _look(self, t: int, model: nn.Module) -> dict[str, Any]:
        """The fields of `PseudoLabelled`, but for the step."""
        setup, source = self.setup, self.source
        index = torch.from_numpy(evenly_spaced(len(source.examples), MOST, "example"))
        inputs, targets = source.examples.take(index, source.dtype)
        give = labels_of(setup.recipe.method)
        assert give is not None
        with self.evaluator.precision(), self.evaluator.draws("labels"):
            labels = give(setup.state, model, inputs.to(setup.fleet.device)).cpu()
        counts = targets != IGNORED
        given = counts & (labels != IGNORED)
        facts = setup.state.facts
        found = {
            "examples": int(counts.sum()),
            "labelled": int(given.sum()),
            "right": int((given & (labels == targets)).sum()),
            "server_steps": facts.get("server_steps", 0),
            "server_loss": facts.get("server_loss", 0.0),
        }
        drawn = t == 1 or setup.evaluates(t)
        return found | (self._places(model, inputs, labels, targets) if drawn else {})

    def _places(self, model: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Any]:
        """Where some of the examples and anchors lie; nothing for a model without latents."""
        assert self.setup.state.labelled is not None
        own, classes = (x.flatten(0, 1) for x in self.setup.state.labelled)
        some = torch.from_numpy(evenly_spaced(len(inputs), DRAWN, "example"))
        few = torch.from_numpy(evenly_spaced(len(own), ANCHORS, "anchor"))
        with latents() as seen:
            model(torch.cat([inputs[some].to(own), own[few]]))
        if not seen:
            return {}
        places, share = principal(F.normalize(seen[0], dim=-1).double().cpu().numpy(), len(some))
        rows = [[round(float(v), DIGITS) for v in row] for row in places]
        given = torch.stack([labels[some].clamp(min=-1), targets[some].clamp(min=-1)], 1).tolist()
        points = [[*row, *of_row] for row, of_row in zip(rows[: len(some)], given, strict=True)]
        anchors = [[*row, c] for row, c in zip(rows[len(some) :], classes[few].tolist(), strict=True)]
        return {"points": points, "anchors": anchors, "variance": round(share, DIGITS)}


def principal(z: np.ndarray, num: int) -> tuple[np.ndarray, float]:
    """Rows ``[E, p]`` along their first two principal components, ``[E, 2]``, and the share of the variance that these have.

    Of each component that sign is taken by which the first row behind the first ``num`` is not negative, so that pictures of one run do not
    turn over from one to the next.
    """
    centred = z - z.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.pad(axes[:2], ((0, max(0, 2 - len(axes))), (0, 0)))
    places = centred @ axes.T
    turned = np.where(places[min(num, len(z) - 1)] < 0, -1.0, 1.0)
    total = float((sizes**2).sum())
    return places * turned, float((sizes[:2] ** 2).sum()) / total if total > 0 else 1.0
