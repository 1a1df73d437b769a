"""What LUNAR is compared with: losses that are descended on what is to be forgotten, in all weights or in adapters.

With y the true answer to a prompt x, y_no a refusal, π the model, π₀ the model as it was, ℓ = log π(y | x) summed over the tokens of y, and
CE the mean over tokens:

    gradient_ascent     −CE(forget)
    gradient_difference −CE(forget) + CE(retain)
    kl                  −CE(forget) + KL(π₀ ‖ π) at the tokens of retained answers                              (Maini et al. 2024, arXiv 2401.06121)
    npo                 −2/β · log σ(−β (ℓ − ℓ₀)(forget, y))                                                    (Zhang et al. 2024, arXiv 2404.05868)
    dpo                 −1/β · log σ(β (ℓ − ℓ₀)(forget, y_no) − β (ℓ − ℓ₀)(forget, y))                          (idem, eq. 2)
    refusal             CE(forget, y_no) + CE(retain)                                                           refusal fine-tuning

Legend: B examples, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.data.tasks.task import IGNORED
from lab.ground.config import Count, Positive, config
from lab.ground.seeds import numpy_generator
from lab.models.lora import LoRA, adapt_, linear_maps
from lab.models.peft import merged
from lab.systems.unlearning.places import Places

Batch = tuple[Tensor, Tensor]  # ids and targets [B, T] each; targets that do not count are −100


@dataclass(frozen=True)
class Pairs:
    """Prompts with answers (both int64 ``[T]``; an answer with its end) as rows to train on."""

    prompts: Sequence[Tensor]
    answers: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, index: Sequence[int]) -> Batch:
        rows = [torch.cat([self.prompts[i], self.answers[i]]) for i in index]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        targets = torch.full_like(ids, IGNORED)
        for k, i in enumerate(index):
            targets[k, len(self.prompts[i]) : len(rows[k])] = self.answers[i]
        return ids[:, :-1], targets[:, 1:]


@dataclass(frozen=True)
class Given:
    """A batch of each kind: true answers to be forgotten, refusals of the same prompts, and what is to be retained."""

    forget: Batch
    refused: Batch
    retain: Batch


@config
class Rival:
    """How one of them is trained. Rates are for small models here: the release has lr 1e-5, and adapters of rank 8.

    loss
        one of `LOSSES`.
    rank
        of adapters on all linear maps that are merged in the end; 0: all weights.
    """

    loss: Literal["gradient_ascent", "gradient_difference", "kl", "npo", "dpo", "refusal"] = "gradient_difference"
    rank: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 20
    batch: Count = 4
    lr: Positive = 1e-4
    beta: Positive = 0.1
    seed: Annotated[int, Field(ge=0)] = 0


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """ℓ: log-probability of the targets of each row that count, summed, ``[B]``; of logits ``[B, T, V]``."""
    nats = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return -nats.sum(1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """CE: mean over the targets that count."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def divergence(logits: Tensor, before: Tensor, targets: Tensor) -> Tensor:
    """KL(π₀ ‖ π): mean over the positions whose targets count."""
    counts = targets != IGNORED
    return F.kl_div(
        logits[counts].log_softmax(-1), before[counts].log_softmax(-1), reduction="batchmean", log_target=True
    )


def gradient_ascent(model: nn.Module, first: nn.Module, given: Given, beta: float) -> Tensor:
    return -_of(model, given.forget)


def gradient_difference(model: nn.Module, first: nn.Module, given: Given, beta: float) -> Tensor:
    return _of(model, given.retain) - _of(model, given.forget)


def kl(model: nn.Module, first: nn.Module, given: Given, beta: float) -> Tensor:
    ids, targets = given.retain
    with torch.no_grad():
        before = first(ids)
    return divergence(model(ids), before, targets) - _of(model, given.forget)


def npo(model: nn.Module, first: nn.Module, given: Given, beta: float) -> Tensor:
    return -2 / beta * F.logsigmoid(-beta * _gain(model, first, given.forget)).mean()


def dpo(model: nn.Module, first: nn.Module, given: Given, beta: float) -> Tensor:
    gains = _gain(model, first, given.refused) - _gain(model, first, given.forget)
    return -1 / beta * F.logsigmoid(beta * gains).mean()


def refusal(model: nn.Module, first: nn.Module, given: Given, beta: float) -> Tensor:
    return _of(model, given.refused) + _of(model, given.retain)


Loss = Callable[
    [nn.Module, nn.Module, Given, float], Tensor
]  # of the model, the model as it was, a batch of each kind, and β
LOSSES: Mapping[str, Loss] = {
    "gradient_ascent": gradient_ascent,
    "gradient_difference": gradient_difference,
    "kl": kl,
    "npo": npo,
    "dpo": dpo,
    "refusal": refusal,
}


def _of(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _gain(model: nn.Module, first: nn.Module, batch: Batch) -> Tensor:
    """ℓ − ℓ₀ of each row, ``[B]``."""
    ids, targets = batch
    with torch.no_grad():
        before = log_likelihood(first(ids), targets)
    return log_likelihood(model(ids), targets) - before


def train_(places: Places, forget: Pairs, refused: Pairs, retain: Pairs, how: Rival) -> None:
    """Descend a loss in place, by AdamW without weight decay: ``epochs`` over what is to be forgotten, with as much of the rest, drawn.

    ``refused``: the same prompts as ``forget``, with refusals.
    """
    first = copy.deepcopy(places.model).requires_grad_(False).eval()
    model = _adapted(places, how) if how.rank else places.model.requires_grad_(True).eval()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=how.lr, weight_decay=0.0)
    loss = partial(LOSSES[how.loss], model, first)
    for given in _batches(forget, refused, retain, how):
        optimizer.zero_grad()
        loss(given, how.beta).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if how.rank:
        values = merged(model)
        with torch.no_grad():
            for name, p in places.model.named_parameters():
                p.copy_(values[name])


def _batches(forget: Pairs, refused: Pairs, retain: Pairs, how: Rival) -> Iterator[Given]:
    draws = numpy_generator(how.seed, "rival")
    for _ in range(how.epochs):
        order = draws.permutation(len(forget))
        for i in range(0, len(order), how.batch):
            some = order[i : i + how.batch].tolist()
            others = draws.choice(len(retain), min(len(some), len(retain)), replace=False).tolist()
            yield Given(forget.batch(some), refused.batch(some), retain.batch(others))


def _adapted(places: Places, how: Rival) -> nn.Module:
    """A copy with adapters on the linear maps of all blocks."""
    model = copy.deepcopy(places.model)
    targets = tuple(path for path in linear_maps(model) if re.search(r"\.\d+\.", path))
    return adapt_(model, LoRA(ranks=(how.rank,), targets=targets), how.rank, how.seed).eval()
