"""How what workers hand in becomes one: the mean, or a number that a few of them cannot move far."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from lab.ground.config import Positive, config
from lab.ground.errors import RecipeError


@config
class Mean:
    """What the communicator makes of the copies of a state where a method takes their mean.

    by
        ``mean``; ``median``: of each number by itself, weighted where the mean is (Yin et al. 2018, arXiv 1803.01498, definition 1);
        ``trimmed``: of each number, without the largest and the smallest (definition 2); ``clipped``: the mean of differences that are cut
        to a norm (Sun et al. 2019, arXiv 1911.07963, section 4). With weights the papers leave open what these are: see
        `lab.processes.robust_means`.
    trim
        of ``trimmed``: the share that is left out on each side, ⌊trim · n⌋ of n.
    max_norm
        of ``clipped``: of what one worker hands in, over all tensors of one mean together.
    """

    by: Literal["mean", "median", "trimmed", "clipped"] = "mean"
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    max_norm: Positive | None = None

    @property
    def plain(self) -> bool:
        return self.by == "mean"

    def check(self, num_workers: int, codecs: Collection[str], secure_sum: bool, clip: bool, apart: bool) -> None:
        """Raises RecipeError for what cannot go along. ``apart``: workers hold different parts of the model."""
        if (self.by == "clipped") != (self.max_norm is not None):
            raise RecipeError(
                "mean.max_norm is the norm to which mean.by=clipped cuts what a worker hands in: set both, or neither"
            )
        if self.plain:
            return
        what = f"mean.by={self.by}"
        if codecs:
            raise RecipeError(
                f"{what} compares numbers as they are, and codecs.{min(codecs)} sends others: leave one out"
            )
        if secure_sum:
            raise RecipeError(
                f"{what} needs each part, and privacy.secure_sum shows nobody more than the sum: leave one out"
            )
        if clip:
            raise RecipeError(f"{what} is no mean, for which privacy.clip and its noise are worked out: leave one out")
        if self.by == "clipped" and apart:
            raise RecipeError(
                f"{what} cuts the norm of all that a worker hands in, and here workers hold different parts: use median or trimmed"
            )
        if self.by == "trimmed" and int(self.trim * num_workers) == 0:
            raise RecipeError(
                f"mean.trim = {self.trim:g} of {num_workers} workers is less than one, so nothing is left out: give {1 / num_workers:.3g} or more"
                if num_workers > 2
                else f"{what} of {num_workers} workers leaves out nobody or all: use more workers"
            )
