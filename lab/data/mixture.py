"""A mixture of four domains, generated: what is wanted, what is like it, noise, and something else.

Every sequence is a run of a Markov chain of order 1 over the same symbols (the toy on which weights of samples are tried):

* ``target``: chain P;
* ``related``: chain likeness·P + (1 − likeness)·Q;
* ``noise``: every symbol with the same probability, whatever is before it;
* ``unrelated``: chain R.

P, Q and R are drawn from one distribution: after each symbol four others are likely, with weights from a flat Dirichlet, and every symbol
has a little of the rest; their entropy is about 1.2 nats. A domain's sequences do not depend on how many the others have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lab.data.grammar import ALPHABET, check_ranges, entropy_rate, sample
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator

NAMES = ("target", "related", "noise", "unrelated")
BRANCHES = 4  # likely symbols after each
SMOOTHING = 0.02  # of the uniform distribution, in each row
MOST = 1_000_000  # sequences of a domain


@dataclass(frozen=True)
class Mixture:
    """Options of the ``mixture`` corpus.

    target, related, noise, unrelated
        sequences to train on; 0: none.
    likeness
        how much of the target's chain is in the related one.
    symbols, length
        different symbols; tokens of a sequence, the one that ends it included: with a context as long every window is one sequence.
    held_out
        sequences of every domain for validation, also of those without any to train on.
    """

    seed: int = 0
    target: int = 300
    related: int = 900
    noise: int = 1500
    unrelated: int = 1500
    likeness: float = 0.7
    symbols: int = 48
    length: int = 32
    held_out: int = 256

    def __post_init__(self) -> None:
        """Raises RecipeError for a value out of range."""
        check_ranges(
            "mixture",
            *((name, num, 0, MOST) for name, num in zip(NAMES, self.sizes, strict=True)),
            ("likeness", self.likeness, 0, 1),
            ("symbols", self.symbols, 2, len(ALPHABET)),
            ("length", self.length, 4, 65_536),
            ("held_out", self.held_out, 2, MOST),
        )
        if not sum(self.sizes):
            raise RecipeError("mixture: no domain has any sequences: give one of target, related, noise, unrelated")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sequences to train on, of each domain."""
        return self.target, self.related, self.noise, self.unrelated

    def tables(self) -> dict[str, np.ndarray]:
        """Transition probabilities by domain, float64 ``[symbols, symbols]``."""
        P, Q, R = (self._drawn(name) for name in ("target", "other", "unrelated"))
        S = self.symbols
        return dict(
            zip(NAMES, (P, self.likeness * P + (1 - self.likeness) * Q, np.full((S, S), 1 / S), R), strict=True)
        )

    def _drawn(self, name: str) -> np.ndarray:
        S, rng = self.symbols, numpy_generator(self.seed, f"mixture {name}")
        likely = rng.permuted(np.tile(np.arange(S), (S, 1)), axis=1)[:, :BRANCHES]
        rows = np.zeros((S, S))
        np.put_along_axis(rows, likely, rng.dirichlet(np.ones(likely.shape[1]), size=S), axis=1)
        return (1 - SMOOTHING) * rows + SMOOTHING / S

    def entropies(self) -> dict[str, float]:
        """Entropy rates by domain, in nats per symbol: what is left to a model that knows the chains."""
        return {name: entropy_rate(table, 1) * float(np.log(2)) for name, table in self.tables().items()}

    def documents(self) -> Iterator[tuple[str, str, str, bool]]:
        """(name, domain, text, held_out) of every sequence, domain by domain."""
        tables = self.tables()
        for name, num in zip(NAMES, self.sizes, strict=True):
            for held_out, count in ((False, num), (True, self.held_out)):
                rng = numpy_generator(self.seed, f"mixture text {name}", held_out)
                drawn = sample(tables[name], 1, count, self.length - 1, rng) if count else ()
                letters = np.frombuffer(ALPHABET.encode("ascii"), np.uint8)
                for i, row in enumerate(drawn):
                    yield f"{i:06d}", name, letters[row].tobytes().decode("ascii"), held_out
