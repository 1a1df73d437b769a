"""A watermark while text is written: some tokens, another set after each context, are made a little likelier; later they are counted.

After Kirchenbauer et al. 2023 (arXiv 2301.10226). It is the doing of whoever decodes: weights alone do not carry it.

Legend: B sequences, E texts, T positions, V vocabulary, w = width.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lab.data.tasks.task import IGNORED
from lab.ground.config import Count, Positive, config

_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # odd constants of splitmix64, as int64


@config
class Watermark:
    """Green tokens, γ of all, get δ on their logits.

    delta, gamma
        those of the notes: 2 and 0.5.
    width
        so many tokens before one decide, with the key, which are green. The paper has 1, for words; of bytes a single one says so little
        of what follows that whole words would be green or not [inferred].
    key
        whoever knows it can count.
    """

    delta: Positive = 2.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.5
    width: Count = 3
    key: int = 15485863

    def green(self, context: Tensor, vocab_size: int) -> Tensor:
        """Which tokens are green after contexts int64 ``[B, w]``: bool ``[B, V]``, ``floor(γ·V)`` of each row."""
        seed = torch.full((len(context),), self.key, dtype=torch.int64)
        for column in context.unbind(1):
            seed = _mixed(seed + column)
        drawn = _mixed(seed[:, None] + torch.arange(vocab_size))
        num = int(self.gamma * vocab_size)
        chosen = drawn.argsort(1)[:, :num]
        return torch.zeros(len(context), vocab_size, dtype=torch.bool).scatter_(1, chosen, True)

    def biased(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[B, V]`` of what follows ``ids [B, T]``, with δ on what is green."""
        context = ids[:, -self.width :]
        return logits + self.delta * self.green(context, logits.shape[1]).to(logits.dtype)

    def counted(self, inputs: Tensor, targets: Tensor, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Green tokens of each text, and how many count: ``[E]`` each, of rows as they are trained on.

        What follows a context that a text has had before, and is the same token again, counts once: else a word that it repeats decides.
        """
        hits, total = np.zeros(len(inputs)), np.zeros(len(inputs))
        for i, (row, goals) in enumerate(zip(inputs, targets, strict=True)):
            at = (goals != IGNORED).nonzero()[:, 0]
            at = at[at >= self.width - 1]
            if not len(at):
                continue
            grams = torch.cat([row.unfold(0, self.width, 1)[at - self.width + 1], goals[at, None]], 1).unique(dim=0)
            green = self.green(grams[:, :-1], vocab_size).gather(1, grams[:, -1:])
            hits[i], total[i] = int(green.sum()), len(grams)
        return hits, total

    def z(self, hits: np.ndarray, total: np.ndarray) -> np.ndarray:
        """(hits − γ·T) / √(T·γ·(1 − γ)): standard normal where nobody has marked anything; 0 of an empty text."""
        deviation = np.sqrt(np.maximum(total, 1) * self.gamma * (1 - self.gamma))
        score: np.ndarray = (hits - self.gamma * total) / deviation
        return score

    def scores(self, inputs: Tensor, targets: Tensor, vocab_size: int) -> np.ndarray:
        """`z` of texts as rows, float64 ``[E]``."""
        return self.z(*self.counted(inputs, targets, vocab_size))


def _mixed(x: Tensor) -> Tensor:
    """Integers ``[…]`` as others that look drawn (splitmix64, modulo 2⁶⁴)."""
    x = x + _MIX[0]
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX[1]
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX[2]
    return x ^ ((x >> 31) & (2**33 - 1))


def false_alarms_of(z: float) -> float:
    """How often chance alone gives a score above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))
