"""Which sync periods keep workers computing for a given share of the time, and what stored claims say that these cost in loss.

Utilisation is computing over computing and communication: of a long run, over whole cycles of all periods, so that it does not depend on
where a run ends. A cycle of a method that sends the same at each sync takes K steps and one exchange, K · c / (K · c + s): it grows
with K, and the least K that reaches a share u is s · u / (c · (1 − u)), rounded up. It is found by dry runs, for any method, not by that form.
What a period costs in loss is not calculated: only claims of executed notebooks are read, and where none speaks of it that is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.costs.calendar import calendar
from lab.costs.network import Network, described, duration, human
from lab.ground.errors import RecipeError
from lab.methods.registry import name_of
from lab.recipes.recipe import Recipe
from lab.runs.build import build
from lab.runs.columns import used_by
from lab.runs.knobs import periods, with_periods
from lab.runs.plan import plan
from lab.study.claims import Claim
from lab.study.execution import finished

LONGEST = 65_536  # local steps between two averages of the parameters
MOST_STEPS = 1_000_000  # of a cycle that is gone through
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Choice:
    """Periods, and what follows from them."""

    periods: int | dict[str, int]
    utilisation: float
    bytes_per_step: float  # payload of the worker that sends most
    seconds_per_step: float  # communication and waiting included
    loss: str  # what claims say
    own: bool  # the recipe has these
    reaches: bool

    @property
    def of_params(self) -> int:
        return self.periods if isinstance(self.periods, int) else self.periods["params"]


@dataclass(frozen=True)
class Recommendation:
    recipe: Recipe
    target: float
    network: Network
    step_seconds: float
    choices: tuple[Choice, ...]
    least: Choice | None  # with the shortest periods that reach the target

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "target": self.target,
            "network": described(self.network),
            "step_seconds": self.step_seconds,
            "choices": [vars(choice) for choice in self.choices],
            "least": self.least and vars(self.least),
        }

    def to_text(self) -> str:
        name = name_of(self.recipe.method)
        wide = max(len(_words(choice.periods)) for choice in self.choices) + 2
        lines = [
            f"{name} on links of {described(self.network)}, {duration(self.step_seconds)} of computing a step, "
            f"{self.recipe.num_workers} workers",
            f"{'local steps between syncs':<{max(wide, 26)}}{'utilisation':>12}{'bytes a step':>14}{'a step takes':>14}   loss, by stored claims",
        ]
        for choice in self.choices:
            sign = "✓" if choice.reaches else " "
            note = "   ← the recipe" * choice.own + "   ← the least that reaches it" * (choice == self.least)
            lines.append(
                f"{_words(choice.periods):<{max(wide, 26)}}{choice.utilisation:>11.1%}{sign}{human(choice.bytes_per_step):>14}"
                f"{duration(choice.seconds_per_step):>14}   {choice.loss}{note}"
            )
        return "\n".join([*lines, *self._notes(name)])

    def _notes(self, name: str) -> Iterable[str]:
        if self.least is None:
            yield f"no period up to {LONGEST:,} reaches {self.target:.0%}"
        elif self.least.of_params > self.recipe.steps:
            yield f"the least that reaches {self.target:.0%} is longer than the run of {self.recipe.steps:,} steps"
        if all(choice.loss == NOT_KNOWN for choice in self.choices):
            yield (
                f"what these periods cost in loss is not known: no stored claim of {name} speaks of them (`lab reproduce` executes the "
                "notebooks that do, where there are any)"
            )


def recommend(
    recipe: Recipe | str,
    target: float,
    network: Network,
    *,
    device: str = "h100",
    devices_per_worker: int = 1,
    step_seconds: float | None = None,
    claims: Iterable[Claim] = (),
) -> Recommendation:
    """The shortest sync periods of the recipe's method with which workers compute for a share ``target`` of the time, and others beside them.

    Parameters
    ----------
    step_seconds
        of one local step at one worker; by default as `lab.runs.plan.plan` reckons with a device.
    claims
        what is known of losses (`stored_claims`).

    Raises
    ------
    RecipeError
        for a target that is none, and a method without a period.
    """
    recipe = Recipe.of(recipe)
    if not 0 < target < 1:
        raise RecipeError(f"--recommend {target:g} is not allowed: give a share of the time between 0 and 1, as 0.8")
    now = periods(recipe.method)
    if now is None:
        raise RecipeError(
            f"{name_of(recipe.method)} has no sync period to choose: it sends as it does; plan it without --recommend, or take a method that has one"
        )
    if step_seconds is None:
        step_seconds = plan(
            recipe, {"": network}, device=device, devices_per_worker=devices_per_worker
        ).seconds_per_step
    asked = _Asked(recipe, now, network, step_seconds, target, tuple(claims))
    least = asked.least()
    shown = {1, asked.base, *(() if least is None else (least, max(1, least // 2), 2 * least))}
    shown |= {2**k for k in range(1, 17) if least is None or 2**k < least}
    choices = tuple(asked.choice(k) for k in sorted(shown)[-12:] if k <= LONGEST)
    own = asked.choice(asked.base)
    choices = choices if own in choices else (own, *choices)
    return Recommendation(
        recipe, target, network, step_seconds, choices, None if least is None else asked.choice(least)
    )


@dataclass
class _Asked:
    recipe: Recipe
    now: int | dict[str, int]
    network: Network
    step_seconds: float
    target: float
    claims: Sequence[Claim]
    known: dict[int, Choice] = field(default_factory=dict)

    @property
    def base(self) -> int:
        """The period of the parameters that the recipe has."""
        return self.now if isinstance(self.now, int) else self.now.get("params", min(self.now.values()))

    def least(self) -> int | None:
        """The shortest period of the parameters that reaches the target."""
        high = 1
        while not self.choice(high).reaches:
            if high >= LONGEST:
                return None
            high *= 2
        low = high // 2  # does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.choice(middle).reaches else (middle, high)
        return high

    def choice(self, period: int) -> Choice:
        """With this period of the parameters, and the others in the ratio that the recipe has."""
        if period not in self.known:
            self.known[period] = self._choice(period)
        return self.known[period]

    def _choice(self, period: int) -> Choice:
        chosen: int | dict[str, int] = period
        if isinstance(self.now, dict):
            chosen = {name: max(1, round(p * period / self.base)) for name, p in self.now.items()}
        cycle = math.lcm(*(chosen.values() if isinstance(chosen, dict) else [chosen]))
        steps = min(cycle * math.ceil(max(self.recipe.steps, 1) / cycle), max(MOST_STEPS, period))
        other = replace(self.recipe, method=with_periods(self.recipe.method, chosen), steps=steps)
        sent = calendar(build(other, dry=True).dry_run())
        bill = sent.price(
            used_by(other, self.network),
            num_workers=other.num_workers,
            compute_seconds=self.step_seconds,
            slow=other.scenario.slow,
        )
        share = bill.compute_seconds / bill.total_seconds if bill.total_seconds else 1.0
        most = max(sent.total_bytes(w) for w in range(other.num_workers))
        of_claims = "; ".join(losses_at(period, name_of(other.method), self.claims)) or NOT_KNOWN
        takes = bill.total_seconds / steps
        return Choice(chosen, share, most / steps, takes, of_claims, period == self.base, share >= self.target)


def losses_at(period: int, method: str, claims: Iterable[Claim]) -> list[str]:
    """What claims of a method's paper measured of its loss with this period: what the claim is about, and the effect with its interval."""
    found = []
    for claim in (c for c in claims if _letters(c.paper) == _letters(method)):
        for effect in claim.effects:
            about = re.search(r"\bperiod (\d+)\b", effect.label)
            if about and int(about[1]) == period and effect.says != "better":
                found.append(f"{claim.says}: {effect.measured.removeprefix(f'{effect.label}: ')}")
    return found


def stored_claims(folder: Path) -> list[Claim]:
    """The claims of the notebooks that were executed into a folder (`lab reproduce`, ``lab sweep``)."""
    out: list[Claim] = []
    for one in finished(folder) if folder.is_dir() else ():
        one.read_claims()
        out += one.claims.rows if one.claims is not None else ()
    return out


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _words(chosen: int | Mapping[str, int]) -> str:
    return str(chosen) if isinstance(chosen, int) else ", ".join(f"{name} {p}" for name, p in chosen.items())
