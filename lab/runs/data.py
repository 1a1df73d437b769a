"""What a recipe's workers read: running text, or the examples of a task, as the step loop needs it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from lab.data import Batches, Corpus, load_tokenizer, split_windows, validation_batches
from lab.data.cache import read_corpus
from lab.data.tasks.data import TaskBatches, load_task
from lab.data.tasks.examples import is_there, load_examples, task_name
from lab.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.seeds import derive


@dataclass(frozen=True)
class Text:
    """Batches of every worker, and what the agreed model is scored on."""

    vocab_size: int
    batches: Batches | TaskBatches
    validation: list[tuple[Tensor, Tensor]]
    samples_W: Sequence[int]  # windows or examples of every worker
    scores: Callable[[nn.Module], dict[str, float]]  # what a task says of a model; nothing for running text
    floor_nats: float | None = None  # entropy rate, where it is known
    bytes_per_token: float = 1.0
    digest: str = ""  # of all that a result depends on: tokens or examples, and where they come from
    note: str = ""  # what the reader should know of it

    @classmethod
    def of(cls, recipe: Recipe, corpus: Corpus | None = None, progress: bool = False) -> Text:
        """Read (or make) what ``recipe.corpus`` names; ``corpus`` is one that is there already. Raises RecipeError."""
        batch_size, context, num_workers = recipe.batch_size, recipe.context, recipe.num_workers
        split, seed = derive(recipe.seed, "split"), derive(recipe.seed, "batches")
        name = task_name(recipe.corpus)
        if name is not None:
            task = load_task(
                name,
                context=context,
                num_workers=num_workers,
                split=recipe.split,
                seed=split,
                tokenizer=recipe.tokenizer,
            )
            validation = task.validation(batch_size, recipe.eval_windows)
            scores = partial(task.scores, num_examples=recipe.eval_windows)
            text = cls(
                task.vocab_size,
                task.batches(batch_size, seed),
                validation,
                task.samples_W,
                scores,
                digest=_digest(task.fingerprint, task.encoder.tokenizer.content),
            )
        else:
            corpus = corpus or read_corpus(recipe.corpus, tokenizer=recipe.tokenizer, progress=progress)
            shards = split_windows(corpus.train, num_workers, context, recipe.split, split)
            batches = Batches(corpus.train, shards, batch_size, context, seed)
            validation = validation_batches(corpus.validation, context, batch_size, recipe.eval_windows)
            floor = corpus.floor_bits * math.log(2) if corpus.floor_bits is not None else None
            samples_W = [len(shard) for shard in shards]
            text = cls(
                corpus.vocab_size,
                batches,
                validation,
                samples_W,
                lambda model: {},
                floor,
                corpus.bytes_per_token,
                corpus_digest(corpus),
                f"{recipe.corpus}: {corpus.note}" if corpus.note else "",
            )
        if recipe.model.vocab_size and recipe.model.vocab_size < text.vocab_size:
            raise RecipeError(
                f"model.vocab_size = {recipe.model.vocab_size} is too small for the {text.vocab_size} tokens of {recipe.corpus}: "
                "leave it out to take the corpus's"
            )
        return text


def _digest(fingerprint: str, tokenizer: str | int | None) -> str:
    return hashlib.sha256(f"{fingerprint} {tokenizer}".encode()).hexdigest()


def corpus_digest(corpus: Corpus) -> str:
    """`Text.digest` of running text: its tokens, documents and domains, and how many tokens its model is to know."""
    return _digest(corpus.fingerprint, corpus.vocab_size)


def task_digest(recipe: Recipe) -> str | None:
    """`Text.digest` of a recipe's task; None where its examples would first have to be fetched."""
    name = task_name(recipe.corpus)
    if name is None or not is_there(name):
        return None
    return _digest(load_examples(name).fingerprint, load_tokenizer(recipe.tokenizer).content)


def vocab_size_without_text(recipe: Recipe) -> int:
    """For a dry run: what the tokenizer says, without reading any text."""
    if recipe.model.vocab_size or recipe.tokenizer == "bytes":
        return recipe.model.vocab_size or 256
    return load_tokenizer(recipe.tokenizer).vocab_size
