"""What a model with ``forward(ids [B, T]) -> logits [B, T, V]`` is worth on a task. Nothing here trains or draws.

Legend: B examples, T positions, V vocabulary, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AT_ONCE = 32  # rows of a forward pass


def _logits(model: nn.Module, ids: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """Those after single positions, ``[len(rows), V]``: computed where the model is, looked at on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits: Tensor = model(ids.to(device))[rows.to(device), at.to(device)]
    return logits.cpu()


@torch.no_grad()
def _of_rows(model: nn.Module, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log likelihood of the targets of each row that are not -100, and how many of them are the likeliest: float64 [B] each."""
    rows, at = (targets >= 0).nonzero(as_tuple=True)
    logits, goals = _logits(model, ids, rows, at).double(), targets[rows, at]
    nothing = torch.zeros(len(ids), dtype=torch.float64)
    loss = F.cross_entropy(logits, goals, reduction="none")
    return nothing.index_add(0, rows, loss), nothing.index_add(0, rows, (logits.argmax(1) == goals).double())


def nats_of_rows(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of the targets of each row that are not -100, summed: float64 [B]."""
    return _of_rows(model, ids, targets)[0]


def by_row(model: nn.Module, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Means over the targets of each row, float64 [B]; NaN for a row without any.

    ``loss``: nats per token. ``accuracy``: share of them that are the likeliest token.
    """
    parts = [_of_rows(model, *part) for part in zip(ids.split(AT_ONCE), targets.split(AT_ONCE), strict=True)]
    count = (targets >= 0).sum(1).double()
    return {
        name: torch.cat(of_all) / count
        for name, of_all in zip(("loss", "accuracy"), zip(*parts, strict=True), strict=True)
    }


def nats(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    """Negative log likelihood of all targets together, and how many there are."""
    total, count = 0.0, 0
    for ids, targets in batches:
        total += float(nats_of_rows(model, ids, targets).sum())
        count += int((targets >= 0).sum())
    return total, count


@torch.no_grad()
def likeliest(model: nn.Module, ids: Tensor, at: Tensor, labels: Tensor) -> list[int]:
    """Which of the tokens ``labels`` [L] is the likeliest after position ``at`` [B] of each row."""
    logits = _logits(model, ids, torch.arange(len(ids)), at)
    return logits[:, labels].argmax(1).tolist()  # type: ignore[no-any-return]


Choice = Callable[[Tensor, Tensor, int], Tensor]
"""Tokens int64 ``[B]`` from logits ``[B, V]`` of some rows (int64 ``[B]``), at a place of what is written (from 0)."""


def likeliest_token(logits: Tensor, rows: Tensor, place: int) -> Tensor:
    """See `Choice`."""
    return logits.argmax(1)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Tensor],
    max_tokens: int,
    end: int | None = None,
    choose: Choice = likeliest_token,
) -> list[Tensor]:
    """Continuations of prompts (int64 tensors, not empty, of any lengths): at most ``max_tokens``, without ``end``; greedy by default.

    Nothing is remembered between tokens, so that any causal module will do: n tokens after a prompt of p cost n passes
    over up to p + n positions. Rows are filled up on the right, which earlier positions do not see; one that is finished is
    left out of the following passes.
    """
    start = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(start.max()) + max_tokens, dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    size = start.clone()
    going = torch.arange(len(prompts))
    for place in range(max_tokens):
        here = size[going]
        logits = _logits(model, ids[going, : int(here.max())], torch.arange(len(going)), here - 1)
        token = choose(logits, going, place)
        goes_on = token != end if end is not None else torch.ones_like(token, dtype=torch.bool)
        going, here, token = going[goes_on], here[goes_on], token[goes_on]
        if not len(going):
            break
        ids[going, here] = token
        size[going] += 1
    return [row[a:b] for row, a, b in zip(ids, start.tolist(), size.tolist(), strict=True)]


def rouge_l(written: Sequence[str], references: Sequence[str]) -> float:
    """Mean F-measure of ROUGE-L (longest common subsequence of lower-case words, no stemming), by ``rouge-score``."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    found = [float(scorer.score(r, w)["rougeL"].fmeasure) for w, r in zip(written, references, strict=True)]
    return sum(found) / len(found)
