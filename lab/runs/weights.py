"""Weights of samples in the loss of a run (`lab.recipes.weighting`), with what each worker remembers for them.

Legend: B samples of a batch, T positions, D width, A anchors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.bm25 import BM25, Term, pairs, words
from lab.data.domains import number
from lab.data.splits import evenly_spaced
from lab.data.training_data import Domains, TrainingData
from lab.engine.checkpoint import Part, Piece, Rows
from lab.engine.fleet import Fleet
from lab.engine.state import Loss, State
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from lab.methods.weights import (
    EPS,
    by_sample,
    centroid,
    directions,
    gate,
    hard,
    lin_upper,
    pooled,
    real_tokens,
    reduced,
    shown_as,
    softmax,
)
from lab.recipes.recipe import Recipe

MOST = 2048  # samples of a worker that are remembered until somebody asks for them
REFERENCE = 2048  # samples by which scores of BM25 are standardised
FORGETS = 0.1  # weight of a batch in the mean and variance of scores
PREFIX = "weights"


@dataclass(frozen=True)
class Look:
    """What a worker knows of the anchors since it last looked at them.

    centroid, middle
        ``[D]``: the mean of the anchors' directions, and whence directions are seen.
    spread
        float64 ``[2]``: mean and variance of scores, by which they are standardised; it follows the batches since then.
    when
        int64 ``[2]``: which look it is, and whose data it has seen.
    """

    centroid: Tensor
    middle: Tensor
    spread: Tensor
    when: Tensor


class Weights(Part):
    """What every worker here knows of the anchors, and the weights of its last samples."""

    def __init__(self, recipe: Recipe, fleet: Fleet, data: TrainingData):
        assert data.domains is not None
        self.recipe, self.fleet, self.weighting, self.domains = recipe, fleet, recipe.weighting, data.domains
        self.looks: dict[int, Look] = {}
        self.seen: dict[int, list[Tensor]] = {}  # score, weight and domain, ``[B, 3]`` of each batch
        self.static = _static(recipe, self.domains)

    def in_loss(self, t: int, s: State, loss: Loss | None) -> Loss:
        """The loss of local step ``t`` that a method trains with. Raises RecipeError where it has one of its own."""
        if loss is not None:
            raise RecipeError(
                "weighting weighs the model's own loss, and the method trains one of its own: leave out one"
            )

        def weighed(module: nn.Module, worker: int, ids: Tensor, targets: Tensor) -> Tensor:
            return self.loss(module, worker, s.clients_W[worker] if s.clients_W else worker, t, ids, targets)

        return weighed

    def loss(self, module: nn.Module, worker: int, owner: int, t: int, ids: Tensor, targets: Tensor) -> Tensor:
        """Of a worker's batch ``[B, T]``, which is that of ``owner`` in local step ``t``: trains on w·ℓ, and says the plain loss."""
        weighting = self.weighting
        items = self.domains.items(owner, t)
        if weighting.by == "uniform":
            plain: Tensor = module.loss(ids, targets)  # type: ignore[operator]
            self._remember(worker, items, None, torch.ones(len(ids)))
            return shown_as(plain * len(ids), plain) if weighting.reduce == "sum" else plain
        if weighting.of_states:
            self._look(module, worker, owner, t)
        hidden, logits = module.with_hidden(ids)  # type: ignore[operator]
        losses = by_sample(logits, targets)
        with torch.no_grad():
            s, w = self._weighed(worker, items, hidden, losses, targets)
            self._remember(worker, items, s, w)
            count = (targets >= 0).sum(1)
            plain = (losses * count).sum() / count.sum().clamp(min=1)
        return shown_as(reduced(w.to(losses.dtype), losses, weighting.reduce), plain)

    def _weighed(
        self, worker: int, items: np.ndarray, hidden: Tensor, losses: Tensor, targets: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Scores and weights ``[B]``."""
        c = self.weighting
        if self.static is not None:
            s = torch.from_numpy(self.static(items)).to(losses)
            return (s, gate(s, c.tau, c.clip)) if c.by == "bm25" else (None, s)
        if c.by == "lin_upper":
            return losses, lin_upper(losses, c.cap)
        s = self._scores(worker, hidden, real_tokens(targets))
        if c.by == "adapt":
            return s, gate(s, c.tau, c.clip)
        return s, softmax(s, c.tau) if c.by == "softmax" else hard(s, c.share)

    def _scores(self, worker: int, hidden: Tensor, counts: Tensor) -> Tensor:
        look = self.looks[worker]
        s: Tensor = directions(pooled(hidden, counts), look.middle) @ look.centroid
        if not self.standardizes:
            return s
        mean, variance = look.spread.tolist()
        batch = [float(s.mean()), float(s.var(correction=0))]
        moved = [
            mean + FORGETS * (batch[0] - mean),
            variance + FORGETS * (batch[1] + (batch[0] - mean) ** 2 - variance),
        ]
        self.looks[worker] = replace(look, spread=torch.tensor(moved, dtype=torch.float64))  # for the next batch
        scores: Tensor = (s - mean) / max(variance**0.5, EPS)
        return scores

    @property
    def standardizes(self) -> bool:
        return self.weighting.standardize and self.weighting.by == "adapt"

    # --- looking at anchors ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _look(self, module: nn.Module, worker: int, owner: int, t: int) -> None:
        """Look at the anchors with the present parameters, if it is time to, or somebody else sits there."""
        when = [self.weighting.turn(t), owner]
        if worker in self.looks and self.looks[worker].when.tolist() == when:
            return
        training = [part for part in module.modules() if part.training]
        module.eval()
        try:
            self.looks[worker] = self._looked(module, owner, when)
        finally:
            for part in training:
                part.training = True

    def _looked(self, module: nn.Module, owner: int, when: list[int]) -> Look:
        weighting = self.weighting
        assert self.domains.anchors is not None
        pools = self._pools(module, *self.domains.anchors)
        middle, spread = torch.zeros_like(pools[0]), [0.0, 1.0]
        own = torch.empty(0)
        if weighting.looks_at_own:
            shard = self.domains.shard(owner)
            own = self._pools(module, *self.domains.take(shard[evenly_spaced(len(shard), weighting.anchors, "sample")]))
        if weighting.center:
            middle = own.mean(0)
        c = centroid(directions(pools, middle))
        if self.standardizes:
            s = directions(own, middle) @ c
            spread = [float(s.mean()), float(s.var(correction=0))]
        return Look(c, middle, torch.tensor(spread, dtype=torch.float64), torch.tensor(when))

    def _pools(self, module: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        """Pooled hidden states of samples, ``[len(ids), D]``."""
        device, size = self.fleet.device, self.recipe.batch_size
        found = []
        for some, goals in zip(ids.split(size), targets.split(size), strict=True):
            hidden, _ = module.with_hidden(some.to(device))  # type: ignore[operator]
            found.append(pooled(hidden, real_tokens(goals.to(device))))
        return torch.cat(found)

    # --- what is told, and saved -------------------------------------------------------------------------------------

    def _remember(self, worker: int, items: np.ndarray, s: Tensor | None, w: Tensor) -> None:
        w = w.detach()
        s = torch.full_like(w, float("nan")) if s is None else s.detach().to(w)
        rows = self.seen.setdefault(worker, [])
        rows.append(torch.stack([s, w, torch.from_numpy(self.domains.of[items]).to(w)], 1))
        while len(rows) > 1 and sum(map(len, rows[1:])) >= MOST:
            del rows[0]

    def taken(self, worker: int) -> Tensor:
        """Score (NaN: there is none), weight and domain of the last samples of a worker, float64 ``[samples, 3]``; they are forgotten."""
        rows = self.seen.pop(worker, [])
        return torch.cat(rows)[-MOST:].cpu().double() if rows else torch.empty(0, 3, dtype=torch.float64)

    def tensors(self) -> Iterator[Piece]:
        for w, look in self.looks.items():
            for name, x in vars(look).items():
                yield Piece(f"{PREFIX}/{w}/{name}", x)
        for w, rows in self.seen.items():
            yield Piece(f"{PREFIX}/{w}/seen", torch.cat(rows)[-MOST:])

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        mine = {f"{PREFIX}/{w}" for w in self.fleet.mine}
        return {key: None for key in keys if key.rpartition("/")[0] in mine}

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.looks, self.seen = {}, {}
        for w in self.fleet.mine:
            prefix = f"{PREFIX}/{w}/"
            found = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
            if "seen" in found:
                self.seen[w] = [found.pop("seen").to(self.fleet.device)]
            if found:
                centre, middle = (found[name].to(self.fleet.device) for name in ("centroid", "middle"))
                self.looks[w] = Look(centre, middle, found["spread"], found["when"])


class _Kept:
    """Weights of samples that are known beforehand: 1 or 0."""

    def __init__(self, kept: np.ndarray):
        self.kept = kept

    def __call__(self, items: np.ndarray) -> np.ndarray:
        kept: np.ndarray = self.kept[items].astype(np.float64)
        return kept


class _ByTerms:
    """Standardised scores of BM25."""

    def __init__(self, domains: Domains, kind: str):
        assert domains.anchors is not None
        self.domains, self.kind = domains, kind
        self.bm25 = BM25(self._terms(domains.anchors[0]))
        some = self._raw(evenly_spaced(len(domains.of), REFERENCE, "sample"))
        self.mean, self.deviation = some.mean(), max(float(some.std()), EPS)

    def _terms(self, ids: Tensor) -> list[list[Term]]:
        rows = ids.tolist()
        return [words(self.domains.text(row)) if self.kind == "words" else pairs(row) for row in rows]

    def _raw(self, items: np.ndarray) -> np.ndarray:
        return np.array([self.bm25.score(terms) for terms in self._terms(self.domains.take(items)[0])])

    def __call__(self, items: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (self._raw(items) - self.mean) / self.deviation
        return scores


def _static(recipe: Recipe, domains: Domains) -> _Kept | _ByTerms | None:
    """What says scores or weights of samples that no model has a part in."""
    weighting = recipe.weighting
    if weighting.by == "bm25":
        return _ByTerms(domains, weighting.terms)
    if weighting.by == "random":
        return _Kept(numpy_generator(recipe.seed, "random samples").random(len(domains.of)) < weighting.share)
    if weighting.by == "domains":
        wanted = [number(domains.names, name, "weighting.domains") for name in weighting.domains]
        return _Kept(np.isin(domains.of, wanted))
    return None
