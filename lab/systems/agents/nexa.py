"""Nexa (Tastan et al. 2026, arXiv 2605.15573): a policy that reads all drafts and says who hears whom in one pass after them.

Legend: Q questions of a batch, N agents, E width of an embedding, H width of the policy. An edge m → n lets n hear the answer of m: matrices
``[Q, N, N]`` have who speaks down and who hears across. Agents are numbered as they come; the rank of an agent is its place in the order
of contributions, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, Positive, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import derive
from lab.ground.seeds.draws import Draws
from lab.systems.agents.agent import Call, Ledger, Query, Setting

TIE = 9  # decimals: contributions that agree so far are a tie, whatever the order they were added up in
SMALLEST = 1e-6  # of the weights of a centroid: a cosine may be negative
SATURATED = (0.05, 0.95)  # mean probability of an edge: outside, hardly anything can be learnt by trying


# --- drafts, embeddings, order (steps 1 to 3) ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drafts:
    """What every agent answers alone, and what follows from it: embeddings float32 ``[Q, N, E]``, and agents by rank, int64 ``[Q, N]``."""

    queries: Sequence[Query]
    texts: Sequence[Sequence[str]]  # by question and agent
    embeddings: Tensor
    order: Tensor

    @property
    def feasible(self) -> Tensor:
        return feasible(self.order)


def draft(setting: Setting, queries: Sequence[Query], num_agents: int, ledger: Ledger) -> Drafts:
    """Every agent answers every question alone: one call each."""
    flat = ledger.answer([Call(query, n) for query in queries for n in range(num_agents)])
    texts = [flat[q * num_agents : (q + 1) * num_agents] for q in range(len(queries))]
    embeddings = embed(setting, texts)
    return Drafts(queries, texts, embeddings, order_of(contributions(embeddings)))


def embed(setting: Setting, texts: Sequence[Sequence[str]]) -> Tensor:
    """Float32 ``[Q, N, E]``."""
    flat = setting.encoder.encode([text for of_query in texts for text in of_query])
    return flat.view(len(texts), -1, flat.shape[-1])


def contributions(embeddings: Tensor) -> Tensor:
    """ψ_n = cos(r_n, mean of all r): float64 ``[Q, N]``."""
    r = embeddings.double()
    return F.cosine_similarity(r, r.mean(1, keepdim=True), dim=-1)


def order_of(psi: Tensor) -> Tensor:
    """Agents by falling contribution, int64 ``[Q, N]``; of equal ones the lower number first."""
    return torch.argsort(psi.round(decimals=TIE), dim=-1, descending=True, stable=True)


def feasible(order: Tensor) -> Tensor:
    """Edges that there may be, from a rank to a later one: bool ``[Q, N, N]``. So there is no cycle, whatever a policy says."""
    rank = torch.argsort(order, dim=-1)  # [Q, N], the inverse
    return rank[:, :, None] < rank[:, None, :]


def by_rank(matrix: Tensor, order: Tensor) -> Tensor:
    """A matrix ``[Q, N, N]`` by agent as one by rank."""
    rows = matrix.gather(1, order[:, :, None].expand_as(matrix))
    return rows.gather(2, order[:, None, :].expand_as(matrix))


# --- the policy (steps 4 and 5) --------------------------------------------------------------------------------------


@config
class Policy:
    """Shape of the policy: a transformer encoder that knows no places and no names, and a decoder that compares its outputs.

    One layer, one head, a width of 128 and dropout of 0.3 are the paper's. It does not give the rest ([inferred]): a linear map from the
    encoder's width, post-norm and ReLU as torch has them, and ``mlp_dim``.

    decoder
        ``cosine``: exp(a)·cos(h_m, h_n) + b with a and b learnt, a = 1 and b = 0 at first ([inferred]). ``literal``: h_m·h_n, as the paper
        writes it. After a LayerNorm that is about the width for agents that are alike, so that every edge is there from the beginning, and
        there is nothing to be learnt from trying.
    """

    width: Count = 128
    num_layers: Annotated[int, Field(ge=1, le=64)] = 1
    num_heads: Count = 1
    mlp_dim: Count = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    decoder: Literal["cosine", "literal"] = "cosine"

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise RecipeError(
                f"num_heads = {self.num_heads} does not fit width = {self.width}: width is a multiple of it"
            )

    def build(self, embedding_width: int, seed: int) -> PolicyModule:
        """The module for embeddings of this width, with initial values drawn from ``seed``."""
        with Draws(derive(seed, "policy")):
            return PolicyModule(self, embedding_width)


class PolicyModule(nn.Module):
    """``forward(embeddings [Q, N, E]) -> logits of edges [Q, N, N]``, for any N. Permuting agents permutes the logits."""

    def __init__(self, shape: Policy, embedding_width: int):
        super().__init__()
        self.shape, self.embedding_width = shape, embedding_width
        self.project = nn.Linear(embedding_width, shape.width)
        layer = nn.TransformerEncoderLayer(shape.width, shape.num_heads, shape.mlp_dim, shape.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, shape.num_layers, enable_nested_tensor=False)
        if shape.decoder == "cosine":
            self.log_scale = nn.Parameter(torch.ones(()))  # a
            self.bias = nn.Parameter(torch.zeros(()))  # b

    def forward(self, embeddings: Tensor) -> Tensor:
        h = self.encoder(self.project(embeddings))  # Q N H
        if self.shape.decoder == "literal":
            return h @ h.transpose(1, 2)  # type: ignore[no-any-return]
        h = F.normalize(h, dim=-1)
        return self.log_scale.exp() * (h @ h.transpose(1, 2)) + self.bias  # type: ignore[no-any-return]


def sample(logits: Tensor, feasible: Tensor, g: torch.Generator) -> Tensor:
    """Each feasible edge by its own coin: bool ``[Q, N, N]``."""
    return (torch.rand(logits.shape, generator=g) < logits.detach().sigmoid()) & feasible


def log_probability(logits: Tensor, edges: Tensor, feasible: Tensor) -> Tensor:
    """log p(E | X, π), the sum over feasible edges of e·log p + (1 − e)·log(1 − p): ``[Q]``."""
    signed = torch.where(edges, logits, -logits)  # 1 − σ(x) = σ(−x)
    return (F.logsigmoid(signed) * feasible).sum((1, 2))


def saturation(probability: float) -> str | None:
    """A line for a mean probability of edges that leaves nothing to learn; None where it does."""
    low, high = SATURATED
    if low < probability < high:
        return None
    return (
        f"the policy is saturated before it has learnt anything: the mean probability of an edge is {probability:.3g}, where REINFORCE needs "
        f"{low} to {high}; decoder=cosine has a scale and a bias that begin within"
    )


# --- one sequential pass, and the answer (steps 6 to 8) --------------------------------------------------------------


def sequential_pass(drafts: Drafts, edges: Tensor, ledger: Ledger) -> list[list[str]]:
    """Every agent that hears somebody is asked again, in the order of ranks, with the newest answers of those it hears.

    All questions of a batch go through a rank at once. Without edges nobody is asked. Returns texts by question and agent.
    """
    texts = [list(of_query) for of_query in drafts.texts]
    ranked, heard_NN = drafts.order.tolist(), edges.tolist()
    for rank in range(1, len(texts[0]) if texts else 0):
        calls, places = [], []
        for q, order in enumerate(ranked):
            n = order[rank]
            if heard := tuple(texts[q][m] for m in order[:rank] if heard_NN[q][m][n]):
                calls.append(Call(drafts.queries[q], n, heard))
                places.append((q, n))
        for (q, n), text in zip(places, ledger.answer(calls), strict=True):
            texts[q][n] = text
    return texts


def centroid_answer(embeddings: Tensor) -> Tensor:
    """Whose answer lies nearest to the centroid, weighted by cosines with the mean: int64 ``[Q]``. No judge is asked.

    A cosine below a small positive number counts as that ([inferred]); of equally near answers the first agent's is taken.
    """
    z = embeddings.double()
    w = F.cosine_similarity(z, z.mean(1, keepdim=True), dim=-1).clamp(min=SMALLEST)  # Q N
    centre = (w[..., None] * z).sum(1, keepdim=True) / w.sum(1)[:, None, None]
    near = F.cosine_similarity(z, centre, dim=-1).round(decimals=TIE)
    return (near == near.amax(1, keepdim=True)).int().argmax(1)


# --- learning (step 9) -----------------------------------------------------------------------------------------------


@config
class Learning:
    """How the policy learns: the paper's values, of a policy with Adam.

    sparsity
        λ: what all feasible edges together cost, in correct answers.
    rollouts, baseline
        graphs that are tried for each question, with the same drafts; and what a reward is compared with: the mean of the ``batch``, or mean and
        standard deviation over the rollouts of a ``question`` (the GRPO variant, 4 rollouts). Every rollout is used for one step, so
        that the ratio which GRPO clips is 1.
    """

    updates: Count = 50
    batch_size: Count = 32
    lr: Positive = 0.1
    max_norm: Positive | None = 1.0
    sparsity: Annotated[float, Field(ge=0)] = 0.1
    rollouts: Count = 1
    baseline: Literal["batch", "question"] = "batch"

    def __post_init__(self) -> None:
        if self.baseline == "question" and self.rollouts < 2:
            raise RecipeError(
                "baseline = 'question' compares the rollouts of a question with each other: set rollouts to 2 or more (the paper: 4)"
            )


def reward(right: Tensor, edges: Tensor, sparsity: float) -> Tensor:
    """1[the answer is right] − λ·|E|/M, with M the number of feasible edges: float ``[Q]``."""
    num_agents = edges.shape[-1]
    most = max(1, num_agents * (num_agents - 1) // 2)
    return right.float() - sparsity * edges.sum((1, 2)) / most


def advantages(rewards: Tensor, baseline: str) -> Tensor:
    """Of rewards ``[rollouts, Q]``: less the mean of all, or standardised over the rollouts of each question."""
    if baseline == "batch":
        return rewards - rewards.mean()
    return (rewards - rewards.mean(0)) / (rewards.std(0, correction=0) + 1e-6)


def policy_step_(policy: PolicyModule, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None) -> None:
    """One step of the optimizer on −(1/Q)·Σ Adv·log p."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(policy.parameters(), math.inf if max_norm is None else max_norm)
    optimizer.step()
