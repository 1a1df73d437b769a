"""Is it gone, or only out of sight? What brings back facts that a model was made to forget, or shows that it was.

Legend: n prompts or answers, d width, C classes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lab.systems.unlearning.lunar import Edit
from lab.systems.unlearning.places import Places
from lab.systems.unlearning.rivals import Pairs, cross_entropy

LEVELS = 7  # of a symmetric four-bit number: −7 to 7


def skipping(places: Places, edits: Sequence[Edit], length: int) -> AbstractContextManager[object]:
    """The blocks that were edited are left out, for prompts of any ``length``."""
    stack = ExitStack()
    for edit in edits:
        stack.enter_context(places.skipped(edit.layer))
    return stack


def reversing(places: Places, edits: Sequence[Edit], length: int) -> AbstractContextManager[object]:
    """c · r_UV is subtracted behind the blocks that were edited, at the tokens of the prompt: by somebody who has kept the vector."""
    stack = ExitStack()
    for edit in edits:
        stack.enter_context(places.steered(edit.layer, -edit.vector, length))
    return stack


@torch.no_grad()
def rounded_(model: nn.Module) -> None:
    """Every matrix to four bits, in place: to the nearest of 15 levels between ∓ the largest of each row."""
    for p in model.parameters():
        if p.dim() == 2:
            step = p.abs().amax(1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny) / LEVELS
            p.copy_((p / step).round() * step)


def relearned(model: nn.Module, examples: Pairs, steps: int = 20, lr: float = 1e-4) -> nn.Module:
    """A copy that has been trained on a few of the facts again: ``steps`` of AdamW over all of them."""
    again = copy.deepcopy(model).requires_grad_(True).eval()
    optimizer = torch.optim.AdamW(again.parameters(), lr=lr, weight_decay=0.0)
    ids, targets = examples.batch(range(len(examples)))
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(again(ids), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return again.requires_grad_(False)


@dataclass(frozen=True)
class Probed:
    """A linear probe: share of answers it tells right, of prompts it was not fitted to, and what the commonest class would."""

    accuracy: float
    commonest: float


def probe(
    places: Places,
    layer: int,
    known: tuple[Sequence[Tensor], Sequence[int]],
    asked: tuple[Sequence[Tensor], Sequence[int]],
    inside: bool = False,
    ridge: float = 1.0,
) -> Probed:
    """Can the class of an answer be read off the state before a block, at the last token of a prompt?

    A ridge regression on one-hot classes, of states less their mean and in units of their deviation.

    Parameters
    ----------
    known, asked
        prompts with the class of the answer: to fit, and to be asked.
    inside
        behind the block's attention and before its MLP: the stream is looked at behind the block, less what the down-projection adds.
    """

    def states(prompts: Sequence[Tensor]) -> Tensor:
        if inside:
            behind = places.last_states(prompts)[layer]
            return behind - places.rows(layer, prompts, last=True)[1]
        return places.last_states(prompts)[layer - 1]

    x, y = states(known[0]), torch.tensor(known[1])
    mean, std = x.mean(0), x.std(0).clamp(min=1e-9)
    x = (x - mean) / std
    classes = int(max(*known[1], *asked[1])) + 1
    goal = nn.functional.one_hot(y, classes).double()
    offset = goal.mean(0)
    w = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (goal - offset))
    guess = (((states(asked[0]) - mean) / std) @ w + offset).argmax(1)
    commonest = Counter(known[1]).most_common(1)[0][0]
    return Probed(
        float((guess == torch.tensor(asked[1])).double().mean()),
        sum(c == commonest for c in asked[1]) / len(asked[1]),
    )


@dataclass(frozen=True)
class Found:
    """Which subjects somebody takes for unlearned, who sees refusals alone."""

    precision: float
    recall: float
    suspected: tuple[int, ...]


def refused_subjects(
    subjects: Sequence[int], refuses: Sequence[bool], unlearned: Sequence[int], share: float = 0.5
) -> Found:
    """Ask about all that there is, and suspect each subject of whose questions at least ``share`` are refused.

    Parameters
    ----------
    subjects, refuses
        which subject each question is about, and whether its answer is a refusal.
    unlearned
        those that were.
    """
    asked, refused = Counter(subjects), Counter(s for s, r in zip(subjects, refuses, strict=True) if r)
    suspected = tuple(sorted(s for s in asked if refused[s] >= share * asked[s]))
    right = len(set(suspected) & set(unlearned))
    return Found(right / len(suspected) if suspected else 0.0, right / len(set(unlearned)), suspected)
