"""Where the samples of a recipe's text or task come from, for runs that weigh them, and anchors that are set apart (`lab.data.domains`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from lab.data import Batches, Corpus
from lab.data.domains import ByDomain, number, set_apart, taken_off, told_apart
from lab.data.shards import Shards, without
from lab.data.splits import (
    Order,
    evenly_spaced,
    validation_windows,
    window_batches,
    window_documents,
    window_domains,
)
from lab.data.tasks.data import Rows, TaskData
from lab.data.tasks.examples import Example
from lab.data.training_data import Domains
from lab.recipes.recipe import Recipe
from lab.recipes.weighting import Weighting

ByName = Callable[[nn.Module], dict[str, float]]
Anchors = tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Apart:
    """Windows of text: those that are scored, of the held-out ones; anchors, and those that are left to train on."""

    scored: np.ndarray
    anchors: Anchors = None
    taken: np.ndarray | None = None  # of the windows to train on

    def left_of(self, shards: Shards) -> Shards:
        """Shards without what is taken."""
        return shards if self.taken is None else without(shards, self.taken)


def windows_apart(recipe: Recipe, corpus: Corpus) -> Apart:
    """Raises RecipeError for a target that there is not, or that has not enough windows."""
    weighting, context, held_out = recipe.weighting, recipe.context, corpus.validation
    scored = validation_windows(held_out, context, recipe.eval_windows)
    if not weighting.has_anchors:
        return Apart(scored)
    target, num = number(corpus.domains, weighting.target, "weighting.target"), weighting.anchors
    if weighting.source == "train":
        taken = taken_off(window_domains(corpus.train, context), target, num, weighting.target)
        return Apart(scored, _tensors(corpus, taken, context, train=True), taken)
    of, documents = window_domains(held_out, context), window_documents(held_out, context)
    chosen, left = set_apart(of, documents, target, num, weighting.target)
    scored = left[evenly_spaced(len(left), recipe.eval_windows, "window")]
    return Apart(scored, _tensors(corpus, chosen, context, train=False))


def _tensors(corpus: Corpus, windows: np.ndarray, context: int, train: bool) -> tuple[Tensor, Tensor]:
    return window_batches(corpus.train if train else corpus.validation, context, len(windows), windows)[0]


def domains_of_text(
    recipe: Recipe, corpus: Corpus, batches: Batches, apart: Apart, validation: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Domains | None, ByName]:
    """Domains of windows, and what tells the loss by domain; neither, where nothing is weighed."""
    weighting = recipe.weighting
    if not weighting.asked_for:
        return None, _nothing
    of = window_domains(corpus.train, recipe.context)
    names, place = told_apart(corpus.domains, of, _kept(weighting, corpus.domains))
    by_domain = ByDomain(validation, names, place[window_domains(corpus.validation, recipe.context)[apart.scored]])
    shard = batches.shards.__getitem__
    return Domains(names, place[of], batches.items, shard, batches.take, apart.anchors, corpus.decode), by_domain


def task_apart(weighting: Weighting, task: TaskData) -> tuple[TaskData, Anchors]:
    """A task without what is set apart, and the anchors. Raises RecipeError as `windows_apart` does. An example is its own document."""
    if not weighting.has_anchors:
        return task, None
    target, num = number(task.domains, weighting.target, "weighting.target"), weighting.anchors
    train, held_out = _domains(task, task.train), _domains(task, task.held_out)
    if weighting.source == "train":
        chosen = taken_off(train, target, num, weighting.target)
        return replace(task, shards=without(task.shards, chosen)), task.train_rows.tensors(chosen)
    chosen, left = set_apart(held_out, np.arange(len(held_out)), target, num, weighting.target)
    rows, some = task.held_out_rows, tuple(task.held_out[i] for i in left)
    scored = Rows(rows.tokens[left], rows.first[left], rows.end[left])
    return replace(task, held_out=some, held_out_rows=scored), rows.tensors(chosen)


def domains_of_task(recipe: Recipe, task: TaskData, order: Order, anchors: Anchors) -> tuple[Domains | None, ByName]:
    """As `domains_of_text`, of the examples of a task."""
    weighting = recipe.weighting
    if not weighting.asked_for:
        return None, _nothing
    of, held_out = _domains(task, task.train), _domains(task, task.held_out)
    names, place = told_apart(task.domains, of, _kept(weighting, task.domains))
    chosen = evenly_spaced(len(held_out), recipe.eval_windows, "example")
    by_domain = ByDomain(task.validation(recipe.batch_size, recipe.eval_windows), names, place[held_out[chosen]])
    shard, take, text = task.shards.__getitem__, task.train_rows.tensors, task.encoder.tokenizer.decode
    return Domains(names, place[of], order.items, shard, take, anchors, text), by_domain


def _domains(task: TaskData, examples: Sequence[Example]) -> np.ndarray:
    index = {domain: i for i, domain in enumerate(task.domains)}
    return np.array([index[e.domain] for e in examples])


def _kept(weighting: Weighting, names: Sequence[str]) -> list[str]:
    """Domains that a recipe names. Raises RecipeError where one of them is not there."""
    for name in weighting.domains:
        number(names, name, "weighting.domains")
    return [weighting.target, *weighting.domains]


def _nothing(model: nn.Module) -> dict[str, float]:
    return {}
