"""AbbIE (Aleksandrov et al. 2025, arXiv 2507.08567): a GPT whose middle blocks are gone through several times.

Legend: B sequences, T positions, D width, V vocabulary, r iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.models.gpt import GPT, Attention, GPTBlock, GPTModule, Linear, rotate
from lab.models.registry import model
from lab.models.shape import Shape

Iterations = Annotated[int, Field(ge=1, le=32)]


@model("abbie")
@config
class AbbIE:
    """Head blocks once, body blocks ``iterations`` times with the same weights, tail blocks once.

    It has the parameters of a GPT of ``head + body + tail`` blocks, under the same names. Everything is trained by the loss at the end,
    through all iterations. ``module.iterations`` may be set to another number at any time: to score or to generate.

    The paper gives the recursion, training with two iterations and tied embeddings. How many blocks each part has, norms, feed-forward
    layers and positions are not available; they are the lab's GPT's.

    form
        ``D`` (diffusion, the paper's choice): h ← Body(h) + h. ``C`` (chain of thought): h ← Body(h). ``0pt``, a rival after Geiping et
        al.: h ← Body(P [h, h₀]) from zeros, h₀ what the head gives; P, ``[D, 2D]``, is a parameter more. Its form is inferred.
    skip
        of D, where the term + h is: in ``all`` iterations, as the recursion is written, or only ``between`` two: then one iteration is
        the plain GPT, as the paper says of its model.
    looks
        numbers of iterations that the agreed model is scored with, whenever it is evaluated (`lab.probes.iterations`).
    """

    dim: Count = 64
    num_heads: Count = 2
    head: Count = 1
    body: Count = 2
    tail: Count = 1
    iterations: Iterations = 2
    form: Literal["D", "C", "0pt"] = "D"
    skip: Literal["all", "between"] = "all"
    mlp_dim: Count | None = None
    vocab_size: Count | None = None
    looks: tuple[Iterations, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        _ = self.plain
        if self.form != "D" and self.skip != "all":
            raise RecipeError(f"model.skip = {self.skip!r} is of form D, and model.form is {self.form!r}: leave it out")
        if list(self.looks) != sorted({*self.looks}):
            raise RecipeError(f"model.looks = {list(self.looks)} must rise, as in [1,2,4,8]")

    @property
    def plain(self) -> GPT:
        """The GPT with the same blocks, each gone through once."""
        return GPT(self.dim, self.head + self.body + self.tail, self.num_heads, self.mlp_dim, self.vocab_size)

    @property
    def deeper(self) -> GPT:
        """The GPT that computes as much: with a body as deep as that of all iterations is together."""
        layers = self.head + self.iterations * self.body + self.tail
        return GPT(self.dim, layers, self.num_heads, self.mlp_dim, self.vocab_size)

    @property
    def layers_and_experts(self) -> tuple[int, int]:
        return 0, 0

    def check(self, recipe: RecipeView) -> None:
        pass

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """See `lab.models.shape.Model`."""
        module = AbbIEModule(self, self.vocab_size or shape.tokens_for("abbie"), shape.context)
        if not module.embedding.is_meta:
            module.init_(generator(seed, "init"))
        return module

    @property
    def repeated_params(self) -> int:
        """Parameters that a token meets again, each time counted."""
        width = self.mlp_dim or 4 * self.dim
        block = 2 * self.dim + 4 * self.dim**2 + 2 * self.dim * width
        injected = 2 * self.dim**2 if self.form == "0pt" else 0
        return (self.iterations - 1) * (self.body * block + injected)


class Past:
    """Keys and values of the tokens so far, ``[2, B, N, T, D/N]`` for each time that a block is gone through, in that order."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._seen: list[Tensor] = []
        self._turn = 0

    def attend(self, a: Attention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What attention gives for the next tokens ``[B, T, D]``; they are remembered."""
        B, T, D = x.shape
        q, k, v = a.qkv(x).view(B, T, 3, a.num_heads, D // a.num_heads).permute(2, 0, 3, 1, 4)
        new = torch.stack((rotate(k, cos, sin).to(v.dtype), v))
        if self.num_tokens:
            new = torch.cat((self._seen[self._turn], new), dim=3)
        self._seen[self._turn : self._turn + 1] = [new]
        self._turn += 1
        seen = torch.ones(T, self.num_tokens + T, dtype=torch.bool, device=x.device).tril(self.num_tokens)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin).to(v.dtype), new[0], new[1], attn_mask=seen)
        return a.out(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]

    def turn_(self, num: int) -> None:
        """So many tokens have gone through all blocks."""
        self.num_tokens, self._turn = self.num_tokens + num, 0


class AbbIEModule(GPTModule):
    """``forward(ids [B, T]) -> logits [B, T, V]``, with ``iterations`` as they are set.

    With form D the state about doubles with each iteration, and all that reads it is normalised. So what is kept is the state less a
    power of two, ``unit``, by which also what blocks add is multiplied, and ε of the norms by its square. That changes no bit of the
    result (a power of two changes no digit), and no number grows, in whichever precision.
    """

    def __init__(self, c: AbbIE, vocab_size: int, context: int):
        super().__init__(c.plain, vocab_size, context)
        self.shape, self.iterations = c, c.iterations
        if c.form == "0pt":
            self.inject = Linear(2 * c.dim, c.dim)

    def with_hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        *_, (h, unit) = self.states(ids)
        return self._read(h, unit)

    def states(self, ids: Tensor, past: Past | None = None) -> Iterator[tuple[Tensor, float]]:
        """What the head gives, and the state after each iteration: ``[B, T, D]`` in units of so much."""
        c, h, unit = self.shape, F.embedding(ids, self.embedding), 1.0
        for block in self.blocks[: c.head]:
            h = self._block(block, h, unit, past)  # type: ignore[arg-type]
        yield h, unit
        first = h
        if c.form == "0pt":
            h = torch.zeros_like(h)
        for k in range(self.iterations):
            before = h
            if c.form == "0pt":
                h = self.inject(torch.cat((h, first), dim=-1))
            for block in self.blocks[c.head : c.head + c.body]:
                h = self._block(block, h, unit, past)  # type: ignore[arg-type]
            if c.form == "D" and (k or c.skip == "all"):
                h, unit = (h + before) / 2, unit / 2
            yield h, unit

    def read(self, h: Tensor, unit: float, past: Past | None = None) -> Tensor:
        """Logits of a state: the tail, the last norm and the embedding."""
        return self._read(h, unit, past)[1]

    def _read(self, h: Tensor, unit: float, past: Past | None = None) -> tuple[Tensor, Tensor]:
        for block in self.blocks[self.shape.head + self.shape.body :]:
            h = self._block(block, h, unit, past)  # type: ignore[arg-type]
        h = _norm(self.norm, h, unit)
        return h, F.linear(h, self.embedding)

    def continue_(self, ids: Tensor, past: Past) -> Tensor:
        """Logits ``[B, T, V]`` of T further tokens of sequences of which ``past`` (at first ``Past()``) has what is needed; it grows by them.

        Every iteration has keys and values of its own: with r iterations a token takes as much memory as in a GPT of that depth.
        """
        *_, (h, unit) = self.states(ids, past)
        logits = self.read(h, unit, past)
        past.turn_(ids.shape[1])
        return logits

    @torch.no_grad()
    def generate(self, ids: Tensor, num: int) -> Tensor:
        """The likeliest ``num`` tokens after ``ids [B, T]``, one by one; T + num is the context at most. Returns ``[B, num]``."""
        past, written, new = Past(), list[Tensor](), ids
        for _ in range(num):
            new = self.continue_(new, past)[:, -1:].argmax(-1)
            written.append(new)
        return torch.cat(written, 1)

    def _block(self, block: GPTBlock, x: Tensor, unit: float, past: Past | None) -> Tensor:
        at = past.num_tokens if past else 0
        here = slice(at, at + x.shape[1])
        cos, sin = self.cos[here].to(x.dtype), self.sin[here].to(x.dtype)
        if unit == 1 and past is None:
            return block(x, cos, sin)  # type: ignore[no-any-return]
        normed = _norm(block.attention_norm, x, unit)
        attended = block.attention(normed, cos, sin) if past is None else past.attend(block.attention, normed, cos, sin)
        x = x + unit * attended
        return x + unit * block.mlp(_norm(block.mlp_norm, x, unit))  # type: ignore[no-any-return]


def _norm(norm: nn.LayerNorm, x: Tensor, unit: float) -> Tensor:
    """Of a state in units of so much: as if it were whole."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps * unit**2)
