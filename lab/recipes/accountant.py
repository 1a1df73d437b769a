"""What privacy a run spends: (ε, δ) as the accountant of Google's ``dp-accounting`` gives it for what the lab does.

The lab draws m of n clients without replacement, and how many there are is no secret. So the neighbouring relation is that one client
is replaced by any other: then the sum of what is handed in changes by at most 2S, and noise of z·S is one of z/2 in the accountant's
units. (Numbers for clients that are added or removed, as Poisson sampling has them, are smaller for the same z, and about another
question.) Rényi differential privacy of each round is added up over rounds (Wang et al. 2019, arXiv 1808.00087, theorem 27).

A round counts as drawn only where all of those drawn have handed in. Who is down, late or asleep is no secret draw: then all clients
count as if they were there, which holds whoever takes part. Both are bounds, so the smaller of the two holds.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache

from lab.ground.errors import RecipeError
from lab.methods.registry import round_steps
from lab.recipes.recipe import Recipe

# Of Rényi divergences. Where ε is small the large ones decide, where it is large the small ones.
ORDERS = (*(1 + k / 8 for k in range(1, 24)), *range(4, 33), 40, 48, 64, 96, 128, 256)


def drawn(recipe: Recipe) -> tuple[int, int] | None:
    """(m, n) where each round begins with a uniform draw of m of n clients, of whom none is missing by plan; else None."""
    clients, scenario, num = recipe.clients, recipe.scenario, recipe.num_workers
    if clients.some_are_missing or scenario.outages or scenario.failure_rate:
        return None
    if clients.num > num:
        return (num, clients.num)
    if scenario.sample is not None and scenario.sample_every == round_steps(recipe.method) and scenario.sample < num:
        return (scenario.sample, num)
    return None


def planned(recipe: Recipe) -> tuple[int, int]:
    """Rounds of the whole run: of clients that are drawn, and others."""
    rounds = recipe.steps // round_steps(recipe.method)
    return (rounds, 0) if drawn(recipe) else (0, rounds)


def epsilon(recipe: Recipe, rounds_drawn: int, rounds_other: int) -> float:
    """ε for ``privacy.delta`` after so many rounds; ∞ without noise, 0 before the first.

    Raises
    ------
    RecipeError
        where the accountant is not installed.
    """
    privacy = recipe.privacy
    if not rounds_drawn + rounds_other:
        return 0.0
    if not privacy.noise:
        return math.inf
    return _epsilon(drawn(recipe) or (1, 1), privacy.noise, privacy.delta, rounds_drawn, rounds_other)


@lru_cache(maxsize=1024)
def _epsilon(some: tuple[int, int], noise: float, delta: float, rounds_drawn: int, rounds_other: int) -> float:
    if importlib.util.find_spec("dp_accounting") is None:
        raise RecipeError(
            "privacy.noise: what it spends is worked out by the package dp-accounting, which is not here: pip install 'isthmus[privacy]'"
        )
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    of_all = GaussianDpEvent(noise / 2)
    of_some = SampledWithoutReplacementDpEvent(some[1], some[0], of_all)
    found = []
    for event in (of_some, of_all) if rounds_drawn else (of_all,):
        accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
        for part, rounds in ((event, rounds_drawn), (of_all, rounds_other)):
            if rounds:
                accountant.compose(part, rounds)
        found.append(float(accountant.get_epsilon(delta)))
    return min(found)


def words(recipe: Recipe, rounds_drawn: int, rounds_other: int) -> str:
    """What is spent after so many rounds, and how the clients were drawn."""
    some, spent, rounds = drawn(recipe), epsilon(recipe, rounds_drawn, rounds_other), rounds_drawn + rounds_other
    how = f", {some[0]:,} of {some[1]:,} clients drawn for each" if some and rounds_drawn else ""
    much = f"ε = {spent:.4g}, δ = {recipe.privacy.delta:g}" if math.isfinite(spent) else "ε = ∞, as there is no noise"
    return f"{much} for each client after {rounds:,} round{'s' * (rounds != 1)}{how}"
