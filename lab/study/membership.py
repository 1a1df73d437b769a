"""Shadow models: a stronger attack on membership, by somebody who trains models like the one that is attacked.

Each model learns from another half of the training examples (Shokri et al. 2017, arXiv 1610.05820). What an example's loss is like for
models that have seen it, and for those that have not, are two normal distributions; how much likelier the attacked model's loss is under
the first is the score (LiRA: Carlini et al. 2022, arXiv 2112.03570, with one variance for all examples, as they advise for few shadows).

For small models alone: an attack with 8 shadows is nine runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.splits import evenly_spaced
from lab.data.tasks.task import Examples, Task
from lab.ground.config import Count, config
from lab.ground.config.references import Call
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from lab.probes.evaluation import Evaluator
from lab.probes.membership import Leak, leak, losses
from lab.recipes.recipe import Recipe
from lab.runs.data import make_task
from lab.runs.trainer import Trainer

HALF = "lab.study.membership:Half"
TINY = 1e-12


@config
class Half:
    """A task of which one half of the training examples is left, drawn from the seed; ``other``: the other half.

    task, options
        which task, as a recipe names it.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    other: bool = False

    @property
    def of(self) -> Task:
        return _made(self.task, json.dumps(self.options, sort_keys=True))

    @property
    def index(self) -> np.ndarray:
        """Which training examples it has, sorted."""
        return np.flatnonzero(half(len(self.of.train), self.seed) != self.other)

    @property
    def train(self) -> Examples:
        examples = self.of.train
        index = torch.from_numpy(self.index)
        groups = None if examples.groups is None else examples.groups[index]
        return Examples(examples.inputs[index], examples.targets[index], groups, examples.normalisation)

    @property
    def held_out(self) -> Examples:
        return self.of.held_out

    @property
    def num_outputs(self) -> int:
        return self.of.num_outputs

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.of.loss(module, inputs, targets)

    def num_targets(self, targets: Tensor) -> int:
        return self.of.num_targets(targets)

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        return dict(self.of.scores(module, examples))


@lru_cache(maxsize=1)
def _made(name: str, options: str) -> Task:
    """Once for all halves."""
    return make_task(Call(name, json.loads(options)))


def half(num: int, seed: int) -> np.ndarray:
    """Which of so many examples are in the first half, bool ``[num]``."""
    inside = np.zeros(num, bool)
    inside[numpy_generator(seed, "half").permutation(num)[: num // 2]] = True
    return inside


@dataclass(frozen=True)
class Attack:
    """Two attacks on one model, over the same examples: from its ``loss`` alone, and with ``shadows``."""

    loss: Leak
    shadows: Leak


def attack(recipe: Recipe, shadows: Count = 8, examples: Count = 512, seed: int = 0) -> Attack:
    """Train a model on half of the training examples of a recipe's task, and as many shadows; then say which half an example is in.

    Parameters
    ----------
    shadows
        an even number: of each two one has what the other has not, so that every example is in half of them.
    examples
        at most so many training examples are looked at, evenly spaced. About half of them are members.

    Raises
    ------
    RecipeError
        for running text, which has no examples that could be left out, and an odd number of shadows.
    """
    if recipe.data is None:
        raise RecipeError(
            "shadow models leave out examples, and running text has none: use a task, for example data=digits"
        )
    if shadows < 2 or shadows % 2:
        raise RecipeError(f"shadows = {shadows} is not allowed: give an even number, for example 8")
    train = make_task(recipe.data).train
    looked_at = torch.tensor(evenly_spaced(len(train), examples, "example"))
    member = half(len(train), seed)[looked_at.numpy()]
    target = _score(_on_half(recipe, recipe.data, seed, False), train, looked_at)
    known, inside = [], []
    for k in range(shadows):
        of_pair, other = seed + 1 + k // 2, bool(k % 2)
        known.append(
            _score(_on_half(recipe, recipe.data, of_pair, other).but(seed=recipe.seed + 1 + k), train, looked_at)
        )
        inside.append(half(len(train), of_pair)[looked_at.numpy()] != other)
    ratio = likelihood_ratio(target, np.stack(known), np.stack(inside))
    return Attack(leak(target[member], target[~member]), leak(ratio[member], ratio[~member]))


def likelihood_ratio(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """log of how much likelier a score is if its example was trained on, ``[E]``.

    Parameters
    ----------
    target, shadows
        scores of the attacked model ``[E]`` and of shadows ``[K, E]``.
    inside
        which shadow was trained on which example, bool ``[K, E]``: each example in some and not in others.
    """
    num = inside.sum(0)
    mean_in = (shadows * inside).sum(0) / num
    mean_out = (shadows * ~inside).sum(0) / (len(shadows) - num)
    apart = shadows - np.where(inside, mean_in, mean_out)
    variance = float((apart**2).sum() / max(1, apart.size - 2 * apart.shape[1])) + TINY
    ratio: np.ndarray = ((target - mean_out) ** 2 - (target - mean_in) ** 2) / (2 * variance)
    return ratio


def _on_half(recipe: Recipe, data: Call, seed: int, other: bool) -> Recipe:
    half_of = {"name": HALF, "task": data.name, "options": dict(data.options), "seed": seed, "other": other}
    return recipe.but(data=half_of, checkpoint_every=0, eval_every=0, metrics=())


def _score(recipe: Recipe, train: Examples, looked_at: Tensor) -> np.ndarray:
    """log p / (1 − p) of what a model trained by this recipe says of examples, with p = exp(−loss), float64 ``[E]``."""
    trainer = Trainer(recipe)
    for _ in trainer.events():
        pass
    inputs, targets = train.take(looked_at, trainer.fleet.dtype)
    with torch.no_grad():
        model = trainer.fleet.whole_model(trainer.agreed())
        of_each = losses(Evaluator(trainer.setup), model, list(inputs), list(targets))
    trainer.fleet.close()
    score: np.ndarray = -np.log(np.expm1(np.maximum(of_each, TINY)))
    return score
