"""How far a run protects its clients from whoever sees what they hand in, or the model that is made of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from lab.ground.config import Positive, config
from lab.ground.errors import RecipeError
from lab.methods.private import Private
from lab.methods.registry import METHODS, Absent, Method, declared


@config
class Privacy:
    """Client-level differential privacy of the model (DP-FedAvg: McMahan et al. 2018, arXiv 1710.06963).

    All that a client hands in of a round is a difference from what it has fetched; over all tensors together it is cut to the norm S. Every
    client counts alike (weights of 1, whose sum is the number of clients in a round), and to every number of the mean of m clients the
    server adds normal noise of standard deviation z·S/m, drawn from the run's seed.

    clip
        S, the clipping norm; None: no clipping.
    noise
        z, the noise multiplier: noise in the sum over clients, in units of S. With 0 nothing is spent on, and nobody is protected: ε = ∞.
    delta
        δ of the (ε, δ) that is spent; less than 1 / clients is usual.
    secure_sum
        means are sums whose parts nobody sees (`lab.processes.secure_sum`). It goes with any method that only takes means, with clipping or
        without.
    """

    clip: Positive | None = None
    noise: Annotated[float, Field(ge=0)] = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    secure_sum: bool = False

    def of_run(self, seed: int) -> Private | None:
        """What a method is given (``s.private``); None where nothing is asked for."""
        return None if self.clip is None else Private(self.clip, self.noise, seed)

    @property
    def bounds(self) -> bool:
        """Whether what clients hand in is looked at, and cut."""
        return self.clip is not None

    def check(self, method: Method, codecs: Collection[str], buffers: str, sampling: str) -> None:
        """Raises RecipeError where the bound would not hold: ``buffers`` is what becomes of them, ``sampling`` how clients are drawn."""
        if not self.bounds:
            if self.noise:
                raise RecipeError(
                    f"privacy.noise = {self.noise:g} is in units of privacy.clip, which is not there: set it, for example privacy.clip=1"
                )
            return
        if isinstance(method, Absent):
            return
        need = declared(method)
        if not need.bounded:
            able = ", ".join(name for name, cls in METHODS.items() if declared(cls).bounded)
            why = "hands a server more than differences that can be clipped" if need.server else "has no server"
            raise RecipeError(f"privacy.clip: {need.name} {why}: use method {able}")
        if getattr(method, "weight", "uniform") != "uniform":
            raise RecipeError(
                "privacy.clip bounds what one client can do to a mean in which all count alike: set method.weight=uniform"
            )
        if codecs:
            raise RecipeError(
                f"privacy.clip and codecs.{min(codecs)}: what a codec makes of an update may be longer than it: leave one out"
            )
        if buffers in ("averaged", "first"):
            raise RecipeError(f"privacy.clip: buffers={buffers} sends what is not clipped: use buffers=local or frozen")
        if sampling == "size":
            raise RecipeError(
                "privacy.clip: clients.sampling=size draws by how much data clients have, which nobody accounts for: use uniform"
            )
