"""What clients make of the federation's model on their own examples, and what they would have without it: a step of evaluation."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lab.engine.optim import Optimizer
from lab.ground.config import Count, Fraction, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.methods.holding_on import Hold

Way = Literal["fine_tuning", "frozen_base", "ewc", "kd"]
How = Way | Literal["none", "local"]  # as it is; and alone


@config
class Adaptation:
    """Ways in which clients adapt the agreed model to their own examples, each tried from the same model, and a model of each client's own.

    It is looked at and thrown away: the run goes on as if nothing had been, and nothing of it is sent. Of each client count the examples
    that it holds out (`Clients.held_out`); it trains on the others, in batches of the recipe's size.

    ways
        ``fine_tuning``: go on training; ``frozen_base``: only ``head`` is trained; ``ewc`` and ``kd``: go on training, and hold on to
        the agreed model (`lab.methods.holding_on`).
    steps, inner
        local steps of each way, and what takes them, begun anew and without the schedule of the run.
    every
        local steps of the run between two looks; 0: after the last step alone.
    clients
        how many of them, a sample that stays the same (0: all).
    local_steps, local_inner
        of the purely local model, the yardstick: trained from the first values of the run on a client's own examples alone, once; 0: none.
        ``local_inner`` left out: ``inner``.
    head
        what ``frozen_base`` trains, by name, as patterns (``head.*``).
    strength, temperature, share
        λ of ``ewc``, K and α of ``kd``.
    """

    ways: tuple[Way, ...] = ()
    steps: Count = 50
    inner: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 0.1))
    every: Annotated[int, Field(ge=0)] = 0
    clients: Annotated[int, Field(ge=0)] = 64
    local_steps: Annotated[int, Field(ge=0)] = 0
    local_inner: Optimizer | None = None
    head: tuple[str, ...] = ()
    strength: Annotated[float, Field(ge=0)] = 10.0
    temperature: Positive = 1.0
    share: Fraction = 0.5

    @property
    def asked_for(self) -> bool:
        return bool(self.ways or self.local_steps)

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with it."""
        if not self.asked_for:
            return
        if not recipe.clients.held_out:
            raise RecipeError(
                "adaptation scores clients on examples that they hold out, and they hold out none: set clients.held_out, to 0.2 for example"
            )
        if len(set(self.ways)) < len(self.ways):
            raise RecipeError(f"adaptation.ways = {list(self.ways)} names one twice: once is enough")
        if "frozen_base" in self.ways and not self.head:
            raise RecipeError(
                'adaptation.ways has frozen_base: name what is trained then, by adaptation.head, as in ["head.*"]'
            )

    def is_head(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.head)

    def check_head(self, names: Sequence[str], personal: Sequence[str]) -> None:
        """Raises RecipeError for a pattern that fits no parameter, and where what is a client's own would be frozen."""
        if "frozen_base" not in self.ways:
            return
        for pattern in self.head:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"adaptation.head = {pattern!r} fits no parameter: there are {', '.join(names[-8:])}{' …' * (len(names) > 8)}"
                )
        frozen = [name for name in personal if not self.is_head(name)]
        if frozen:
            raise RecipeError(
                f"frozen_base would freeze {frozen[0]}, which is each client's own (clients.personal): name it in adaptation.head too"
            )

    def sampled(self, num_clients: int) -> int:
        """How many clients are looked at."""
        return min(self.clients or num_clients, num_clients)

    def looks(self, steps: int) -> int:
        """How often in a run of so many local steps."""
        return 0 if not self.asked_for else -(-steps // self.every) if self.every else 1

    def due(self, t: int, steps: int) -> bool:
        return t == steps or (self.every > 0 and t % self.every == 0)

    def training(self, how: How) -> tuple[Hold, Optimizer, int]:
        """The loss of a client, what takes its local steps, and how many."""
        if how == "local":
            return Hold(), self.local_inner or self.inner, self.local_steps
        loss = how if how in ("ewc", "kd") else "plain"
        return Hold(loss, self.strength, self.temperature, self.share), self.inner, self.steps  # type: ignore[arg-type]

    def passes(self, way: Way) -> float:
        """Forward and backward passes of batches that it costs a client, at most: one backward pass counts as two forward ones."""
        teacher = self.steps / 3 if way == "kd" else 0.0
        return self.steps + teacher + (way == "ewc")

    def local_steps_in_all(self, num_clients: int, steps: int) -> int:
        of_one = len(self.ways) * self.steps * self.looks(steps) + self.local_steps
        return self.sampled(num_clients) * of_one if self.asked_for else 0

    def passes_in_all(self, num_clients: int, steps: int) -> float:
        """As `passes`, of all clients that are looked at in a run of so many local steps."""
        if not self.asked_for:
            return 0.0
        of_one = self.looks(steps) * sum(map(self.passes, self.ways)) + self.local_steps
        return self.sampled(num_clients) * of_one
