"""A task as a trainer needs it: examples as rows of tokens, dealt to workers, batches without a cursor, and scores.

A row is prompt, separator, completion, end. The prompt loses its beginning where it is too long; all prompts have the same
room, what the longest completion leaves, so that a prompt reads alike in training and in generation. A row is padded on the
right, which a causal model does not notice, and only the tokens of completion and end are targets (the others are -100,
which torch's cross entropy leaves out).

Legend: B examples of a batch, T = context, E examples of a split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.shards import Shards, sizes
from lab.data.splits import Order, cut, evenly_spaced, partition
from lab.data.tasks import scores
from lab.data.tasks.examples import TASKS, Example, load_examples, task_name
from lab.data.tasks.task import IGNORED
from lab.data.tokenizer import Tokenizer, bare, load_tokenizer
from lab.ground.errors import RecipeError

SEPARATORS = ("\x1f", "\n", ":")  # ASCII's own unit separator; others for tokenizers that do not know it


@dataclass(frozen=True)
class Rows:
    """Encoded examples: tokens [E, T + 1], and the place of each completion with its end: from ``first`` to before ``end``."""

    tokens: np.ndarray
    first: np.ndarray  # int64 [E]
    end: np.ndarray  # int64 [E]

    def tensors(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some examples: int64 [B, T] each."""
        rows = torch.from_numpy(self.tokens[index].astype(np.int64))
        place = torch.arange(1, rows.shape[1])  # of each target in its row
        first, end = (torch.from_numpy(x[index])[:, None] for x in (self.first, self.end))
        targets = rows[:, 1:].masked_fill((place < first) | (place >= end), IGNORED)
        return rows[:, :-1].contiguous(), targets

    def prompts(self, index: np.ndarray) -> list[Tensor]:
        """Prompt and separator of some examples: int64 tensors of different lengths."""
        return [torch.from_numpy(self.tokens[i, : self.first[i]].astype(np.int64)) for i in index]


@dataclass(frozen=True)
class Encoder:
    """Examples to rows. ``longest``: tokens of a completion with its end, at most; a longer one is cut."""

    tokenizer: Tokenizer
    context: int
    longest: int

    @property
    def separator(self) -> np.ndarray:
        return next(ids for ids in bare(self.tokenizer, SEPARATORS) if len(ids))

    @property
    def end(self) -> int | None:
        """The token that ends a completion, where the tokenizer has one."""
        ids = self.tokenizer.encode([""])[0]
        return int(ids[-1]) if len(ids) else None

    def rows(self, examples: Sequence[Example], *, whole: bool = True) -> Rows:
        """``whole=False`` leaves out the end."""
        separator = self.separator
        room = self.context + 1 - len(separator) - self.longest
        if room < 1:
            raise RecipeError(f"a context of {self.context} tokens leaves no room for a prompt: set context higher")
        tokens = np.full((len(examples), self.context + 1), self.end or 0, self.tokenizer.dtype)
        first, end = np.zeros((2, len(examples)), np.int64)
        prompts = bare(self.tokenizer, [e.prompt for e in examples])
        texts = [e.completion for e in examples]
        completions = self.tokenizer.encode(texts) if whole else bare(self.tokenizer, texts)
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = np.concatenate([prompt[-room:], separator, completion[: self.longest]])
            tokens[i, : len(row)] = row
            first[i], end[i] = len(row) - len(completion[: self.longest]), len(row)
        return Rows(tokens, first, end)


@dataclass(frozen=True)
class TaskBatches:
    """Batch (worker, t) is a function of (seed, worker, t) alone, see `lab.data.splits.Order`."""

    rows: Rows
    order: Order

    def get(self, worker: int, t: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch ``t`` (from 1) of ``worker``: int64 [B, T] each."""
        return self.rows.tensors(self.order.items(worker, t))


@dataclass(frozen=True)
class TaskData:
    """A task, dealt to workers.

    tokenizer, vocab_size
        as in `lab.data.Corpus`.
    domains
        where examples come from, sorted; ``domain`` and ``dirichlet`` splits go by them.
    labels
        the completions of a task with labels, one for each domain; empty else.
    train, held_out
        the examples themselves.
    shards
        indices in ``train`` for every worker.
    fingerprint
        hash of all examples.
    """

    name: str
    context: int
    tokenizer: str
    vocab_size: int
    domains: tuple[str, ...]
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    shards: Shards
    fingerprint: str
    encoder: Encoder
    train_rows: Rows
    held_out_rows: Rows

    def __repr__(self) -> str:
        """Sizes, not contents."""
        return f"TaskData({self.name!r}: {len(self.train):,} examples, {len(self.held_out):,} held out)"

    @property
    def num_labels(self) -> int:
        """0 for a task without labels."""
        return len(self.labels)

    @property
    def samples_W(self) -> Sequence[int]:
        """Examples of every worker (federated papers: n_k)."""
        return sizes(self.shards)

    def batches(self, batch_size: int, seed: int) -> TaskBatches:
        return TaskBatches(self.train_rows, Order(self.shards, batch_size, seed))

    def validation(self, batch_size: int, num_examples: int) -> list[tuple[Tensor, Tensor]]:
        """Evenly spaced held-out examples (all where there are fewer), in order: pairs of int64 [B, T].

        Examples are sorted by domain, so each domain has its share. The last pair may have fewer rows.
        """
        chosen = self._held_out(num_examples)
        return [self.held_out_rows.tensors(part) for part in cut(chosen, batch_size)]

    def _held_out(self, num_examples: int) -> np.ndarray:
        return evenly_spaced(len(self.held_out), num_examples, "example")

    def scores(self, model: nn.Module, num_examples: int = 256, batch_size: int = 32) -> dict[str, float]:
        """What is cheap to know of a model in eval mode: ``accuracy`` for a task with labels, else ``perplexity``.

        accuracy: share of held-out examples whose label is the likeliest of all labels. perplexity: exp of the mean nats
        per token of the completions (with their ends). One forward pass; with labels of several tokens, one for each label.
        """
        chosen = self._held_out(num_examples)
        if not self.labels:
            nats, count = scores.nats(model, self.validation(batch_size, num_examples))
            return {"perplexity": math.exp(nats / count)}
        labels = bare(self.encoder.tokenizer, self.labels)
        truth = [self.labels.index(self.held_out[i].completion) for i in chosen]
        guesses: list[int] = []
        for part in cut(chosen, batch_size):
            if all(len(ids) == 1 for ids in labels):
                ids, _ = self.held_out_rows.tensors(part)
                at = torch.from_numpy(self.held_out_rows.first[part] - 1)
                guesses += scores.likeliest(model, ids, at, torch.tensor([int(x[0]) for x in labels]))
            else:
                guesses += self._likeliest(model, part)
        return {"accuracy": sum(g == t for g, t in zip(guesses, truth, strict=True)) / len(truth)}

    def _likeliest(self, model: nn.Module, index: np.ndarray) -> list[int]:
        """Which label has the highest likelihood as a whole, after each prompt."""
        nats_LB = []
        for label in self.labels:
            rows = self.encoder.rows([self.held_out[i]._replace(completion=label) for i in index], whole=False)
            nats_LB.append(scores.nats_of_rows(model, *rows.tensors(np.arange(len(index)))))
        return torch.stack(nats_LB).argmin(0).tolist()

    def rouge_l(self, model: nn.Module, num_examples: int = 64, batch_size: int = 32) -> float:
        """Mean ROUGE-L (F-measure) of greedy completions of held-out prompts, for a model in eval mode; 0 to 1.

        Dear: one forward pass for each token that is written, see `lab.data.tasks.scores.generate`.
        """
        chosen = self._held_out(num_examples)
        written = [text for part in cut(chosen, batch_size) for text in self.complete(model, part)]
        return scores.rouge_l(written, [self.held_out[i].completion for i in chosen])

    def complete(self, model: nn.Module, index: Sequence[int] | np.ndarray) -> list[str]:
        """What the model writes after the prompts of some held-out examples."""
        prompts = self.held_out_rows.prompts(np.asarray(index))
        written = scores.generate(model, prompts, self.encoder.longest, self.encoder.end)
        return [self.encoder.tokenizer.decode(ids.tolist()) for ids in written]


def load_task(
    name: str,
    *,
    context: int,
    num_workers: int,
    split: str = "iid",
    seed: int = 0,
    tokenizer: str = "bytes",
    cache: Path | None = None,
) -> TaskData:
    """A task of `TASKS` by name (``packages`` or ``task:packages``), as rows of ``context`` tokens, dealt to ``num_workers`` workers by ``split``.

    ``split`` is one of `lab.data.splits.partition`; ``tokenizer`` as
    in `lab.data.load_corpus`; ``cache`` a folder for the examples instead of the user's own.

    Completions (with their end) get at most half of the context; longer ones are cut and then have no end.

    Raises RecipeError, one line, for anything wrong with the arguments, the text or the network.
    """
    name = task_name(name) or name
    examples = load_examples(name, cache)
    loaded = load_tokenizer(tokenizer)
    domains = tuple(sorted({e.domain for e in (*examples.train, *examples.held_out)}))
    labels: tuple[str, ...] = ()
    if TASKS[name].has_labels:
        label = {e.domain: e.completion for e in (*examples.train, *examples.held_out)}
        labels = tuple(label[domain] for domain in domains)
    texts = list(dict.fromkeys(e.completion for e in (*examples.train, *examples.held_out)))
    needed = max(len(ids) for ids in loaded.encode(texts))
    if labels and needed > context // 2:
        raise RecipeError(f"a context of {context} tokens leaves no room for a prompt: set context higher")
    encoder = Encoder(loaded, context, min(needed, context // 2))
    index = {domain: i for i, domain in enumerate(domains)}
    shards = partition(np.array([index[e.domain] for e in examples.train]), num_workers, split, seed)
    return TaskData(
        name=name,
        context=context,
        tokenizer=tokenizer,
        vocab_size=loaded.vocab_size,
        domains=domains,
        labels=labels,
        train=examples.train,
        held_out=examples.held_out,
        shards=shards,
        fingerprint=examples.fingerprint,
        encoder=encoder,
        train_rows=encoder.rows(examples.train),
        held_out_rows=encoder.rows(examples.held_out),
    )
