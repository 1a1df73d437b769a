"""What an audit is of, as its record keeps it: the world that is drawn, who imitates, who defends, and federations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lab.ground.config import Count, Positive, config
from lab.ground.errors import RecipeError, one_of
from lab.methods import METHODS, declared
from lab.processes.secure_sum import LEAST
from lab.recipes.presets import IMITATED
from lab.systems.imitation.imitator import Model, Sampling, Way
from lab.systems.imitation.verification import FALSE_ACCEPT
from lab.systems.imitation.watermark import Watermark

PLAIN = "plain"


@dataclass(frozen=True)
class One:
    """One federation: a method and how it is protected."""

    method: str
    noise: float | None = None  # None: nothing is clipped
    secure: bool = False

    @property
    def name(self) -> str:
        how = "secure sum" if self.secure else PLAIN if self.noise is None else f"noise {self.noise:g}"
        return f"{self.method}, {how}"


@config
class Federation:
    """Authors as clients, all in every round; their messages stay with them.

    methods
        of adapters, each with ranks by turns, or all of the largest where a method takes equal ranks alone.
    ranks
        of clients.
    rounds, steps
        local steps of each round.
    batch_size, lr
        of a client.
    clip, noises
        client-level privacy, tried with each of these noise multipliers.
    secure_sum
        also one with means whose parts nobody sees, of the first method with equal ranks; needs three clients and the package ``cryptography``.
    """

    methods: tuple[str, ...] = IMITATED
    ranks: tuple[Count, ...] = (2, 4, 8)
    rounds: Count = 4
    steps: Count = 15
    batch_size: Count = 8
    lr: Positive = 5e-3
    clip: Positive = 1.0
    noises: tuple[Annotated[float, Field(ge=0)], ...] = (0.02, 1.0)
    secure_sum: bool = True

    def check(self, num_clients: int) -> None:
        """Raises RecipeError for a name of no method, and where so few cannot do what is asked for."""
        for method in self.methods:
            _equal_ranks(method)
        if self.methods and num_clients < 2:
            raise RecipeError("a federation of one target is none: name more targets, or set federation.methods=[]")
        if self.methods and self.secure_sum and num_clients < LEAST:
            raise RecipeError(
                f"federation.secure_sum needs {LEAST} clients, and there are {num_clients} targets: name more, or set federation.secure_sum=false"
            )

    @property
    def runs(self) -> list[One]:
        found = [One(m, noise) for m in self.methods for noise in (None, *self.noises)]
        equal = [m for m in self.methods if _equal_ranks(m)]
        return [*found, *(One(m, secure=True) for m in equal[: int(self.secure_sum)])]

    def ranks_of(self, method: str, num: int) -> list[int]:
        return [max(self.ranks)] if _equal_ranks(method) else [self.ranks[i % len(self.ranks)] for i in range(num)]


def _equal_ranks(method: str) -> bool:
    """Raises RecipeError for a name of no method."""
    if method not in METHODS:
        raise RecipeError(one_of("method in federation.methods", method, METHODS))
    return declared(METHODS[method]).equal_ranks


@config
class Audit:
    """Who is imitated, by whom, and who is to notice.

    authors, messages
        of the world that is drawn (`lab.data.tasks.authors.Authors`), with ``seed``.
    targets
        authors who are imitated; the base reads all others.
    counts
        messages that whoever imitates has; 0: the base as it is.
    ways
        of fine-tuning: adapters, or the whole model.
    seeds
        of fine-tuning and of what is drawn in it: each a cell of its own.
    texts
        that every imitation writes, on subjects of the author's test messages.
    false_accept
        of genuine impostors, where verifiers have their threshold.
    perturbations
        of each text, for curvature.
    federation
        what is looked at where the targets train together.
    """

    kind: ClassVar[str] = "imitation"

    authors: Annotated[int, Field(ge=3)] = 20
    messages: Annotated[int, Field(ge=60)] = 300
    targets: tuple[int, ...] = (0, 1, 2, 3, 4)
    counts: tuple[Annotated[int, Field(ge=0)], ...] = (0, 5, 10, 25, 50, 75, 100, 200)
    ways: tuple[Way, ...] = ("lora", "full")
    seeds: tuple[int, ...] = (0,)
    texts: Annotated[int, Field(ge=1, le=256)] = 50
    model: Model = Field(default_factory=Model)
    sampling: Sampling = Field(default_factory=Sampling)
    mark: Watermark = Field(default_factory=Watermark)
    false_accept: Annotated[float, Field(gt=0, lt=1)] = FALSE_ACCEPT
    perturbations: Count = 4
    federation: Federation = Field(default_factory=Federation)
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if (
            not self.targets
            or not set(self.targets) <= set(range(self.authors))
            or len(set(self.targets)) < len(self.targets)
        ):
            raise RecipeError(
                f"targets = {list(self.targets)}: name at least one author, each once, of those numbered 0 to {self.authors - 1}"
            )
        if self.authors - len(self.targets) < 2:
            raise RecipeError(
                f"targets = {list(self.targets)} leaves fewer than two of {self.authors} authors for the base to read: name fewer"
            )
        there = round(self.messages * 2 / 3)
        wrong = [n for n in self.counts if n == 1 or n > there]
        if wrong or not self.counts:
            raise RecipeError(
                f"counts = {list(self.counts)}: give 0, or 2 to {there} messages (two thirds of {self.messages} are there to train on)"
            )
        if self.texts > self.messages - round(self.messages * 5 / 6):
            raise RecipeError(
                f"texts = {self.texts} is more than an author's test messages: use at most {self.messages - round(self.messages * 5 / 6)}"
            )
        self.federation.check(len(self.targets))
