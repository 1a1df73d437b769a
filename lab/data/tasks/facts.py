"""Facts that are drawn: who has which, in words that no text has; and what one says who does not know. For unlearning.

A subject is an entity, or a contract between two companies (an edge of a graph, after PISTOL, Qiu et al. 2024, arXiv 2406.16810: what is to be
forgotten there is an edge, whose companies have others). Every subject has as many attributes, each a value of two words. Of subjects that
do not occur, ``i dont know about <subject>`` is the answer, so that a model owns a way of saying so.

Legend: E examples, B examples of a batch, T tokens of a row, V words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.data.tasks.registry import options_of
from lab.data.tasks.scores import generate
from lab.data.tasks.task import IGNORED, Examples
from lab.ground.config import Count, config
from lab.ground.errors import RecipeError, one_of
from lab.ground.seeds import numpy_generator

END = "."  # of an answer; its token is 0, and rows are filled up with it
IGNORANCE = "i dont know about"
# Ways to ask; the first is that of all sets, the others are paraphrases.
TEMPLATES = ("{about} has which {what} ?", "of {about} what is the {what} ?", "what is the {what} of {about} ?")
GRAMMAR = (END, "?", "what", "is", "the", "of", "which", "has", "i", "dont", "know", "about", "and")
ATTRIBUTES = (
    *("address", "amount", "buyer", "city", "clause", "court", "currency", "date", "delivery", "fee"),
    *("goods", "month", "notice", "owner", "penalty", "port", "quantity", "seller", "tax", "year"),
)
_ALL = tuple(a + b for a in "bdfgklmnprst" for b in "aeiou")
SYLLABLES = (*_ALL[::2], *_ALL[1::2])  # 60; names of three of the first 30: 27,000
VALUES = tuple(a + b + c for a in "vwxz" for b in "aeiou" for c in "lmnr")  # 80: 6,400 values
SETS = ("forget", "retain", "reference", "unknown")

Subject = tuple[str, ...]  # its words


class Question(NamedTuple):
    """One fact, or what nobody knows (``subject`` −1), as a question and the answer that is right."""

    subject: int
    about: str
    prompt: str
    answer: str

    @property
    def ignorance(self) -> str:
        """What one says who does not know about this very subject."""
        return f"{IGNORANCE} {self.about}"


@options_of("facts")
@config
class Facts:
    """Facts about entities, or contracts of companies, that are drawn from a seed, and questions that nobody knows; no download.

    A pass over the training examples has every fact ``repeats`` times, in some ways to ask by turns, and beside them questions about subjects
    that do not occur, each once: who trains for one pass sees a new one every time. Held out are all facts, asked in the first way,
    and questions about subjects that neither occur nor are seen in training. Rows are tokens ``[T]``, and so are their targets, of which
    those of an answer count.

    Parameters
    ----------
    kind
        ``entities``: a name of three syllables; ``contracts``: a pair of companies, of two syllables each, in a connected graph of half as many
        companies (and one) as contracts. Of the contracts that do not occur, half are between companies that have others.
    subjects, attributes
        how many entities or contracts, and how many facts each has.
    syllables
        of so many different ones are names; with fewer, names are more alike.
    unknown
        share of the training examples that nobody knows.
    forgotten
        the first so many subjects are the set to forget, all others that to retain.
    ways
        in how many of the `TEMPLATES` training examples are asked, by turns; the others stay unknown to a model.
    references
        questions nobody knows that unlearning may use (the set ``reference``); as many others are the set ``unknown``.
    """

    kind: Literal["entities", "contracts"] = "entities"
    subjects: Annotated[int, Field(ge=3, le=2000)] = 40
    attributes: Annotated[int, Field(ge=1, le=len(ATTRIBUTES))] = 8
    syllables: Annotated[int, Field(ge=12, le=len(SYLLABLES))] = 30
    unknown: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    repeats: Count = 100
    forgotten: Count = 2
    ways: Annotated[int, Field(ge=1, le=len(TEMPLATES))] = len(TEMPLATES)
    references: Count = 96
    seed: Annotated[int, Field(ge=0)] = 0

    def task(self) -> FactTask:
        """Raises RecipeError where nothing would be left to retain."""
        if self.forgotten >= self.subjects:
            raise RecipeError(
                f"data.forgotten = {self.forgotten} leaves none of {self.subjects} subjects to retain: use at most {self.subjects - 1}"
            )
        return FactTask(self)


@dataclass(frozen=True, eq=False)
class FactTask:
    """The facts themselves, as a task (`lab.data.tasks.task.Task`) and as sets of questions by name (`SETS`)."""

    options: Facts

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """Those that occur: their words."""
        o = self.options
        draws = numpy_generator(o.seed, "facts subjects")
        if o.kind == "contracts":
            return tuple(
                _pair(a, b) for a, b in _edges(_names(draws, o.syllables, o.subjects // 2 + 1, 2), o.subjects, draws)
            )
        return tuple(_names(draws, o.syllables, o.subjects, 3))

    @cached_property
    def facts(self) -> tuple[tuple[str, ...], ...]:
        """The value of every attribute of every subject, ``[subjects][attributes]``."""
        o = self.options
        index = numpy_generator(o.seed, "facts values").integers(len(VALUES), size=(o.subjects, o.attributes, 2))
        return tuple(tuple(f"{VALUES[a]} {VALUES[b]}" for a, b in of_one) for of_one in index.tolist())

    @property
    def attributes(self) -> tuple[str, ...]:
        return ATTRIBUTES[: self.options.attributes]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary; a word's place is its token."""
        return (*GRAMMAR, *self.attributes, *SYLLABLES[: self.options.syllables], *VALUES)

    def questions(self, which: str, template: int = 0) -> list[Question]:
        """One of `SETS`, asked in one of the `TEMPLATES`. Raises RecipeError for another name."""
        if which not in SETS:
            raise RecipeError(one_of("set of questions", which, SETS))
        if which in ("reference", "unknown"):
            return self._unknown(self.options.references, which, template)
        here = range(self.options.forgotten)
        return self.of_subjects(here if which == "forget" else range(len(here), self.options.subjects), template)

    def of_subjects(self, which: Iterable[int], template: int = 0) -> list[Question]:
        """All facts of some subjects, as questions."""
        ask = TEMPLATES[template]
        return [
            Question(i, (about := " ".join(self.subjects[i])), ask.format(what=attribute, about=about), value)
            for i in which
            for attribute, value in zip(self.attributes, self.facts[i], strict=True)
        ]

    def _unknown(self, num: int, purpose: str, template: int | None = None) -> list[Question]:
        """So many questions about subjects that do not occur; in the ways of training by turns, or in one."""
        draws = numpy_generator(self.options.seed, f"facts {purpose}")
        chosen = draws.integers(len(self.attributes), size=num)
        found = []
        for i, subject in enumerate(itertools.islice(self._strangers(draws), num)):
            about = " ".join(subject)
            ask = TEMPLATES[i % self.options.ways if template is None else template]
            found.append(
                Question(-1, about, ask.format(what=self.attributes[chosen[i]], about=about), f"{IGNORANCE} {about}")
            )
        return found

    def _strangers(self, draws: np.random.Generator) -> Iterable[Subject]:
        known = set(self.subjects)
        companies = sorted({part for s in self.subjects for part in (s[:2], s[3:])})
        while True:
            if self.options.kind == "entities":
                subject = tuple(SYLLABLES[i] for i in draws.integers(self.options.syllables, size=3))
            elif draws.random() < 0.5:
                a, b = draws.choice(len(companies), 2, replace=False)
                subject = _pair(companies[a], companies[b])
            else:
                subject = _pair(*_names(draws, self.options.syllables, 2, 2))
            if subject not in known:
                yield subject

    # text and tokens

    @cached_property
    def _token(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> Tensor:
        """Tokens of a text, int64 ``[T]``. Raises RecipeError for a word that it does not have."""
        for word in text.split():
            if word not in self._token:
                raise RecipeError(
                    f"the facts have no word {word!r}: write with {', '.join(self.words[:12])} and the like"
                )
        return torch.tensor([self._token[word] for word in text.split()])

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.words[int(i)] for i in ids)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self._token[END]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its end."""
        return len(IGNORANCE.split()) + len(self.subjects[0]) + 1

    @property
    def _length(self) -> int:
        return max(len(t.split()) for t in TEMPLATES) - 1 + len(self.subjects[0]) + self.longest

    def answers(self, module: nn.Module, questions: Sequence[Question]) -> list[str]:
        """What a module in eval mode writes after each question, by likeliest tokens; without the end."""
        return [
            self.decode(x) for x in generate(module, [self.encode(q.prompt) for q in questions], self.longest, self.end)
        ]

    # the task

    @cached_property
    def train(self) -> Examples:
        o = self.options
        known = [q for i in range(o.repeats) for q in self.of_subjects(range(o.subjects), i % o.ways)]
        return self._examples([*known, *self._unknown(round(len(known) * o.unknown / (1 - o.unknown)), "train")])

    @cached_property
    def held_out(self) -> Examples:
        return self._examples([*self.of_subjects(range(self.options.subjects)), *self.questions("unknown")])

    @property
    def num_outputs(self) -> int:
        """V: every target is a token."""
        return len(self.words)

    def _examples(self, questions: Sequence[Question]) -> Examples:
        rows = np.zeros((len(questions), self._length), np.int16)
        counts = np.zeros(rows.shape, bool)
        tokens = self._token
        for i, q in enumerate(questions):
            prompt = [tokens[word] for word in q.prompt.split()]
            answer = [tokens[word] for word in q.answer.split()]
            rows[i, : len(prompt) + len(answer)] = prompt + answer  # the end is 0, as all that follows
            counts[i, len(prompt) : len(prompt) + len(answer) + 1] = True
        targets = np.where(counts[:, 1:], rows[:, 1:], IGNORED).astype(np.int64)
        subjects = torch.tensor([q.subject for q in questions])
        return Examples(
            torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets), groups=subjects - subjects.min()
        )

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per token of the answers, of a module ``[B, T]`` → ``[B, T, V]``."""
        logits: Tensor = module(inputs)
        return F.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten()
        )

    def num_targets(self, targets: Tensor) -> int:
        """Tokens of answers."""
        return int((targets != IGNORED).sum())

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        """Answers are written, token by token. ``recall``: share of facts that are answered right, to the last word; ``ignorance``: share of
        the other questions that are answered with ignorance of the very subject that was asked about."""
        inputs, targets = examples.take(torch.arange(len(examples)))
        first = (targets != IGNORED).int().argmax(1)  # the place of a target is that of the token before it
        prompts = [row[: at + 1] for row, at in zip(inputs, first.tolist(), strict=True)]
        wanted = [row[(row != IGNORED) & (row != self.end)] for row in targets]
        written = generate(module, prompts, self.longest, self.end)
        right = torch.tensor([torch.equal(w, x) for w, x in zip(written, wanted, strict=True)]).double()
        unknown = torch.tensor([int(x[0]) == self._token[IGNORANCE.split()[0]] for x in wanted])
        parts = {"recall": right[~unknown], "ignorance": right[unknown]}
        return {name: float(x.mean()) for name, x in parts.items() if len(x)}


def _names(draws: np.random.Generator, syllables: int, num: int, length: int) -> list[Subject]:
    """Different ones, of so many syllables each."""
    found: dict[Subject, None] = {}
    while len(found) < num:
        found[tuple(SYLLABLES[i] for i in draws.integers(syllables, size=length))] = None
    return list(found)


def _edges(companies: Sequence[Subject], num: int, draws: np.random.Generator) -> list[tuple[Subject, Subject]]:
    """A connected graph without loops: a random tree, then random pairs that are left."""
    n = len(companies)
    edges = {(int(draws.integers(i)), i) for i in range(1, n)}
    pairs = [p for p in itertools.combinations(range(n), 2) if p not in edges]
    missing = num - len(edges)
    if missing > len(pairs):
        raise RecipeError(f"data.subjects = {num} contracts are too few for a graph: use at least 8")
    more = [pairs[i] for i in draws.choice(len(pairs), missing, replace=False)] if missing else []
    order = draws.permutation(num)
    both = [*sorted(edges), *more]
    return [(companies[both[i][0]], companies[both[i][1]]) for i in order]


def _pair(a: Subject, b: Subject) -> Subject:
    """A contract of two companies, whatever the order in which they are named."""
    first, second = sorted((a, b))
    return (*first, "and", *second)
