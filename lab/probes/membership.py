"""Probe of what a model tells of its training data: can somebody who has it and an example say whether it was trained on that example?

The attack is that of a threshold on the loss (Yeom et al. 2018, arXiv 1709.01604): what was trained on has a lower one. Members are
examples that workers have trained on, others are held out; of both at most `MOST`, since each is looked at alone. Stronger attacks
train models of their own (`lab.study.membership`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.splits import evenly_spaced
from lab.engine.checkpoint import Json
from lab.events import Event, Measured
from lab.ground.seeds import uniform
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Agreed, Probe, Setup

MOST = 256  # of members, and of others
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Leak:
    """How well a score tells members from others.

    auc
        area under the curve of true over false alarms: the probability that a member has a higher score than another; 0.5 is a guess.
    auc_error
        standard deviation of ``auc`` where scores tell nothing, with so many of both.
    tpr
        members that are found where at most 1 % of the others are taken for one.
    members, others
        how many were looked at. With fewer than 100 others ``tpr`` allows for no false alarm at all.
    """

    auc: float
    auc_error: float
    tpr: float
    members: int
    others: int


def leak(members: np.ndarray, others: np.ndarray) -> Leak:
    """Of scores, high for who looks like a member, float64 ``[E]``."""
    from sklearn.metrics import roc_auc_score, roc_curve

    true, scores = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others])
    false_alarms, found, _ = roc_curve(true, scores, drop_intermediate=False)
    m, n = len(members), len(others)
    tpr = float(found[false_alarms <= FALSE_ALARMS].max())
    return Leak(float(roc_auc_score(true, scores)), sqrt((m + n + 1) / (12 * m * n)), tpr, m, n)


def advantage(members: np.ndarray, others: np.ndarray) -> float:
    """Of losses ``[E]``: members below the mean loss of members, less others below it (Yeom et al., adversary 2, who knows that mean)."""
    return float((members <= members.mean()).mean() - (others <= members.mean()).mean())


def losses(evaluator: Evaluator, model: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> np.ndarray:
    """The loss of a model on each of some examples by itself, float64 ``[E]``."""
    device, numbers = evaluator.setup.fleet.device, count()

    def one(x: Tensor, y: Tensor, i: int) -> float:
        with torch.no_grad(), evaluator.precision(), evaluator.draws("membership", i):
            return float(model.loss(x[None].to(device), y[None].to(device)))  # type: ignore[operator]

    return np.array(list(evaluator.setup.fleet.pool.map(one, inputs, targets, numbers)))


def words(event: Measured) -> str:
    """What there is to be known of a look, in numbers."""
    told = {name: values[0] for name, values in event.values.items()}
    auc, error = told["auc"], told.get("auc_error")
    if auc is None or error is None:
        return "membership: losses are no numbers"
    return (
        f"membership: from the loss one tells what was trained on with AUC {auc:.3f} (a guess: 0.5 ± {error:.3f}), advantage "
        f"{told['advantage']:.3f}; {told['tpr']:.1%} of {told['members']} members are found at 1 % false alarms"
    )


class MembershipProbe(Probe):
    """``membership``: whenever the agreed model is evaluated, at the first process. Costs a forward pass for each of at most 512 examples.

    Members are drawn, each as likely, from all that was trained on until then (a reservoir, from the run's seed).
    """

    def __init__(self, setup: Setup):
        self.setup, self.evaluator = setup, Evaluator(setup)
        self.seen = 0  # batches that were trained on
        self.kept: list[tuple[int, int]] = []  # client and local step of some of them
        data = setup.data
        assert data is not None
        held_out = [(x, y) for inputs, targets in data.validation for x, y in zip(inputs, targets, strict=True)]
        self.others = [held_out[i] for i in evenly_spaced(len(held_out), MOST, "example")]

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def by_worker(self, t: int, agreed: Agreed) -> Iterable[Event]:
        """Of every step: who has trained on what. The same in all processes; nothing is told."""
        fleet, clients = self.setup.fleet, self.setup.state.clients_W or range(self.setup.fleet.num_workers)
        for w, c in enumerate(clients):
            if w < fleet.num_workers and fleet.up[w]:
                self._keep((int(c), t))
        return ()

    def _keep(self, batch: tuple[int, int]) -> None:
        self.seen += 1
        if len(self.kept) < MOST:
            self.kept.append(batch)
            return
        at = int(uniform(self.setup.recipe.seed, "membership", *batch) * self.seen)
        if at < MOST:
            self.kept[at] = batch

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Measured]:
        if not self.due(t) or not self.kept:
            return
        found = [self._looked(agreed.model())] if agreed.gather_() else []
        yield Measured(t, "membership", self.setup.world.all_gather_json(found)[0][0])

    def _looked(self, model: nn.Module) -> dict[str, list[float | None]]:
        data, seed, members = self.setup.data, self.setup.recipe.seed, []
        assert data is not None
        for client, t in sorted(self.kept):
            inputs, targets = data.batches.get(client, t)
            at = int(uniform(seed, "member", client, t) * len(inputs))
            members.append((inputs[at], targets[at]))
        of_members, of_others = (
            losses(self.evaluator, model, *zip(*some, strict=True)) for some in (members, self.others)
        )
        known = [x[np.isfinite(x)] for x in (of_members, of_others)]
        if not min(map(len, known)):
            return {"auc": [None]}
        found = leak(-known[0], -known[1])
        return {name: [x] for name, x in vars(found).items()} | {"advantage": [advantage(*known)]}

    def json(self) -> Json:
        return {"membership": [self.seen, self.kept]}

    def load_json(self, values: Json, step: int) -> None:
        self.seen, kept = values["membership"]
        self.kept = [(c, t) for c, t in kept]

    def forget(self) -> None:
        self.seen, self.kept = 0, []
