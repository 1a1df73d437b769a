"""What a recipe's workers read: running text, or the examples of a task, as the step loop needs it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lab.data import Batches, Corpus, load_tokenizer, split_windows
from lab.data.cache import read_corpus
from lab.data.shards import portions, sizes
from lab.data.splits import parse_split, window_batches
from lab.data.tasks import scores
from lab.data.tasks.data import load_task
from lab.data.tasks.dealt import Dealt, check_task, deal, digest_of, predicts_tokens, vocab_size
from lab.data.tasks.examples import is_there, load_examples, task_name
from lab.data.tasks.registry import KNOWN, check_options, find_task
from lab.data.tasks.task import IGNORED, Task
from lab.data.training_data import HeldOut, TrainingData
from lab.ground.config.references import Call
from lab.ground.errors import RecipeError
from lab.ground.seeds import derive
from lab.models.own import one_line
from lab.models.shape import Shape
from lab.recipes.groups import Groups, by_column, listed
from lab.recipes.recipe import Recipe
from lab.runs.domains import domains_of_task, domains_of_text, task_apart, windows_apart


def training_data(recipe: Recipe, corpus: Corpus | None = None, progress: bool = False) -> TrainingData:
    """Read (or make) what the recipe names; ``corpus`` is one that is there already. Raises RecipeError."""
    if recipe.data is not None:
        return _of_examples(recipe, recipe.data)
    name = task_name(recipe.corpus)
    data = _of_task(recipe, name) if name is not None else _of_text(recipe, corpus, progress)
    if recipe.model.vocab_size and recipe.model.vocab_size < data.vocab_size:
        raise RecipeError(
            f"model.vocab_size = {recipe.model.vocab_size} is too small for the {data.vocab_size} tokens of {recipe.corpus}: "
            "leave it out to take the corpus's"
        )
    return data


def make_task(call: Call) -> Task:
    """The task that a recipe's ``data`` names. Raises RecipeError where it cannot be made, or is none."""
    make = find_task(call.name)
    call.check(make, "data")
    try:
        task: Task = make(**check_options(make, call.options))
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"data {call.name} cannot be made: {one_line(error)}") from error
    check_task(task, f"data {call.name}")
    return task


def _dealt(recipe: Recipe, task: Task) -> Dealt:
    return deal(
        task,
        num_workers=recipe.num_clients,
        split=recipe.split,
        split_seed=derive(recipe.seed, "split"),
        batch_size=recipe.batch_size,
        batches_seed=derive(recipe.seed, "batches"),
        num_validation=recipe.eval_windows,
        share_held_out=recipe.clients.held_out,
        dtype=getattr(torch, recipe.dtype),
        labelled=recipe.server.labelled,
    )


def labelled_of(recipe: Recipe, data: TrainingData | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The server's own examples (`lab.engine.state.State.labelled`); in a dry run (no data) their shapes."""
    num = recipe.server.labelled
    if not num or recipe.data is None:
        return None
    if data is not None:
        assert data.labelled is not None
        inputs, targets = data.labelled
        return inputs.to(device), targets.to(device)
    shape = shape_of(recipe, None)
    each = (shape.outputs, num)
    return torch.empty(*each, *shape.input, device="meta"), torch.empty(each, dtype=torch.int64, device="meta")


def sizes_unread(recipe: Recipe) -> Sequence[int] | None:
    """Examples of every client, as far as they decide what a dry run sends; None where they do not, or are all alike.

    Raises RecipeError where text would have to be read to know them.
    """
    clients = recipe.clients
    decide = clients.sampling == "size" and (clients.wait_for or clients.deadline is not None)
    if not decide or parse_split(recipe.split).kind == "draw":
        return None
    if recipe.data is not None:
        return _dealt(recipe, make_task(recipe.data)).samples_W
    raise RecipeError(
        "clients.sampling = 'size' with wait_for or deadline: who is late depends on how much text each has, which is not known before it "
        "is read; use clients.sampling=uniform, or split=draw:<n>"
    )


def groups_of(recipe: Recipe, data: TrainingData | None = None) -> Groups:
    """Who belongs to which group; nothing, where a recipe has none. Without data (in a dry run) its examples are made and dealt.

    Raises
    ------
    RecipeError
        for a column that the examples do not have, or that says several things of one client.
    """
    if not isinstance(recipe.groups, str):
        return listed(recipe.groups, recipe.num_clients)
    if not recipe.groups or recipe.data is None:
        return {}
    column_of = data.column_of if data is not None else _dealt(recipe, make_task(recipe.data)).column_of
    assert column_of is not None
    return by_column(recipe.groups, column_of)


def _of_examples(recipe: Recipe, call: Call) -> TrainingData:
    task = make_task(call)
    dealt = _dealt(recipe, task)
    return TrainingData(
        dealt.vocab_size,
        dealt.batches,
        dealt.validation,
        dealt.samples_W,
        dealt.scores,
        dealt.num_targets,
        digest=dealt.digest,
        input_shape=dealt.input_shape,
        num_outputs=dealt.num_outputs,
        of_each=predicts_tokens(task),
        loss=dealt.loss,
        held_out=dealt.held_out,
        column_of=dealt.column_of,
        labelled=dealt.labelled,
    )


def tokens_that_count(targets: Tensor) -> int:
    return int((targets != IGNORED).sum())


def _of_task(recipe: Recipe, name: str) -> TrainingData:
    task = load_task(
        name,
        context=recipe.context,
        num_workers=recipe.num_clients,
        split=recipe.split,
        seed=derive(recipe.seed, "split"),
        tokenizer=recipe.tokenizer,
    )
    task, anchors = task_apart(recipe.weighting, task)
    trained, own = portions(task.shards, recipe.clients.held_out, derive(recipe.seed, "split"))
    task = replace(task, shards=trained)
    batches = task.batches(recipe.batch_size, derive(recipe.seed, "batches"))
    domains, by_domain = domains_of_task(recipe, task, batches.order, anchors)
    return TrainingData(
        task.vocab_size,
        batches,
        task.validation(recipe.batch_size, recipe.eval_windows),
        task.samples_W,
        lambda model: task.scores(model, num_examples=recipe.eval_windows) | by_domain(model),
        tokens_that_count,
        digest=_digest(task.fingerprint, task.encoder.tokenizer.content),
        held_out=None if own is None else HeldOut(own, task.train_rows.tensors, scores.by_row),
        domains=domains,
    )


def _of_text(recipe: Recipe, corpus: Corpus | None, progress: bool) -> TrainingData:
    corpus = corpus or read_corpus(recipe.corpus, tokenizer=recipe.tokenizer, progress=progress)
    context, split = recipe.context, derive(recipe.seed, "split")
    apart = windows_apart(recipe, corpus)
    dealt = apart.left_of(split_windows(corpus.train, recipe.num_clients, context, recipe.split, split))
    shards, own = portions(dealt, recipe.clients.held_out, split)
    batches = Batches(corpus.train, shards, recipe.batch_size, context, derive(recipe.seed, "batches"))
    validation = window_batches(corpus.validation, context, recipe.batch_size, apart.scored)
    domains, by_domain = domains_of_text(recipe, corpus, batches, apart, validation)
    return TrainingData(
        corpus.vocab_size,
        batches,
        validation,
        sizes(shards),
        by_domain,
        tokens_that_count,
        corpus.floor_bits * math.log(2) if corpus.floor_bits is not None else None,
        corpus.bytes_per_token,
        corpus_digest(corpus),
        f"{recipe.corpus}: {corpus.note}" if corpus.note else "",
        held_out=None if own is None else HeldOut(own, batches.take, scores.by_row),
        domains=domains,
    )


def _digest(fingerprint: str, tokenizer: str | int | None) -> str:
    return hashlib.sha256(f"{fingerprint} {tokenizer}".encode()).hexdigest()


def corpus_digest(corpus: Corpus) -> str:
    """`TrainingData.digest` of running text: its tokens, documents and domains, and how many tokens its model is to know."""
    return _digest(corpus.fingerprint, corpus.vocab_size)


def task_digest(recipe: Recipe) -> str | None:
    """`TrainingData.digest` of a recipe's task; None where its examples would first have to be fetched."""
    if recipe.data is not None:
        return None if recipe.data.name.split(":")[0] == "hub" else digest_of(make_task(recipe.data), recipe.split)
    name = task_name(recipe.corpus)
    if name is None or not is_there(name):
        return None
    return _digest(load_examples(name).fingerprint, load_tokenizer(recipe.tokenizer).content)


def shape_of(recipe: Recipe, data: TrainingData | None) -> Shape:
    """What the model is made for; in a dry run (no data) as tokenizer or task say it, without reading any text."""
    if data is not None:
        if recipe.data is None:
            return Shape(data.vocab_size, recipe.context)
        return _shape_of_examples(data.vocab_size, data.input_shape, data.num_outputs, data.of_each)
    if recipe.data is not None:
        if recipe.data.name in KNOWN and not recipe.data.options:
            return _shape_of_examples(0, *KNOWN[recipe.data.name])
        task = make_task(recipe.data)
        return _shape_of_examples(
            vocab_size(task), tuple(task.train.inputs.shape[1:]), task.num_outputs, predicts_tokens(task)
        )
    if recipe.model.vocab_size or recipe.tokenizer == "bytes":
        return Shape(recipe.model.vocab_size or 256, recipe.context)
    return Shape(load_tokenizer(recipe.tokenizer).vocab_size, recipe.context)


def _shape_of_examples(vocab_size: int, input_shape: tuple[int, ...], num_outputs: int, of_each: bool = False) -> Shape:
    """``context`` is that of inputs that are tokens."""
    return Shape(vocab_size, math.prod(input_shape) if vocab_size else 0, input_shape, num_outputs, of_each)
