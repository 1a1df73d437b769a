"""What a recipe's workers read: running text, or the examples of a task, as the step loop needs it."""

from __future__ import annotations

import hashlib
import math
from functools import partial

from lab.data import Batches, Corpus, load_tokenizer, split_windows, validation_batches
from lab.data.cache import read_corpus
from lab.data.tasks.data import load_task
from lab.data.tasks.examples import is_there, load_examples, task_name
from lab.data.training_data import TrainingData
from lab.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.seeds import derive


def training_data(recipe: Recipe, corpus: Corpus | None = None, progress: bool = False) -> TrainingData:
    """Read (or make) what ``recipe.corpus`` names; ``corpus`` is one that is there already. Raises RecipeError."""
    name = task_name(recipe.corpus)
    data = _of_task(recipe, name) if name is not None else _of_text(recipe, corpus, progress)
    if recipe.model.vocab_size and recipe.model.vocab_size < data.vocab_size:
        raise RecipeError(
            f"model.vocab_size = {recipe.model.vocab_size} is too small for the {data.vocab_size} tokens of {recipe.corpus}: "
            "leave it out to take the corpus's"
        )
    return data


def _of_task(recipe: Recipe, name: str) -> TrainingData:
    task = load_task(
        name,
        context=recipe.context,
        num_workers=recipe.num_workers,
        split=recipe.split,
        seed=derive(recipe.seed, "split"),
        tokenizer=recipe.tokenizer,
    )
    return TrainingData(
        task.vocab_size,
        task.batches(recipe.batch_size, derive(recipe.seed, "batches")),
        task.validation(recipe.batch_size, recipe.eval_windows),
        task.samples_W,
        partial(task.scores, num_examples=recipe.eval_windows),
        digest=_digest(task.fingerprint, task.encoder.tokenizer.content),
    )


def _of_text(recipe: Recipe, corpus: Corpus | None, progress: bool) -> TrainingData:
    corpus = corpus or read_corpus(recipe.corpus, tokenizer=recipe.tokenizer, progress=progress)
    context, split = recipe.context, derive(recipe.seed, "split")
    shards = split_windows(corpus.train, recipe.num_workers, context, recipe.split, split)
    return TrainingData(
        corpus.vocab_size,
        Batches(corpus.train, shards, recipe.batch_size, context, derive(recipe.seed, "batches")),
        validation_batches(corpus.validation, context, recipe.batch_size, recipe.eval_windows),
        [len(shard) for shard in shards],
        lambda model: {},
        corpus.floor_bits * math.log(2) if corpus.floor_bits is not None else None,
        corpus.bytes_per_token,
        corpus_digest(corpus),
        f"{recipe.corpus}: {corpus.note}" if corpus.note else "",
    )


def _digest(fingerprint: str, tokenizer: str | int | None) -> str:
    return hashlib.sha256(f"{fingerprint} {tokenizer}".encode()).hexdigest()


def corpus_digest(corpus: Corpus) -> str:
    """`TrainingData.digest` of running text: its tokens, documents and domains, and how many tokens its model is to know."""
    return _digest(corpus.fingerprint, corpus.vocab_size)


def task_digest(recipe: Recipe) -> str | None:
    """`TrainingData.digest` of a recipe's task; None where its examples would first have to be fetched."""
    name = task_name(recipe.corpus)
    if name is None or not is_there(name):
        return None
    return _digest(load_examples(name).fingerprint, load_tokenizer(recipe.tokenizer).content)


def vocab_size_without_text(recipe: Recipe) -> int:
    """For a dry run: what the tokenizer says, without reading any text."""
    if recipe.model.vocab_size or recipe.tokenizer == "bytes":
        return recipe.model.vocab_size or 256
    return load_tokenizer(recipe.tokenizer).vocab_size
