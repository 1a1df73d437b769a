"""Windows of tokens dealt to workers, and batches that need no cursor.

The unit is a window: with context c, window i reads ``ids[i*c : i*c+c]`` and predicts ``ids[i*c+1 : i*c+c+1]``, so
that no position is predicted in two windows. Its domain is that of the document its first token is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lab.data.cache import Tokens
from lab.data.shards import Drawn, Lazy, Shards, rounded, sizes
from lab.ground.config import number_in
from lab.ground.errors import RecipeError, one_of
from lab.ground.seeds import numpy_generator
from lab.ground.seeds.permutations import permutations

if TYPE_CHECKING:
    import torch

SPLITS = (
    "iid",
    "domain",
    "groups",
    "by:<column>",
    "dirichlet:<alpha>",
    "size:<exponent>",
    "draw:<n>",
    "draw:<n>:<alpha>",
)
PART = 1 << 20  # windows that are looked at together
LEAST_ALPHA = 0.001  # below that a Dirichlet draw underflows
SMALL = 1024  # items of a shard
REMEMBERED = 1024  # workers or clients whose present epoch, or shard that is made for it, is kept in memory


def count_windows(tokens: Tokens, context: int) -> int:
    """How many windows ``tokens`` holds. Raises RecipeError where there is not one."""
    if context < 1:
        raise RecipeError(f"context must be at least 1 token, not {context}")
    count = (len(tokens.ids) - 1) // context
    if count < 1:
        raise RecipeError(
            f"a context of {context} needs {context + 1} tokens but there are {len(tokens.ids)}: "
            f"use a context of at most {len(tokens.ids) - 1} or more text"
        )
    return count


def window_domains(tokens: Tokens, context: int) -> np.ndarray:
    """Domain of every window, int32 [windows], as an index in ``Corpus.domains``."""
    out = np.empty(count_windows(tokens, context), np.int32)
    for at in range(0, len(out), PART):  # there may be fifty million
        first = np.arange(at, min(at + PART, len(out)), dtype=np.int64) * context
        out[at : at + PART] = tokens.doc_domain[np.searchsorted(tokens.doc_start, first, side="right") - 1]
    return out


def window_documents(tokens: Tokens, context: int) -> np.ndarray:
    """The document that every window begins in, int64 [windows]."""
    first = np.arange(count_windows(tokens, context), dtype=np.int64) * context
    found: np.ndarray = np.searchsorted(tokens.doc_start, first, side="right") - 1
    return found


def split_windows(tokens: Tokens, num_workers: int, context: int, how: str = "iid", seed: int = 0) -> Shards:
    """Deal windows to ``num_workers`` workers, see `partition`: sorted int64 arrays of window indices.

    Raises RecipeError as `partition` does, and where the context is too long.
    """
    return partition(
        window_domains(tokens, context),
        num_workers,
        how,
        seed,
        salt=(context,),
        items=f"windows of {context} tokens",
        remedy="use fewer workers or a smaller context",
    )


def partition(
    domains: np.ndarray,
    num_workers: int,
    how: str = "iid",
    seed: int = 0,
    *,
    salt: Sequence[int] = (),
    items: str = "examples",
    by_columns: bool = False,
    remedy: str = "use fewer workers (or clients), or split=draw:<n>, where several may have the same",
) -> Shards:
    """Deal items, of which the domain of each is known (int [items]), to workers.

    Returns sorted int64 arrays of indices, none empty; but for ``draw`` they are disjoint, and together all items.

    * ``iid``: at random, equal sizes (the first workers get one more where it does not divide).
    * ``domain``, ``groups``: whole domains, the largest first, each to the worker with least so far. The seed plays no part. (Of
      text the natural groups are its domains, of other examples they are people, writers, sites.)
    * ``by:<column>+<column>``: the same of what has equal values in these columns; the caller gives them as domains (``by_columns``).
    * ``dirichlet:<alpha>``: each domain is divided in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019,
      arXiv:1909.06335); small alpha gives workers different domains, large alpha tends to ``iid``.
    * ``size:<exponent>``: at random, worker w gets a share that goes as ``(w + 1) ** -exponent``; 0 gives equal sizes.
    * ``draw:<n>``: each worker draws n items of its own from all, which others may have as well. They are drawn when they are asked for,
      so a million clients cost nothing until they take part.
    * ``draw:<n>:<alpha>``: the same, with the domains of each in proportions of its own, drawn from Dirichlet(alpha)
      (`lab.data.shards.Drawn`).

    ``salt`` makes draws of one seed differ; ``items`` and ``remedy`` are words for the errors.
    Raises RecipeError where a worker would get nothing, and for an unknown ``how``.
    """
    kind, parameter, alpha, _ = _checked(how, num_workers, by_columns)
    if kind == "draw":
        return _drawn(domains, num_workers, int(parameter), alpha, seed, salt, items)
    count = len(domains)
    if num_workers > count:
        raise RecipeError(
            f"worker {count} would get no data: there are {count} {items} for {num_workers} workers: {remedy}"
        )
    rng = numpy_generator(seed, f"split {kind}", num_workers, *salt)
    if kind in ("domain", "groups", "by"):
        shards = _whole_domains(domains, num_workers, how)
    elif kind == "dirichlet":
        shards = _parts_of_domains(domains, num_workers, parameter, rng)
    else:
        shares = np.arange(1, num_workers + 1, dtype=np.float64) ** -parameter  # iid: exponent 0
        shards = [[part] for part in _divide(rng.permutation(count), shares / shares.sum())]
    remedy = f"split {how!r} deals {count} {items} to {num_workers} workers: {remedy}, or another split"
    return [_shard(worker, parts, remedy) for worker, parts in enumerate(shards)]


def _checked(how: str, num_workers: int, by_columns: bool) -> Split:
    split = parse_split(how)
    if split.kind == "by" and not by_columns:
        raise RecipeError(f"split {how!r} goes by columns of examples, which text does not have: use domain")
    if num_workers < 1:
        raise RecipeError(f"the number of workers must be at least 1, not {num_workers}")
    return split


def _shard(worker: int, parts: list[np.ndarray], remedy: str) -> np.ndarray:
    """What one worker got, sorted. Raises RecipeError where that is nothing."""
    mine = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if not len(mine):
        raise RecipeError(f"worker {worker} would get no data: {remedy}")
    return np.sort(mine).astype(np.int64, copy=False)


def _by_domain(domains: np.ndarray) -> list[np.ndarray]:
    """Indices of the items of each domain."""
    return np.split(np.argsort(domains, kind="stable"), np.cumsum(np.bincount(domains))[:-1])


def _whole_domains(domains: np.ndarray, num_workers: int, how: str) -> list[list[np.ndarray]]:
    """The largest domain first, each to the worker with least so far."""
    found = [members for members in _by_domain(domains) if len(members)]
    if len(found) < num_workers:
        what = "domain" if how == "domain" else "group"
        raise RecipeError(
            f"worker {len(found)} would get no data: split {how!r} gives {len(found)} {what}s to {num_workers} workers: use at most "
            f"{len(found)} workers (of clients, clients.num), or another split"
        )
    shards: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
    load = np.zeros(num_workers, dtype=np.int64)
    for members in sorted(found, key=len, reverse=True):
        worker = int(load.argmin())
        shards[worker].append(members)
        load[worker] += len(members)
    return shards


def _parts_of_domains(
    domains: np.ndarray, num_workers: int, alpha: float, rng: np.random.Generator
) -> list[list[np.ndarray]]:
    """Of each domain to every worker a part, in proportions from Dirichlet(alpha)."""
    shards: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
    for members in _by_domain(domains):
        shares = rng.dirichlet(np.full(num_workers, alpha))
        for shard, part in zip(shards, _divide(rng.permutation(members), shares), strict=True):
            shard.append(part)
    return shards


class Split(NamedTuple):
    """A way of `partition`: its kind, its number, and what ``draw`` and ``by`` have besides."""

    kind: str
    number: float = 0.0
    alpha: float | None = None
    columns: tuple[str, ...] = ()

    @property
    def goes_by_domain(self) -> bool:
        """Whether the domains of items decide who gets them."""
        return self.kind in ("domain", "groups", "dirichlet", "by") or self.alpha is not None


def _drawn(
    domains: np.ndarray, num: int, size: int, alpha: float | None, seed: int, salt: Sequence[int], items: str
) -> Drawn:
    """For each of ``num`` clients a draw of its own, of ``size`` items."""
    if size > len(domains):
        raise RecipeError(
            f"split 'draw:{size}' gives {size} {items} to each client, and there are {len(domains)}: draw fewer"
        )
    by_domain = [members for members in _by_domain(domains) if len(members)] if alpha is not None else []
    return Drawn(num, size, len(domains), seed, tuple(by_domain), alpha, tuple(salt))


def parse_split(how: str) -> Split:
    """Which way of `partition`. Raises RecipeError for anything else."""
    kind, colon, number = how.partition(":")
    if kind in ("iid", "domain", "groups") and not colon:
        return Split(kind)
    if kind == "draw":
        return _parse_draw(how, number)
    if kind == "by":
        columns = tuple(number.split("+"))
        if not all(columns) or len({*columns}) < len(columns):
            raise RecipeError(
                f"split {how!r}: write by:<column>, as in by:person, or several once each, as in by:person+room"
            )
        return Split(kind, columns=columns)
    if kind not in ("dirichlet", "size"):
        raise RecipeError(one_of("split", how, SPLITS))
    value = number_in(number)
    low = LEAST_ALPHA if kind == "dirichlet" else 0.0
    if value is None or not low <= value <= 1e6:
        raise RecipeError(f"split {how!r}: write {kind}:<number> with a number from {low:g} to 1e6, as in {kind}:0.5")
    return Split(kind, value)


def _parse_draw(how: str, numbers: str) -> Split:
    count, colon, concentration = numbers.partition(":")
    num, alpha = number_in(count), number_in(concentration) if colon else None
    if num is None or not 1 <= num <= 1e9 or num != int(num):
        raise RecipeError(f"split {how!r}: write draw:<examples of each client>, as in draw:20, or draw:20:0.5")
    if colon and (alpha is None or not LEAST_ALPHA <= alpha <= 1e6):
        raise RecipeError(
            f"split {how!r}: write draw:<n>:<alpha> with alpha from {LEAST_ALPHA:g} to 1e6, as in draw:20:0.5"
        )
    return Split("draw", num, alpha)


def _divide(items: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """Cut ``items`` in parts of about ``shares`` (`rounded`)."""
    return np.split(items, np.cumsum(rounded(shares, len(items)))[:-1])


def _windows(tokens: Tokens, context: int) -> np.ndarray:
    """View of the ids as overlapping rows, [windows, context + 1]: row i is window i with its last target."""
    ids = np.asarray(tokens.ids)
    shape = (count_windows(tokens, context), context + 1)
    return np.lib.stride_tricks.as_strided(ids, shape, (context * ids.itemsize, ids.itemsize), writeable=False)


def _tensors(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    # Two copies, so that both tensors are contiguous.
    return torch.from_numpy(rows[:, :-1].astype(np.int64)), torch.from_numpy(rows[:, 1:].astype(np.int64))


@dataclass(frozen=True)
class Order:
    """Which items of its shard a worker takes in each batch, as a pure function of (seed, worker, t).

    A worker goes through its shard without replacement, epoch after epoch, in a fresh order each time. A batch at the
    end of an epoch takes its rest from the next one. May be asked from several threads. Clients with draws of their own (`Drawn`), of
    whom there may be very many, are looked up together.
    """

    shards: Shards
    batch_size: int
    seed: int
    _together: dict[str, tuple[tuple[int, ...], np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _made: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)  # shards by owner
    # worker -> (epoch, its items in order): only a cache, of some workers, each pair replaced whole, so threads may race on it
    _epochs: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises RecipeError for a batch size below 1 or an empty shard."""
        if self.batch_size < 1:
            raise RecipeError(f"the batch size must be at least 1, not {self.batch_size}")
        if isinstance(self.shards, Lazy):
            return
        for worker, size in enumerate(self._sizes):
            if not size:
                raise RecipeError(f"worker {worker} has no data: use fewer workers or another split")

    @cached_property
    def _sizes(self) -> Sequence[int]:
        return sizes(self.shards)

    def _shard(self, worker: int) -> np.ndarray:
        """The shard of a worker. A small one that is made when it is asked for is kept: making fifty may take as long as their steps."""
        found = self._made.get(worker)
        if found is None:
            found = self.shards[worker]
            if isinstance(self.shards, Lazy) and len(found) <= SMALL:
                if len(self._made) >= REMEMBERED:
                    self._made.clear()
                self._made[worker] = found
        return found

    def _shards_of(self, drawn: Drawn, clients: Sequence[int]) -> np.ndarray:
        """Those of some clients, ``[clients, size]``: uniform draws are made together, which is faster than to look for each."""
        return drawn.of_all(clients) if drawn.alpha is None else np.stack([*map(self._shard, clients)])

    def _epoch(self, worker: int, epoch: int) -> np.ndarray:
        cached = self._epochs.get(worker)
        if cached is None or cached[0] != epoch:
            if cached is None and len(self._epochs) >= REMEMBERED:
                self._epochs.clear()  # clients come and go
            cached = (epoch, numpy_generator(self.seed, "epoch", worker, epoch).permutation(self._shard(worker)))
            self._epochs[worker] = cached
        return cached[1]

    def items(self, worker: int, t: int) -> np.ndarray:
        """Indices of the items in batch ``t`` (from 1) of ``worker``, int64 [batch_size]."""
        if t < 1 or not 0 <= worker < len(self.shards):
            raise IndexError(f"worker {worker} of {len(self.shards)}, batch {t}: workers count from 0, batches from 1")
        if isinstance(self.shards, Drawn):
            alone: np.ndarray = self.items_of([worker], t)[0]
            return alone
        size = self._sizes[worker]
        start, need = (t - 1) * self.batch_size, self.batch_size
        parts = []
        while need:
            epoch, at = divmod(start, size)
            parts.append(self._epoch(worker, epoch)[at : at + need])
            start, need = start + len(parts[-1]), need - len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def items_of(self, workers: Sequence[int], t: int) -> np.ndarray:
        """The same of some workers, int64 [workers, batch_size]."""
        drawn = self.shards
        if not isinstance(drawn, Drawn):
            return np.stack([self.items(w, t) for w in workers])
        who, first = tuple(workers), (t - 1) * self.batch_size
        parts = []
        for epoch in range(first // drawn.size, (first + self.batch_size - 1) // drawn.size + 1):
            make = partial(self._in_order, drawn, who, epoch)
            items, at = self._remembered(f"epoch {epoch % 2}", (*who, epoch), make), first - epoch * drawn.size
            parts.append(items[:, max(at, 0) : at + self.batch_size])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _in_order(self, drawn: Drawn, who: tuple[int, ...], epoch: int) -> np.ndarray:
        """The items of some workers in the order of an epoch, ``[workers, size]``."""
        items = self._remembered("shards", who, partial(self._shards_of, drawn, who))
        ids = np.stack([np.array(who), np.full(len(who), epoch)], axis=1)
        return np.take_along_axis(items, permutations(self.seed, "epoch", ids, drawn.size), axis=1)

    def _remembered(self, what: str, key: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """What was made last, if it was for the same; replaced whole, so threads may race on it."""
        found = self._together.get(what)
        if found is None or found[0] != key:
            found = self._together[what] = key, make()
        return found[1]


@dataclass(frozen=True)
class Batches:
    """Stateless batches of windows: batch (worker, t) follows from (seed, worker, t) alone, so resume needs no cursor.

    See `Order` for which windows a worker takes. ``get`` may be called from several threads.
    """

    tokens: Tokens
    shards: Shards
    batch_size: int
    context: int
    seed: int

    def __post_init__(self) -> None:
        """Raises RecipeError for a batch size below 1, an empty shard, or a context longer than the text."""
        count_windows(self.tokens, self.context)
        _ = self._order

    @cached_property
    def _order(self) -> Order:
        return Order(self.shards, self.batch_size, self.seed)

    @cached_property
    def _rows(self) -> np.ndarray:
        return _windows(self.tokens, self.context)

    def get(self, worker: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of batch ``t`` (from 1) of ``worker``: int64 [batch_size, context] each."""
        return self.take(self._order.items(worker, t))

    def items(self, worker: int, t: int) -> np.ndarray:
        """Indices of the windows of batch ``t`` (from 1) of ``worker``, int64 [batch_size]."""
        return self._order.items(worker, t)

    def take(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of some windows, int64 [len(index), context] each."""
        return _tensors(self._rows[index])


def evenly_spaced(total: int, num: int, item: str) -> np.ndarray:
    """``num`` of ``total`` indices, evenly spaced (all of them where there are fewer), int64. ``item``: a word for the error."""
    if num < 1:
        raise RecipeError(f"validation needs at least 1 {item}, not {num}")
    count = min(num, total)
    return np.arange(count, dtype=np.int64) * total // count


def cut(index: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Indices in parts of ``batch_size``; the last may have fewer."""
    if batch_size < 1:
        raise RecipeError(f"the batch size must be at least 1, not {batch_size}")
    return [index[i : i + batch_size] for i in range(0, len(index), batch_size)]


def validation_windows(tokens: Tokens, context: int, num_windows: int) -> np.ndarray:
    """Indices of ``num_windows`` evenly spaced windows (all of them where there are fewer), int64."""
    return evenly_spaced(count_windows(tokens, context), num_windows, "window")


def validation_batches(
    tokens: Tokens, context: int, batch_size: int, num_windows: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A fixed validation set: the windows of ``validation_windows``, in order, as `window_batches`."""
    return window_batches(tokens, context, batch_size, validation_windows(tokens, context, num_windows))


def window_batches(
    tokens: Tokens, context: int, batch_size: int, windows: np.ndarray
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Windows by number, in order: pairs of int64 [batch_size, context] inputs and targets; the last pair may have fewer rows."""
    rows = _windows(tokens, context)
    return [_tensors(rows[part]) for part in cut(windows, batch_size)]
