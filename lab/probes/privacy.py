"""Probe of a federation whose clients' updates are clipped: how long they were, and what privacy is spent."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lab.engine.checkpoint import Json
from lab.events import QUARTILES, Clipped
from lab.methods.private import Private
from lab.methods.registry import round_steps
from lab.probes.probe import Agreed, Probe, Setup
from lab.recipes.accountant import drawn, epsilon


class PrivacyProbe(Probe):
    """Looks whenever a round ends. What is spent is worked out (some hundredths of a second) at the first round that ends after a step in
    which the model was evaluated, or in it, and at the last.
    """

    def __init__(self, setup: Setup, private: Private):
        self.setup, self.private, self.period = setup, private, round_steps(setup.recipe.method)
        some = drawn(setup.recipe)
        self.size = some[0] if some else 0  # clients of a round, if they are drawn
        # In which somebody has handed in: of clients that were drawn and are all there, and others.
        self.rounds = [0, 0]
        epsilon(setup.recipe, 0, 1)  # before anything is trained: is the accountant there?

    def due(self, t: int) -> bool:
        return t % self.period == 0

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Clipped]:
        if not self.due(t):
            return
        norm_W = self.setup.world.all_gather_by_worker(self.private.norms)
        self.private.norms = {}
        if not norm_W:
            return
        clip, norms = self.private.clip, np.array([*norm_W.values()])
        self.rounds[0 if self.size and len(norms) == self.size else 1] += 1
        known = norms[np.isfinite(norms)]
        spent = epsilon(self.setup.recipe, *self.rounds) if self._asked(t) else None
        yield Clipped(
            step=t,
            rounds=sum(self.rounds),
            clients=len(norms),
            share=float((norms > clip).mean()),
            norms=np.percentile(known, QUARTILES).tolist() if len(known) else [],
            noise=self.private.noise * clip / len(norms),
            epsilon=None if spent is None or math.isinf(spent) else spent,
            delta=self.setup.recipe.privacy.delta,
        )

    def _asked(self, t: int) -> bool:
        return t + self.period > self.setup.recipe.steps or any(
            map(self.setup.evaluates, range(t - self.period + 1, t + 1))
        )

    def json(self) -> Json:
        return {"rounds": self.rounds}

    def load_json(self, values: Json, step: int) -> None:
        self.rounds = values["rounds"]
