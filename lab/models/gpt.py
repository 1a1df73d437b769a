"""A decoder-only GPT: rotary positions, pre-norm, tied embeddings, fused attention, SiLU feed-forward.

Legend: B sequences, T positions, D width, N heads, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.models.shape import Shape

Layers = Annotated[int, Field(ge=1, le=2048)]  # a module each, which takes a millisecond to make


@config
class GPT:
    """Shape of a GPT. ``vocab_size=None`` takes the corpus's; ``mlp_dim=None`` is four times ``dim``."""

    dim: Count = 64
    num_layers: Layers = 2
    num_heads: Count = 2
    mlp_dim: Count | None = None
    vocab_size: Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise RecipeError(
                f"model.num_heads = {self.num_heads} does not fit model.dim = {self.dim}: "
                "dim must be an even multiple of num_heads (rotary positions turn pairs)"
            )

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with this model."""
        if self.dropout > 0:
            recipe.compute.one_by_one("dropout")

    @property
    def layers_and_experts(self) -> tuple[int, int]:
        """Layers with experts, and experts of each: none."""
        return 0, 0

    def build(self, vocab_size: int, context: int, seed: int = 0) -> nn.Module:
        """The module with its initial values drawn from ``seed``; under the meta device, only its shapes."""
        module = GPTModule(self, self.vocab_size or vocab_size, context)
        if not module.embedding.is_meta:
            module.init_(generator(seed, "init"))
        return module

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """See `lab.models.shape.Model`."""
        return self.build(shape.tokens_for("GPT"), shape.context, seed)

    def num_params(self, vocab_size: int) -> tuple[int, int]:
        """How many parameters a model has that every worker holds, and how many more in experts; nothing is made."""
        layer = 2 * self.dim + 4 * self.dim**2 + 2 * self.dim * (self.mlp_dim or 4 * self.dim)
        return (self.vocab_size or vocab_size) * self.dim + self.dim + self.num_layers * layer, 0

    def floats_per_token(self, vocab_size: int) -> int:
        """What backward needs of a token: 9 rows of width dim and 2 of mlp_dim a layer, and its logits twice."""
        return self.num_layers * (9 * self.dim + 2 * (self.mlp_dim or 4 * self.dim)) + 2 * (
            self.vocab_size or vocab_size
        )


# Named sizes. The first four are for laptops (parameters with a vocabulary of 256); the others are the papers' shapes with
# the vocabulary of about 50k that they use. 135M and 1.7B have gated or grouped blocks there; mlp_dim makes up the count.
SIZES: dict[str, GPT] = {
    "pico": GPT(dim=32, num_layers=2, num_heads=2),  # 33k
    "nano": GPT(dim=64, num_layers=2, num_heads=2),  # 115k
    "micro": GPT(dim=128, num_layers=4, num_heads=4),  # 0.8M
    "mini": GPT(dim=256, num_layers=6, num_heads=4),  # 4.8M
    "16M": GPT(dim=256, num_layers=4, num_heads=4, vocab_size=50_368),
    "125M": GPT(dim=768, num_layers=12, num_heads=12, vocab_size=50_368),
    "135M": GPT(dim=576, num_layers=30, num_heads=9, mlp_dim=1920, vocab_size=50_368),
    "720M": GPT(dim=2048, num_layers=12, num_heads=16, vocab_size=50_368),
    "1.3B": GPT(dim=2048, num_layers=24, num_heads=16, vocab_size=50_368),
    "1.7B": GPT(dim=2048, num_layers=24, num_heads=16, mlp_dim=12_288, vocab_size=50_368),
    "7B": GPT(dim=4096, num_layers=32, num_heads=32, vocab_size=50_368),
    "13B": GPT(dim=5120, num_layers=40, num_heads=40, vocab_size=50_368),
}


F32 = torch.float32  # of first values, whatever is torch's default in this process


class Linear(nn.Linear):
    """Without torch's own initial values, which would be thrown away and draw from the global generator."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__(num_in, num_out, bias=False, dtype=F32)

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    def __init__(self, c: GPT):
        super().__init__()
        self.num_heads = c.num_heads
        self.qkv = Linear(c.dim, 3 * c.dim)
        self.out = Linear(c.dim, c.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)  # 3 B N T D/N
        q, k = rotate(qkv[:2], cos, sin).to(qkv.dtype)  # angles are finer than bfloat16
        v = qkv[2].contiguous()  # a copy, so that backward need not keep all of qkv
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn the pair (first half, second half) of ``x […, T, D/N]`` by an angle that grows with T."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class GPTBlock(nn.Module):
    def __init__(self, c: GPT):
        super().__init__()
        mlp_dim = c.mlp_dim or 4 * c.dim
        self.attention_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.attention = Attention(c)
        self.mlp_norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.mlp = nn.Sequential(Linear(c.dim, mlp_dim), nn.SiLU(), Linear(mlp_dim, c.dim))
        self.dropout = nn.Dropout(c.dropout) if c.dropout else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits ``[B, T, V]``, in float32 at least; targets of −100 do not count."""
    fine = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(fine), targets.flatten())


class GPTModule(nn.Module):
    """``forward(ids [B, T]) -> logits [B, T, V]``; ``loss(ids, targets)`` is the mean cross entropy in nats per token."""

    def __init__(self, c: GPT, vocab_size: int, context: int):
        super().__init__()
        self.num_layers = c.num_layers
        self.embedding = nn.Parameter(torch.empty(vocab_size, c.dim, dtype=F32))
        self.blocks = nn.ModuleList(GPTBlock(c) for _ in range(c.num_layers))
        self.norm = nn.LayerNorm(c.dim, bias=False, dtype=F32)
        self.cos: Tensor
        self.sin: Tensor
        half = c.dim // c.num_heads // 2
        self.register_buffer("cos", torch.empty(context, half, dtype=F32), persistent=False)
        self.register_buffer("sin", torch.empty(context, half, dtype=F32), persistent=False)

    def init_(self, g: torch.Generator) -> None:
        """Normal(0, 0.02), output projections scaled by 1/√(2·layers) (GPT-2), norms at one."""
        T, half = self.cos.shape
        angle = torch.arange(T, dtype=F32)[:, None] * 10_000.0 ** (-torch.arange(half, dtype=F32) / half)
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())
        for name, p in self.named_parameters():
            if p.dim() == 1:
                nn.init.ones_(p)
            else:
                last = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.num_layers) if last else 0.02, generator=g)

    def forward(self, ids: Tensor) -> Tensor:
        return self.with_hidden(ids)[1]

    def with_hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the last norm gives, ``[B, T, D]``, and the logits."""
        T = ids.shape[1]
        x = F.embedding(ids, self.embedding)  # B T D
        cos, sin = self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        h = self.norm(x)
        return h, F.linear(h, self.embedding)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(self(ids), targets)

    criterion = staticmethod(cross_entropy)

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        if "norm" in name:
            return "norm"
        return next((part for part in ("embedding", "attention", "mlp") if part in name), "other")
