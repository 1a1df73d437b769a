"""LoRDO (arXiv 2602.04396, ICML 2026): low-rank moments in a basis that all workers read off their mean pseudo-gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer, count_, steps_taken
from lab.engine.stack import Stack, clip_, frozen, layout_like
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError, one_of
from lab.methods.registry import method, never_synced
from lab.optimizers.low_rank import first_basis, low_rank_adam_, rotate_, short_side_first, top_basis


def QHAdam(lr: float, betas: tuple[float, float] = (0.9, 0.95), weight: float = 0.97, eps: float = 1e-8) -> Optimizer:
    """Quasi-hyperbolic Adam with one momentum: decays β1, β2 and the weight ω of the momentum."""
    return Optimizer("QHAdam", lr, {"betas": betas, "weights": [weight], "eps": eps})


@method("lordo")
@config
class LoRDO:
    """Every matrix θ (p × q, p ≤ q) keeps Adam's moments in r directions Q (p × r); every K steps the workers agree again.

    A step goes along (1 − ω)·G / mean(√v + ε) + ω·Q·(u / (√v + ε)): without the first, full-rank term the pseudo-gradient
    lies in the span of Q and the basis read off it stays the same for ever.

    Sends, every ``sync_every`` local steps: ``params``, ``exp_avg`` and ``exp_avg_sq`` (r × q for projected matrices),
    and ``residual`` with error feedback. The basis needs no traffic: all compute it from the mean pseudo-gradient. With
    ``projector="gradient"`` the mean of the last gradients (of projected matrices) is sent as well.

    State: local moments, ``projector`` (p × r) and ``residual``; shared ``params`` of projected matrices as they were at
    the last sync. Per projected matrix the optimizer keeps 2·r·q + p·r numbers instead of 2·p·q. Embeddings, norms and
    heads, and whatever is not a matrix, are trained by QHAdam with full moments.

    rank
        r, at most the shorter side. The authors' ranks are powers of two down from the width; 1/8 of it at 720M.
    inner
        QHAdam with one momentum. β (0.9, 0.95), ε 1e-8 are the defaults of the authors' class, lr 0.008 and ω 0.97 from
        their launch files; those switch to β = (0.999, 0.999) after 2048 steps of low-rank DDP.
    projector
        whose largest directions become the basis: the ``pseudo_gradient`` (the paper's choice), the mean ``gradient`` of
        the last step, a worker's ``own_gradient``, or its ``own_deviation`` from the mean just before it is taken, as the authors' public code
        has it. In the last two a worker that comes back goes on with a mean of bases until the next sync. Moments in bases of their own
        cannot be averaged: with ``own_gradient`` they stay local (our reading); with ``own_deviation`` they are averaged all the same, as there.
    error_feedback
        add what the projection left out to the next gradient. On in the authors' runs; off here, since with a basis that
        turns slowly the residual grows and is let go at once (it diverged in small problems).
    residual
        ``averaged``, and sent; or ``local``: never averaged, sent or reset, as in the authors' public code.
    low_rank_term
        ``divided``: ω·Q·(û / d), as the paper has it; ``plain``: ω·Q·û, as in the authors' launch files.
    rotate
        write the moments in the new basis. In the authors' public code, with one period for all, averages that were taken before overwrite
        what was rotated: that is False.
    full_rank
        tensors with one of these in their name are not projected; nor is what is personal.

    The paper leaves open whether v is averaged before it is rotated (it is, here), and what becomes of the residual. One stored version
    of the authors' public code was read for the options that are named after it, which may not be what made the paper's tables. It also
    has the residual in the full-rank term, which is no option here.
    """

    sync_every: Period = 32
    rank: Period = 16
    inner: Optimizer = Field(default_factory=lambda: QHAdam(8e-3))
    projector: Literal["pseudo_gradient", "gradient", "own_gradient", "own_deviation"] = "pseudo_gradient"
    error_feedback: bool = False
    residual: Literal["averaged", "local"] = "averaged"
    low_rank_term: Literal["divided", "plain"] = "divided"
    rotate: bool = True
    full_rank: tuple[str, ...] = ("embedding", "norm", "head")
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        if self.inner.name != "QHAdam" or self.inner.state_names != ("exp_avg", "exp_avg_sq"):
            raise RecipeError(one_of("inner optimizer of lordo", self.inner.name, ["QHAdam"]) + " with one momentum")
        if self.inner.options.get("weight_decay"):
            raise RecipeError("lordo has no weight decay: leave method.inner.options.weight_decay out")

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params", *self._moments, *(["gradient"] if self.projector == "gradient" else []))

    @property
    def agrees(self) -> tuple[str, ...]:
        return () if self.projector.startswith("own_") else ("projector",)

    def exceptions(self) -> dict[str, str]:
        if self.projector != "own_deviation":
            return {}
        return {
            "equal workers": "they do not deviate from their mean but by rounding, which a basis cannot be read off"
        }

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if self.residual == "local" and not self.error_feedback:
            yield "method.residual = 'local' makes no difference: without method.error_feedback there is none"

    @property
    def _moments(self) -> tuple[str, ...]:
        """Those that are averaged: in bases of their own they cannot be."""
        if self.projector == "own_gradient":
            return ()
        owed = self.error_feedback and self.residual == "averaged"
        return ("exp_avg", "exp_avg_sq", *(["residual"] if owed else []))

    def init(self, s: State) -> None:
        params = s.local["params"]
        matrix = [n for n in params.names() if params[n].dim() == 3 and not self._in_full(params, n)]
        if not matrix:
            raise RecipeError("lordo has nothing to project: no matrix is left beside method.full_rank")
        basis = {n: first_basis(params[n], self.rank) for n in matrix}  # [H, p, r]

        def moment(name: str) -> torch.Size:
            x = params[name]
            return (basis[name].mT @ short_side_first(x)).shape[1:] if name in basis else x.shape[1:]  # [r, q]

        def zeros(names: Iterable[str], shape: Callable[[str], Sequence[int]]) -> Stack:
            return Stack.zeros(layout_like(params, names, shape), s.fleet.device, s.fleet.dtype)

        s.optimizers["inner"] = self.inner.over(params, s.grads)  # holds the options; the moments have their own shapes
        s.local["exp_avg"], s.local["exp_avg_sq"] = zeros(params.names(), moment), zeros(params.names(), moment)
        s.local["projector"] = zeros(matrix, lambda n: basis[n].shape[1:])
        for name in matrix:
            s.local["projector"][name].copy_(basis[name])
        if self.error_feedback:
            s.local["residual"] = zeros(matrix, lambda n: params[n].shape[1:])
        if self.projector == "pseudo_gradient":
            s.shared["params"] = params.select(matrix).first()

    def _in_full(self, params: Stack, name: str) -> bool:
        """Whether a tensor has full moments; so has what is personal, about which nobody agrees."""
        return params.is_personal(name) or any(word in name for word in self.full_rank)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self._local_step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            matrix = s.local["projector"].names()
            agreed = comm.mean(s.local["params"], "params")
            own = (
                s.local["params"].select(matrix) - agreed.select(matrix) if self.projector == "own_deviation" else None
            )
            s.local["params"].copy_(agreed, s.fleet.up)
            if own is not None:
                towards = own
            elif self.projector == "pseudo_gradient":
                before, s.shared["params"] = s.shared["params"], agreed.select(matrix)
                towards = s.shared["params"] - before  # Δ = E[θ_t] − θ_{t−K}; its sign does not matter
            elif self.projector == "gradient":
                towards = comm.mean(s.grads.select(matrix), "gradient")
            else:
                towards = s.grads.select(matrix)
            for name in self._moments:
                comm.mean_(s.local[name], name)
            self._turn_(s, towards)
        return loss_W

    @numeric
    def _local_step_(self, s: State, t: int) -> None:
        params, Q, E = s.local["params"], s.local["projector"], s.local.get("residual")
        options = s.optimizers["inner"].defaults
        count_(s.optimizers["inner"], params, s.fleet.up, t)
        k = _steps_of_tensors(s)
        with frozen(s.local.values(), s.fleet.up):
            for name in params.names():
                low = name in Q.layout.place
                low_rank_adam_(
                    params[name],
                    s.grads[name],
                    s.local["exp_avg"][name],
                    s.local["exp_avg_sq"][name],
                    Q[name] if low else None,
                    E[name] if low and E is not None else None,
                    lr=self.inner.lr * s.schedule(t),
                    betas=options["betas"],
                    weight=options["weights"][0],
                    eps=options["eps"],
                    k=k[name],
                    divided=self.low_rank_term == "divided",
                )

    @numeric
    def _turn_(self, s: State, towards: Stack) -> None:
        """The new basis at every worker that is up, and its moments written in it."""
        k = _steps_of_tensors(s)
        u, v, Q = s.local["exp_avg"], s.local["exp_avg_sq"], s.local["projector"]
        with frozen((u, v, Q), s.fleet.up):
            for name in Q.names():
                new = top_basis(towards[name], Q[name].shape[-1])  # [1 or H, p, r]
                if self.rotate:
                    rotate_(u[name], v[name], Q[name], new, s.optimizers["inner"].defaults["betas"], k[name])
                Q[name].copy_(new)


def _steps_of_tensors(s: State) -> dict[str, int | Tensor]:
    """How many steps every tensor has taken by now, ``[H]`` where its holders differ."""
    counts = [_one_if_equal(rows) for rows in steps_taken(s.optimizers["inner"], s.local["params"])]
    return {name: counts[i] for name, (i, _) in s.local["params"].layout.place.items()}


def _one_if_equal(counts: list[int]) -> int | Tensor:
    """At least 1: who has taken no step yet is put back after that of the others."""
    return max([1, *counts]) if len(set(counts)) < 2 else torch.tensor(counts, device="cpu").clamp_(min=1)
