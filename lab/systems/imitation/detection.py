"""Detection by likelihood: how a text looks to a language model, and what that says of whether a model has written it.

All scores are means over the bytes of a text, in nats; of each the docstring says which side means *written by a model*.

Legend: E texts, T positions, V vocabulary, P perturbations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.tasks.authors import Message, rows
from lab.data.tasks.data import Encoder
from lab.data.tasks.task import IGNORED
from lab.ground.seeds import numpy_generator
from lab.probes.membership import leak

AT_ONCE = 64  # texts of a forward pass


@dataclass(frozen=True)
class Looks:
    """What a model says of texts, float64 ``[E]`` each.

    log_p
        mean log probability of the bytes that are there. A general detector takes a high one for a model's.
    log_rank
        mean log of the rank of each byte among all (1: the likeliest). A low one is taken for a model's (GLTR: Gehrmann et al. 2019).
    """

    log_p: np.ndarray
    log_rank: np.ndarray


@torch.no_grad()
def looks(model: nn.Module, inputs: Tensor, targets: Tensor) -> Looks:
    """Of rows ``[E, T]`` with the targets that count; a model in eval mode with ``forward(ids) -> logits [B, T, V]``."""
    parts = [_looks(model, x, y) for x, y in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True)]
    return Looks(*(torch.cat(of).numpy() for of in zip(*parts, strict=True)))


def _looks(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    counts = targets != IGNORED
    chosen = model(inputs)[counts].float()  # positions that count, V
    log_p = chosen.log_softmax(1).gather(1, targets[counts][:, None])
    rank = 1 + (chosen > chosen.gather(1, targets[counts][:, None])).sum(1)
    num, where = counts.sum(1).clamp(min=1).double(), counts.nonzero()[:, 0]
    nothing = torch.zeros(len(inputs), dtype=torch.float64)
    return (
        nothing.index_add(0, where, log_p[:, 0].double()) / num,
        nothing.index_add(0, where, rank.double().log()) / num,
    )


def looks_of(model: nn.Module, found: Sequence[Message], encode: Encoder) -> Looks:
    """The same of messages."""
    return looks(model, *rows(found, encode))


def likelihood_ratio(personal: Looks, base: Looks) -> np.ndarray:
    """log p(text | the author's own model) − log p(text | the base), ``[E]``: low where a text is not as the author writes."""
    ratio: np.ndarray = personal.log_p - base.log_p
    return ratio


def perturbed(found: Sequence[Message], words: Sequence[str], share: float, seed: int, times: int) -> list[Message]:
    """Each message ``times`` times, with this share of its words (one at least) exchanged for words drawn from a list."""
    rng, out = numpy_generator(seed, "perturb"), []
    for message in found:
        own = message.text.split(" ")
        for _ in range(times):
            new = list(own)
            for i in rng.permutation(len(own))[: max(1, round(share * len(own)))]:
                new[i] = words[int(rng.integers(len(words)))]
            out.append(message._replace(text=" ".join(new)))
    return out


def curvature(
    model: nn.Module, found: Sequence[Message], encode: Encoder, words: Sequence[str], *, seed: int = 0, times: int = 4
) -> np.ndarray:
    """log p(text) less its mean over perturbed ones, ``[E]``: high where a model has written it (DetectGPT: Mitchell et al. 2023).

    A perturbation exchanges 15 % of the words for words of other texts, in the place of a second model that fills gaps [inferred].
    """
    changed = perturbed(found, words, 0.15, seed, times)
    around = looks_of(model, changed, encode).log_p.reshape(len(found), times).mean(1)
    difference: np.ndarray = looks_of(model, found, encode).log_p - around
    return difference


@dataclass(frozen=True)
class Detected:
    """How well a score tells texts of a model from the author's own.

    auroc
        0.5: not at all; below: the wrong way round.
    found
        share of a model's texts that are found where at most 1 % of the author's are taken for a model's.
    """

    auroc: float
    found: float


def detected(written: np.ndarray, genuine: np.ndarray) -> Detected:
    """Of scores ``[E]`` that are to be high for what a model has written."""
    found = leak(written, genuine)
    return Detected(found.auc, found.tpr)
