"""How the inner learning rate goes up and down along a run."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from lab.ground.config import Fraction, RecipeView, config
from lab.ground.errors import RecipeError


@config
class Schedule:
    """What multiplies the inner learning rate at local step t = 1 … steps.

    ``constant``; ``cosine`` from 1 down to ``final``; ``exponential``, by the same factor in every step; ``wsd`` (warm-up, stable,
    decay) with a 1 − √ decay to ``final`` over the last ``decay_fraction`` of the steps. All begin with a linear warm-up of ``warmup`` steps.

    A decay of ``decay_fraction · steps`` that is no whole number begins between two steps: 38.4 of 384 steps after step 345.6, so
    that step 347 has the factor 1 − √(0.4 / 38.4). Code that rounds the length instead (torchtitan's, and that of DES-LOC and
    LoRDO, which is built on it) has the schedule of ``decay_fraction = round(decay_fraction · steps) / steps`` here.
    """

    kind: Literal["constant", "cosine", "wsd", "exponential"] = "constant"
    warmup: int = Field(default=0, ge=0)
    decay_fraction: Fraction = 0.1
    final: Fraction = 0.0

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where nothing is left beside the warm-up."""
        if self.warmup >= recipe.steps > 1:
            raise RecipeError(
                f"schedule.warmup = {self.warmup} leaves nothing of the {recipe.steps} steps: "
                "set schedule.warmup lower (0 for none) or steps higher"
            )
        if self.kind == "exponential" and self.final == 0:
            raise RecipeError("schedule.kind = 'exponential' never comes to 0: set schedule.final, 0.02 for example")

    def at(self, t: int, steps: int) -> float:
        if t <= self.warmup:
            return t / self.warmup
        done = (t - 1 - self.warmup) / max(1, steps - self.warmup)
        if self.kind == "exponential":
            return float(self.final ** min(1.0, done))
        if self.kind == "cosine":
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if self.kind == "wsd":
            decay = self.decay_fraction * steps
            if math.isclose(decay, round(decay), rel_tol=1e-12):
                decay = round(decay)  # 0.07 · 100 is 7.000000000000001, and √ makes much of little
            into = t - 1 - (steps - decay)
            if into > 0:
                return self.final + (1 - self.final) * (1 - math.sqrt(min(1.0, into / decay)))
        return 1.0
