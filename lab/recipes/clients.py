"""Clients of a federation: identities with data of their own, of whom some take part in each round as the workers of the fleet.

Where every worker is there all the time, worker and client are one, and nothing here applies but `Clients.personal`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lab.ground.config import Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from lab.recipes.availability import check_available


@config
class Clients:
    """Who may take part, and what clients keep between their turns.

    A round is what lies between two syncs of ``params``. It begins with a draw of clients, without replacement: ``num_workers`` of
    them sit down in the rows of the fleet, receive the agreed parameters (which counts as bytes, for each of them) and whatever else
    is agreed, and train on their own examples. Memory, time, events and the ledger grow with those who take part.

    Clients that are late (see ``wait_for`` and ``deadline``) receive what all receive, and then do not count: here they do not train, and
    they hand in nothing. Where fewer than ``num_workers`` are available the other rows stay empty in that round.

    num
        clients that there are; 0, or as many as workers and none of the next six: the workers themselves, all the time.
    sampling
        ``uniform``: all clients are drawn alike; ``size``: with a probability that goes as the number of their examples.
    available
        who can take part, and when: nothing (all, always), ``day_night`` or ``day_night:<number of time zones>``, or the path of a .csv file
        (`lab.recipes.availability`).
    round_hours
        how long a round takes by the clock that ``available`` goes by.
    spread
        of the clients' speeds: the time of a local step is log-normal over clients, exp(spread · z) times that of the median client, with
        z drawn once for each. Only priced time changes, and who is late.
    wait_for
        the first so many of those who were asked count, the others are late (over-selection: Bonawitz et al. 2019, arXiv 1902.01046, ask
        1.3 times as many as they need); 0: all are waited for.
    deadline
        whoever takes longer is late, in units of the time of the median client.
    inner_states
        ``fresh``: a client begins each of its rounds with a new inner optimizer, and with whatever else its method holds at workers as at
        the start of the run (it keeps nothing); ``kept``: with the states that it had at the end of its last one. States that the method
        averages are received with the parameters either way, and with them how many steps they have taken; of what is personal all is
        the client's own.
    held_out, scored
        share of its own examples that a client does not train on, and is scored on whenever the agreed model is evaluated; and of how
        many clients, a sample that stays the same (0: all). Under ``draw`` splits others may train on what one holds out.
    personal
        parameters that never leave their client, by name, as patterns (``head.*``). They are kept between its turns.
    """

    num: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    sampling: Literal["uniform", "size"] = "uniform"
    available: str = ""
    round_hours: Positive = 1.0
    spread: Annotated[float, Field(ge=0, le=10)] = 0.0
    wait_for: Annotated[int, Field(ge=0)] = 0
    deadline: Positive | None = None
    inner_states: Literal["fresh", "kept"] = "fresh"
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scored: Annotated[int, Field(ge=0)] = 256
    personal: tuple[str, ...] = ()

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with it."""
        check_available(self.available)
        if not self.num:
            return
        if self.wait_for > recipe.num_workers:
            raise RecipeError(
                f"clients.wait_for = {self.wait_for} is more than num_workers = {recipe.num_workers}, those that are asked in a round: set it "
                "lower, or num_workers higher"
            )
        if self.num < recipe.num_workers:
            raise RecipeError(
                f"clients.num = {self.num} is less than num_workers = {recipe.num_workers}, those that take part in a round: set it "
                "higher, or 0 where all take part"
            )
        if recipe.scenario.sample is not None:
            raise RecipeError("clients.num and scenario.sample both draw who takes part: leave out scenario.sample")
        if recipe.placement.overlap is not None:
            raise RecipeError(
                "placement.overlap gives workers experts of their own, and clients sit down in any row: leave out one"
            )
        if len(set(recipe.lora.ranks)) > 1:
            raise RecipeError(
                "lora.ranks differ by worker, and clients sit down in any row: give one rank, or leave out clients.num"
            )

    def take_turns(self, num_workers: int) -> bool:
        """Whether who sits in a row of the fleet is a matter of the round."""
        return self.num > num_workers or (self.num > 0 and self.sets_the_pace)

    @property
    def some_are_missing(self) -> bool:
        """Whether there may be rows in a round that do not count."""
        return bool(self.available or self.wait_for or self.deadline is not None)

    @property
    def sets_the_pace(self) -> bool:
        """Whether how long a local step takes is a matter of who sits there."""
        return self.spread > 0 or self.some_are_missing

    def is_personal(self, name: str) -> bool:
        """Whether a parameter never leaves its client."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.personal)

    def check_personal(self, names: Sequence[str]) -> None:
        """Raises RecipeError for a pattern that fits no parameter, and where nothing is left to be trained together."""
        for pattern in self.personal:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"clients.personal = {pattern!r} fits no parameter: there are {', '.join(names[:8])}{' …' * (len(names) > 8)}"
                )
        if names and all(map(self.is_personal, names)):
            raise RecipeError("clients.personal leaves no parameter that is trained together: name fewer")

    def drawn(self, round_number: int, num_rows: int, seed: int) -> list[int]:
        """The clients of a round (from 0) of whom all are alike and available, sorted: a function of these numbers alone."""
        rng = numpy_generator(seed, "clients", round_number)
        return sorted(rng.choice(self.num, num_rows, replace=False).tolist())
