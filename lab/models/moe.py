"""A mixture-of-experts GPT after FoMoE (arXiv 2606.19025, appendix B): σ-MoE in every block, of which a worker may hold a part.

Rotary attention, Peri-LN (``x + m·LN(F(LN(x)))`` around both branches), tied embedding with a LayerNorm after it and one
before the logits, no dropout. Where FoMoE is silent (balance loss, initial values, a router without a chosen expert at
home), the docstrings say what was taken.

Each expert's tensors have names of their own (``blocks.3.moe.experts.17.up``), so who holds an expert follows from names.

Legend: B sequences, T positions, N = B·T tokens, D width, E experts that a router knows, k choices of a token, H width of an
expert, S slots (choices whose expert is at home; without ghosts S = N·k), V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lab.ground.config import Count, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.models.gpt import F32, GPT, Attention, Layers, cross_entropy
from lab.models.shape import Shape

MOST_EXPERTS = 1 << 18  # in all layers: a module each


@config
class MoE:
    """Shape of a GPT with experts.

    expert_dim
        width of an expert; None: 4·dim // num_experts, so that all experts of a layer have the size of a dense 4× MLP.
    num_shared_experts
        experts beside the router: every token goes through them, with gate 1, on every worker.
    gate
        ``sigmoid``: each expert by itself (FoMoE: an expert that is missing does not rescale the others). ``softmax``: over
        the experts that the router knows; with ``renormalise``, over the chosen k alone (Mixtral).
    skip_token
        False: a router has only the columns of its worker's experts, which travel with them. True: every worker has the
        whole router; what goes to an expert that is elsewhere (a ghost) is left out of the computation.
    balance, balance_kind
        coefficient of the balance loss, and which one (`shares_of`). In training it is part of the gradient, never of the
        loss that is reported; in eval mode there is none. It is added up over the layers, and so grows with depth.
        Hugging Face's (``router_aux_loss_coef`` of Mixtral and its kin) is taken once, over the tokens of all layers together, and counts
        every one of a token's ``top_k`` choices in full: its coefficient c is ``balance = c · top_k / num_layers`` here, for a
        softmax gate. For one layer the two are then equal; for more, as far as layers are loaded alike.
    depth_base
        branches count × depth_base / num_layers (CompleteP); None: × 1.
    """

    dim: Count = 64
    num_layers: Layers = 2
    num_heads: Count = 2
    num_experts: Count = 8
    expert_dim: Count | None = None
    top_k: Count = 2
    num_shared_experts: Annotated[int, Field(ge=0)] = 0
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    renormalise: bool = False
    skip_token: bool = False
    balance: Annotated[float, Field(ge=0)] = 0.01
    balance_kind: Literal["load", "entropy"] = "load"
    depth_base: Count | None = None
    vocab_size: Count | None = None

    def __post_init__(self) -> None:
        GPT(dim=self.dim, num_heads=self.num_heads)  # raises where heads do not fit
        if self.num_layers * self.num_experts > MOST_EXPERTS:
            raise RecipeError(
                f"model.num_experts = {self.num_experts} in each of {self.num_layers} layers are more than can be handled: use at "
                f"most {MOST_EXPERTS:,} in all"
            )
        if self.top_k > self.num_experts:
            raise RecipeError(
                f"model.top_k = {self.top_k} asks for more experts than there are: at most num_experts = {self.num_experts}"
            )
        if self.renormalise and self.gate == "sigmoid":
            raise RecipeError(
                "model.renormalise is for gate=softmax: sigmoid gates stand by themselves, so that a missing expert does not "
                "rescale the others; leave it out, or use gate=softmax"
            )
        if not self.width:
            raise RecipeError(
                f"model.num_experts = {self.num_experts} leaves nothing of 4·dim = {4 * self.dim} for each: use fewer experts, "
                "or set expert_dim"
            )

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with this model."""
        recipe.compute.one_by_one("a model with experts")

    @property
    def layers_and_experts(self) -> tuple[int, int]:
        """Layers with experts, and experts of each."""
        return self.num_layers, self.num_experts

    @property
    def width(self) -> int:
        """H."""
        return self.expert_dim or 4 * self.dim // self.num_experts

    def build(
        self,
        vocab_size: int,
        context: int,
        seed: int = 0,
        resident: Sequence[Sequence[int]] | None = None,
        repeats: bool = False,
    ) -> nn.Module:
        """The module with its initial values drawn from ``seed``; under the meta device, only its shapes.

        ``resident[layer]`` are the ids of the experts that it holds (None: all). A tensor's initial value depends on the seed
        and its name alone, so it is the same in every module that has it. With ``repeats``, for shapes alone, layers with the
        same experts are one module under several names: the largest model has 65,536 experts.
        """
        held = self._held(resident)
        module = MoEModule(self, self.vocab_size or vocab_size, context, held, repeats)
        if not module.embedding.is_meta:
            module.init_(seed)
        return module

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """See `lab.models.shape.Model`."""
        return self.build(shape.tokens_for("MoE"), shape.context, seed)

    def _held(self, resident: Sequence[Sequence[int]] | None) -> list[tuple[int, ...]]:
        if resident is None:
            return [tuple(range(self.num_experts))] * self.num_layers
        if len(resident) != self.num_layers:
            raise RecipeError(f"resident names experts of {len(resident)} layers: the model has {self.num_layers}")
        for layer, ids in enumerate(resident):
            if len(set(ids)) < len(ids) or not set(ids) <= set(range(self.num_experts)):
                raise RecipeError(
                    f"resident[{layer}] = {list(ids)} is not allowed: use distinct ids from 0 to {self.num_experts - 1}"
                )
            if not ids and not self.skip_token:
                raise RecipeError(
                    f"resident[{layer}] is empty, and a partitioned router cannot choose among no experts: "
                    "hold at least one, or use skip_token"
                )
        return [tuple(sorted(ids)) for ids in resident]

    def num_params(self, vocab_size: int) -> tuple[int, int]:
        """As of `GPT`; with a partitioned router its columns count with their experts."""
        D, E, H = self.dim, self.num_experts, self.width
        layer = 4 * D + 4 * D**2 + 2 * D * H * self.num_shared_experts + (E * D if self.skip_token else 0)
        experts = E * (2 * D * H + (0 if self.skip_token else D))
        return (self.vocab_size or vocab_size) * D + 2 * D + self.num_layers * layer, self.num_layers * experts

    def floats_per_token(self, vocab_size: int) -> int:
        """What backward needs of a token: a layer's 11 rows of width dim and its experts' inner rows; its logits twice."""
        inner = (self.top_k + 2 * self.num_shared_experts) * self.width
        return self.num_layers * (11 * self.dim + inner) + 2 * (self.vocab_size or vocab_size)


def _paper(dim: int, num_layers: int, num_experts: int) -> MoE:
    """A row of the paper's table: heads of 64, experts of 128, a quarter of them active, a vocabulary of 200,019."""
    return MoE(
        dim=dim,
        num_layers=num_layers,
        num_heads=dim // 64,
        num_experts=num_experts,
        expert_dim=128,
        top_k=num_experts // 4,
        depth_base=4,
        vocab_size=200_019,
    )


SIZES: dict[str, MoE] = {
    "moe-pico": MoE(dim=32),  # 33k
    "moe-nano": MoE(),  # 116k parameters with a vocabulary of 256
    "moe-micro": MoE(dim=128, num_layers=4, num_heads=4),  # 0.8M
    "fomoe-54M": _paper(256, 4, 8),
    "fomoe-153M": _paper(512, 16, 16),
    "fomoe-1.8B": _paper(1024, 128, 32),
    "fomoe-13B": _paper(2048, 256, 64),
    "fomoe-104B": _paper(4096, 512, 128),
}


# --- one layer ---------------------------------------------------------------------------------------------------------


def gates_of(logits: Tensor, c: MoE) -> tuple[Tensor, Tensor, Tensor]:
    """Gates of all known experts ``[N, E]``; gates and positions of the chosen ``[N, k]``, the largest gate first."""
    p = logits.sigmoid() if c.gate == "sigmoid" else logits.softmax(-1)
    gates, chosen = p.topk(min(c.top_k, p.shape[1]))
    if c.renormalise:
        gates = gates / gates.sum(-1, keepdim=True)
    return p, gates, chosen


def shares_of(logits: Tensor, p: Tensor, load: Tensor, c: MoE) -> tuple[Tensor, Tensor]:
    """What the balance loss is made of, `balance` · mean over tokens of ``share [N, E] @ price [E]``.

    Keeps a router from wearing out a few of the experts that it knows. FoMoE names no formula; these are common:

    ``load`` (Switch, arXiv 2101.03961): ``E · Σ f_i P_i``, P_i the mean over tokens of ``p_i / Σ_j p_j``, f_i the part of
    all choices (``load [E]``) that went to i, which is given: no gradient. Even routing costs 1.
    ``entropy`` (σ-MoE, arXiv 2310.10837): minus the entropy ``Σ P_i log P_i`` of P, the batch's mean softmax. Its gradient,
    too, is that with ``log P_i`` given, for the P_i add up to 1.
    """
    tiny = torch.finfo(p.dtype).tiny  # nothing becomes NaN where all gates are 0
    if c.balance_kind == "entropy":
        share = logits.softmax(-1)
        return share, share.mean(0).clamp_min(tiny).log()
    num_choices = len(p) * min(c.top_k, len(load))
    return p / p.sum(-1, keepdim=True).clamp_min(tiny), load.to(p.dtype) * (len(load) / num_choices)


def mix_naive(
    x: Tensor,
    router: Tensor,
    c: MoE,
    held: Sequence[int],
    training: bool,
    ups: Sequence[Tensor],
    downs: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """What `Mix` computes, written down as it is meant: ``y = Σ gate_i · down_i · SiLU(up_i · x)`` over chosen i at home."""
    logits = F.linear(x, router)
    p, gates, chosen = gates_of(logits, c)
    y = torch.zeros_like(x)
    for i, up, down in zip(held, ups, downs, strict=True):
        gate = (gates * (chosen == i)).sum(1, keepdim=True)  # N 1: zero where i was not chosen
        y = y + gate * F.linear(F.silu(F.linear(x, up)), down)
    load = torch.stack([(chosen == i).sum() for i in range(len(router))])
    share, price = shares_of(logits, p, load, c)
    return y, c.balance * training * (share.mean(0) * price).sum()


# Rows of neighbouring experts are gathered together up to this size: few calls with small shapes, and with large ones what
# belongs together stays in a core's cache.
CHUNK_BYTES = 1 << 20


def chunks_of(counts: Sequence[int], most: int) -> list[range]:
    """Runs of experts whose rows add up to ``most`` or less (an expert with more is alone)."""
    chunks: list[range] = []
    rows = most
    for i, count in enumerate(counts):
        if not chunks or rows + count > most:
            chunks.append(range(i, i))
            rows = 0
        chunks[-1] = range(chunks[-1].start, i + 1)
        rows += count
    return chunks


class Mix(torch.autograd.Function):
    """Router, experts, weighted sum and balance loss in one, the gradient by hand.

    Slots are sorted by expert once, so each expert is two matrix products on rows that lie together. The gate scales hidden
    activations, which are narrower than rows of y. For backward only x and pre-activations are kept, less than by a dense MLP
    of the same active width; rows are gathered anew.

    Takes x ``[N, D]``, router ``[E, D]``, positions of the resident experts in it, their ups ``[H, D]``, their downs
    ``[D, H]``. Gives y ``[N, D]``, balance loss ``[]`` and, without gradient, logits ``[N, E]`` and positions ``[N, k]``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, router: Tensor, c: MoE, held: Sequence[int], training: bool, *experts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ups, downs = experts[: len(held)], experts[len(held) :]
        logits = torch.mm(router, x.t()).t()  # so few are the experts that this way round is the faster
        p, gates, chosen = gates_of(logits, c)
        slots = chosen.view(-1).argsort(stable=True)  # choices, counted 0 … N·k−1, those of the first expert first
        load = torch.bincount(chosen.view(-1), minlength=len(router))  # E
        counts = load.tolist()
        if len(held) < len(router):  # here ghosts drop out
            of_expert = slots.split_with_sizes(counts)
            slots = torch.cat([slots[:0], *(of_expert[i] for i in held)])
            counts = [counts[i] for i in held]
        token = slots // chosen.shape[1]  # S
        gate = gates.view(-1).index_select(0, slots)[:, None]  # S 1

        chunks = chunks_of(counts, CHUNK_BYTES // (x.element_size() * x.shape[1]))
        cuts = [[counts[i] for i in chunk] for chunk in chunks]
        sizes = [sum(cut) for cut in cuts]
        before = x.new_empty(len(slots), ups[0].shape[0] if ups else 0)  # S H: up · x
        rows = x.new_empty(len(slots), x.shape[1])  # S D: x, then what the experts make of it
        each = (t.split_with_sizes(sizes) for t in (token, gate, before, rows))
        for chunk, cut, tok, g, b, r in zip(chunks, cuts, *each, strict=True):
            torch.index_select(x, 0, tok, out=r)
            r_cut = r.split_with_sizes(cut)
            for i, r_i, b_i in zip(chunk, r_cut, b.split_with_sizes(cut), strict=True):
                torch.mm(r_i, ups[i].t(), out=b_i)
            h = F.silu(b).mul_(g)
            for i, r_i, h_i in zip(chunk, r_cut, h.split_with_sizes(cut), strict=True):
                torch.mm(h_i, downs[i].t(), out=r_i)
        y = torch.zeros_like(x).index_add_(0, token, rows)

        balance, share, price = x.new_zeros(()), None, None
        if training and c.balance:
            share, price = shares_of(logits, p, load, c)
            balance = c.balance * torch.mv(share, price).mean()
        ctx.save_for_backward(x, router, p, gates, chosen, slots, token, gate, before, share, price, *experts)
        ctx.c, ctx.plan = c, (chunks, cuts, sizes)
        ctx.mark_non_differentiable(logits, chosen)
        return y, balance, logits, chosen

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor, dbalance: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, router, p, gates, chosen, slots, token, gate, before, share, price, *experts = ctx.saved_tensors
        c, (chunks, cuts, sizes) = ctx.c, ctx.plan
        ups, downs = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        dups: list[Tensor] = []
        ddowns: list[Tensor] = []
        q = gate.new_empty(len(slots))  # S: gate · ∂L/∂gate, which is all that the gradient of the logits needs
        rows = x.new_empty(len(slots), x.shape[1])  # S D: ∂L/∂y, then x, then ∂L/∂x
        scratch = x.new_empty(max(sizes, default=0), before.shape[1])
        each = (t.split_with_sizes(sizes) for t in (token, gate, before, rows, q))
        for chunk, cut, tok, g, b, r, q_r in zip(chunks, cuts, *each, strict=True):
            h, dh = F.silu(b).mul_(g), scratch[: len(tok)]
            r_cut, dh_cut = r.split_with_sizes(cut), dh.split_with_sizes(cut)
            torch.index_select(dy, 0, tok, out=r)
            for i, r_i, h_i, dh_i in zip(chunk, r_cut, h.split_with_sizes(cut), dh_cut, strict=True):
                torch.mm(r_i, downs[i], out=dh_i)
                ddowns.append(torch.mm(r_i.t(), h_i))
            torch.sum(h.mul_(dh), 1, out=q_r)
            torch.ops.aten.silu_backward.grad_input(dh.mul_(g), b, grad_input=dh)
            torch.index_select(x, 0, tok, out=r)
            for i, r_i, dh_i in zip(chunk, r_cut, dh_cut, strict=True):
                dups.append(torch.mm(dh_i.t(), r_i))
                torch.mm(dh_i, ups[i], out=r_i)

        q = q.new_zeros(gates.numel()).scatter_(0, slots, q).view_as(gates)  # N k; ghosts have none
        if c.gate == "sigmoid":
            dlogits = torch.zeros_like(p).scatter_(1, chosen, q * (1 - gates))
        elif c.renormalise:  # a softmax over the chosen
            dlogits = torch.zeros_like(p).scatter_(1, chosen, q - gates * q.sum(1, keepdim=True))
        else:
            dlogits = torch.mul(p, -q.sum(1, keepdim=True)).scatter_add_(1, chosen, q)
        if share is not None:
            pull = (price - torch.mv(share, price)[:, None]) * share  # N E: of a softmax; Σ_j share_j = 1
            if c.gate == "sigmoid" and c.balance_kind == "load":
                pull *= 1 - p
            dlogits += pull * (dbalance * (c.balance / len(x)))
        dx = torch.mm(dlogits, router).index_add_(0, token, rows)
        return dx, torch.mm(dlogits.t(), x), None, None, None, *dups, *ddowns


@dataclass(frozen=True)
class Routing:
    """Where one layer's router sent the tokens of the last forward pass, on the CPU."""

    selected: Tensor  # [N, k] ids of the chosen experts, the largest gate first
    mean_gate: Tensor  # [E] mean over tokens of the gate of each known expert, before the choice
    known: tuple[int, ...]  # ids of the experts that the router knows
    resident: tuple[int, ...]  # ids of the experts that the module holds


class Expert(nn.Module):
    """``down · SiLU(up · x)``; with a partitioned router, also its own column of that."""

    up: nn.Parameter
    down: nn.Parameter
    router: nn.Parameter

    def __init__(self, up: Tensor, down: Tensor, router: Tensor | None = None):
        super().__init__()
        self.register_parameter("up", nn.Parameter(up))
        self.register_parameter("down", nn.Parameter(down))
        if router is not None:
            self.register_parameter("router", nn.Parameter(router))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.up)), self.down)


class MoELayer(nn.Module):
    """``forward(x [B, T, D]) -> (y [B, T, D], balance loss)``. A token all of whose experts are ghosts gets exactly 0."""

    router: nn.Parameter

    def __init__(self, c: MoE, resident: tuple[int, ...]):
        super().__init__()
        self.c, self.resident = c, resident
        self.known = tuple(range(c.num_experts)) if c.skip_token else resident
        self.held = resident if c.skip_token else tuple(range(len(resident)))  # positions in what the router knows
        if c.skip_token:
            self.register_parameter("router", nn.Parameter(torch.empty(c.num_experts, c.dim, dtype=F32)))
        # Allocated together: the largest model has 65,536 experts, and one call for each tensor takes seconds.
        E, D, H = len(resident), c.dim, c.width
        shapes = [(E, H, D), (E, D, H)] + ([] if c.skip_token else [(E, D)])
        parts = [torch.empty(shape, dtype=F32) for shape in shapes]
        rows = zip(resident, *(t.unbind(0) for t in parts), strict=True)
        self.experts = nn.ModuleDict({str(e): Expert(*tensors) for e, *tensors in rows})
        if c.num_shared_experts:
            S = c.num_shared_experts * H
            self.shared = Expert(torch.empty(S, D, dtype=F32), torch.empty(D, S, dtype=F32))
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c, experts = self.c, cast(list[Expert], list(self.experts.values()))
        router: Tensor = self.router if c.skip_token else torch.stack([e.router for e in experts])  # E D
        weights: list[Tensor] = [*(e.up for e in experts), *(e.down for e in experts)]
        rows, device = x.view(-1, c.dim), x.device.type
        as_it_is: AbstractContextManager[object] = nullcontext()
        if torch.is_autocast_enabled(device):  # which does not reach into a gradient by hand
            narrow = torch.get_autocast_dtype(device)
            rows, router, *weights = (t.to(narrow) for t in (rows, router, *weights))
            as_it_is = torch.autocast(device, enabled=False)
        with as_it_is:
            y, balance, logits, chosen = Mix.apply(rows, router, c, self.held, self.training, *weights)
        self.last = logits, chosen
        y = y.view_as(x)
        return y + self.shared(x) if c.num_shared_experts else y, balance

    def routing(self) -> Routing | None:
        if self.last is None:
            return None
        logits, chosen = (x.cpu() for x in self.last)
        ids = torch.tensor(self.known)
        return Routing(ids[chosen], gates_of(logits, self.c)[0].mean(0), self.known, self.resident)


# --- the model ---------------------------------------------------------------------------------------------------------


class MoEBlock(nn.Module):
    def __init__(self, c: MoE, resident: tuple[int, ...]):
        super().__init__()
        self.depth = c.depth_base / c.num_layers if c.depth_base else 1.0
        self.attention_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.attention = Attention(GPT(dim=c.dim, num_heads=c.num_heads))
        self.attention_out_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.moe_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.moe = MoELayer(c, resident)
        self.moe_out_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        y = self.attention(self.attention_norm(x), cos, sin)
        x = torch.add(x, self.attention_out_norm(y), alpha=self.depth)
        y, balance = self.moe(self.moe_norm(x))
        return torch.add(x, self.moe_out_norm(y), alpha=self.depth), balance


class MoEModule(nn.Module):
    """``forward(ids [B, T]) -> logits [B, T, V]``; ``loss(ids, targets)`` is the mean cross entropy in nats per token.

    The LayerNorm behind an MoE branch cares for directions alone: with one expert at work for a token (top_k 1, or all
    others ghosts) its gate cancels, and that token teaches the router nothing but balance.
    """

    def __init__(
        self, c: MoE, vocab_size: int, context: int, resident: Sequence[tuple[int, ...]], repeats: bool = False
    ):
        super().__init__()
        self.repeats = repeats
        self.embedding = nn.Parameter(torch.empty(vocab_size, c.dim, dtype=F32))
        self.embedding_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        block = functools.partial(MoEBlock, c)
        self.blocks = nn.ModuleList(map(functools.cache(block) if repeats else block, resident))
        self.norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.cos: Tensor
        self.sin: Tensor
        half = c.dim // c.num_heads // 2
        self.register_buffer("cos", torch.empty(context, half, dtype=F32), persistent=False)
        self.register_buffer("sin", torch.empty(context, half, dtype=F32), persistent=False)

    @torch.no_grad()
    def init_(self, seed: int) -> None:
        """Norms at one, embedding Normal(0, 0.02), routers Normal(0, 0.1/√D), other matrices Normal(0, 1/√fan-in).

        The source gives none. Behind a LayerNorm, router logits are then about 0.1: sigmoid gates near 0.5, softmax gates
        near 1/E. Experts give outputs well above the epsilon of the LayerNorm that follows. A whole router has the same
        columns as the parts of a partitioned one, so both ways start as the same function.
        """
        T, half = self.cos.shape
        angle = torch.arange(T, dtype=F32)[:, None] * 10_000.0 ** (-torch.arange(half, dtype=F32) / half)
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())

        for name, p in self.named_parameters():
            std = (
                0.02
                if name == "embedding"
                else 0.1 / math.sqrt(p.shape[-1])
                if "router" in name
                else p.shape[-1] ** -0.5
            )
            if "norm" in name:
                nn.init.ones_(p)
            elif name.endswith("moe.router"):
                for e, column in enumerate(p):
                    part = name.replace("router", f"experts.{e}.router")
                    nn.init.normal_(column, std=std, generator=generator(seed, "init", part))
            else:
                nn.init.normal_(p, std=std, generator=generator(seed, "init", name))

    def run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, T, V]`` and the balance loss of all layers (0 in eval mode)."""
        T = ids.shape[1]
        x = self.embedding_norm(F.embedding(ids, self.embedding))  # B T D
        cos, sin = self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype)
        balances = []
        for block in self.blocks:
            x, balance = block(x, cos, sin)
            balances.append(balance)
        return F.linear(self.norm(x), self.embedding), torch.stack(balances).sum()

    def forward(self, ids: Tensor) -> Tensor:
        return self.run(ids)[0]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The value is the cross entropy alone; the gradient, in training, that of cross entropy plus balance."""
        logits, balance = self.run(ids)
        return self.criterion(logits, targets) + (balance - balance.detach())

    criterion = staticmethod(cross_entropy)

    def routing(self) -> list[Routing]:
        """Of the last forward pass, one per layer; empty before the first."""
        layers = [cast(MoEBlock, block).moe.routing() for block in self.blocks]
        return [layer for layer in layers if layer is not None]

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        path = name.split(".")
        if "norm" in name:
            return "norm"
        return next((part for part in ("experts", "shared", "router", "attention") if part in path), "embedding")

    @staticmethod
    def tensor_unit(name: str) -> str | None:
        """``3.17`` for the tensors of expert 17 of layer 3, which are held and move together; None for all others."""
        path = name.split(".")
        return f"{path[1]}.{path[4]}" if "experts" in path else None
