"""A synthetic language whose entropy rate is known exactly, so that a plot of the loss can show its floor.

Each dialect is a Markov chain of order k over printable symbols. After k symbols only a few are likely (sparse rows
with Dirichlet weights, drawn so that some symbols are common everywhere, as in Zipf's law), and every symbol keeps a
small probability, which makes the chain ergodic. Dialects share a fraction ``similarity`` of their rows; with ``families``
those of one family (dialects next to each other, as many in each) have a fraction ``kinship`` of the others in common. For such a
chain the entropy rate is ``sum_c pi(c) H(P(.|c))`` bits per symbol, where pi is the stationary distribution of the
contexts c (Shannon 1948, section 7; Cover and Thomas, "Elements of Information Theory", theorem 4.2.4).
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator

# The space first and letters by frequency in English: symbol 0 is the most common one, so samples look like words.
_LETTERS = " etaoinshrdlucmfwypvbgkjqxz.,;-'"
ALPHABET = _LETTERS + "".join(
    c for c in string.digits + string.ascii_uppercase + string.punctuation if c not in _LETTERS
)
BRANCHES = 8  # likely continuations of a context
SMOOTHING = 0.02  # total probability of the unlikely ones
DOCUMENT = 8192  # symbols in a document, about
HELD_OUT_EVERY = 20  # one document in this many is for validation


def check_ranges(corpus: str, *options: tuple[str, float, float, float]) -> None:
    """Raises RecipeError for the first option (name, value, least, greatest) of a generated corpus that is out of its range."""
    for name, value, low, high in options:
        if not low <= value <= high:
            raise RecipeError(f"{corpus}: {name}={value} is out of range: use a value from {low} to {high}")


@dataclass(frozen=True)
class Grammar:
    """Options of the ``grammar`` corpus; ``tokens`` counts the symbols of all dialects, both splits together.

    ``families`` = 0: no dialect is nearer to one of the others than to another.
    """

    seed: int = 0
    dialects: int = 4
    order: int = 2
    symbols: int = 32
    tokens: int = 2_000_000
    similarity: float = 0.5
    families: int = 0
    kinship: float = 0.5

    def __post_init__(self) -> None:
        """Raises RecipeError for a value out of range."""
        check_ranges(
            "grammar",
            ("dialects", self.dialects, 1, 64),
            ("order", self.order, 1, 8),
            ("symbols", self.symbols, 2, len(ALPHABET)),
            ("similarity", self.similarity, 0, 1),
            ("families", self.families, 0, self.dialects),
            ("kinship", self.kinship, 0, 1),
            ("tokens", self.tokens, self.dialects * HELD_OUT_EVERY * 64, 2_000_000_000),
        )
        if self.symbols ** (self.order + 1) > 2**22:
            raise RecipeError(
                f"grammar: order={self.order} with symbols={self.symbols} needs a table of symbols^(order+1) > 2^22 "
                "numbers: use a lower order or fewer symbols"
            )

    @property
    def key(self) -> str:
        """What tells its text apart from that of other options."""
        return repr(self) if self.families else repr(self).split(", families=")[0] + ")"

    @property
    def domains(self) -> list[str]:
        """Names of the dialects."""
        return [f"dialect{d:02d}" for d in range(self.dialects)]

    def tables(self) -> np.ndarray:
        """Transition probabilities, float64 [dialects, symbols**order, symbols]; the oldest symbol counts most."""
        shared = self._rows(numpy_generator(self.seed, "grammar shared"))
        tables = []
        for d in range(self.dialects):
            rng = numpy_generator(self.seed, "grammar dialect", d)
            own = self._with_kin(self._rows(rng), d)
            tables.append(np.where(rng.random((len(own), 1)) < self.similarity, shared, own))
        return np.stack(tables)

    def _with_kin(self, own: np.ndarray, dialect: int) -> np.ndarray:
        """The rows of a dialect, of which some are those of its family."""
        if not self.families:
            return own
        family = self._rows(numpy_generator(self.seed, "grammar family", dialect * self.families // self.dialects))
        rng = numpy_generator(self.seed, "grammar kin", dialect)
        return np.where(rng.random((len(own), 1)) < self.kinship, family, own)

    def _rows(self, rng: np.random.Generator) -> np.ndarray:
        contexts = self.symbols**self.order
        zipf = 1.0 / np.arange(1, self.symbols + 1)
        zipf /= zipf.sum()
        branches = min(BRANCHES, self.symbols)
        # Gumbel top-k: continuations without replacement, common symbols more often than rare ones.
        likely = np.argsort(-(np.log(zipf) + rng.gumbel(size=(contexts, self.symbols))), axis=1)[:, :branches]
        rows = np.zeros((contexts, self.symbols))
        np.put_along_axis(rows, likely, rng.dirichlet(np.full(branches, 0.5), size=contexts), axis=1)
        return (1 - SMOOTHING) * rows + SMOOTHING * zipf

    def floors(self) -> dict[str, float]:
        """Entropy rate of every dialect in bits per symbol."""
        return {name: entropy_rate(table, self.order) for name, table in zip(self.domains, self.tables(), strict=True)}

    def documents(self) -> Iterator[tuple[str, str, str, bool]]:
        """(name, domain, text, held_out) of every document, dialect by dialect, all of the same length."""
        tables = self.tables()
        per_dialect = self.tokens // self.dialects
        count = max(HELD_OUT_EVERY, round(per_dialect / DOCUMENT))
        for d, domain in enumerate(self.domains):
            drawn = sample(
                tables[d], self.order, count, per_dialect // count, numpy_generator(self.seed, "grammar text", d)
            )
            letters = np.frombuffer(ALPHABET.encode("ascii"), np.uint8)[drawn]
            for i, row in enumerate(letters):
                yield f"{i:05d}", domain, row.tobytes().decode("ascii"), i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def stationary(table: np.ndarray, order: int) -> np.ndarray:
    """Stationary distribution over contexts, float64 [S**order], of an ergodic ``table`` [S**order, S].

    By power iteration down to rounding: it needs no S**order x S**order matrix and every step contracts, because
    every symbol can follow every context.
    """
    contexts, symbols = table.shape
    pi = np.full(contexts, 1.0 / contexts)
    for _ in range(100_000):
        # (oldest, rest) -> symbol becomes context (rest, symbol): sum the oldest symbol out.
        after = (pi[:, None] * table).reshape(symbols, contexts).sum(axis=0)
        change = np.abs(after - pi).sum()
        pi = after / after.sum()
        if change < 1e-14:
            break
    return pi


def entropy_rate(table: np.ndarray, order: int) -> float:
    """``sum_c pi(c) H(P(.|c))`` in bits per symbol, for ``table`` [S**order, S]."""
    logs = np.log2(table, out=np.zeros_like(table), where=table > 0)
    return float(-(stationary(table, order) @ (table * logs).sum(axis=1)))


def sample(table: np.ndarray, order: int, chains: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Symbols, int64 [chains, length]: independent stationary runs of the chain ``table`` [S**order, S]."""
    contexts, symbols = table.shape
    context = rng.choice(contexts, size=chains, p=stationary(table, order))
    out = np.empty((length + order, chains), dtype=np.int64)
    for i in range(order):  # the first context is the first ``order`` symbols
        out[i] = context // symbols ** (order - 1 - i) % symbols
    # One sorted array holds the cumulative rows of all contexts, row c in [c, c + 1]: one search draws all chains.
    edges = (np.cumsum(table, axis=1)[:, :-1] + np.arange(contexts)[:, None]).ravel()
    for i in range(order, length):
        found = np.searchsorted(edges, context + rng.random(chains), side="right")
        out[i] = np.clip(found - context * (symbols - 1), 0, symbols - 1)
        context = context * symbols % contexts + out[i]
    return out[:length].T
