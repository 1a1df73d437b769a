"""Messages of authors that nobody is: habits of writing are numbers that are drawn, and what is written about is the same for all.

Of a bench that asks how well somebody's style can be imitated (after Iofinova et al. 2025, arXiv 2502.06560, who write of real people). Here
there are none: no text of a person is read or needed. The habits, the templates and all numbers are ours [inferred].

Legend: K authors, E examples, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.data.tasks.data import Encoder
from lab.data.tasks.examples import Example
from lab.data.tasks.registry import options_of
from lab.data.tasks.scores import by_row
from lab.data.tasks.task import IGNORED, Examples
from lab.data.tokenizer import BYTES
from lab.ground.config import Count, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator

Part = Literal["train", "calibration", "test"]
SHARES = (2 / 3, 1 / 6)  # of an author's messages: to train on, to calibrate with; the rest is for tests
VOCABULARY = 256  # bytes
CONCENTRATION = 0.2  # of the Dirichlet by which authors choose words: of six about one and a half are used

# What a message is about: one of each, drawn alike for all authors.
ACTS = ("send", "move", "check", "share", "review", "cancel")
OBJECTS = ("report", "meeting", "invoice", "draft", "visit", "order", "survey", "plan")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
REASONS = ("budget", "data", "room", "contract", "schedule", "printer")
ASKS = {
    "call": "call me",
    "tell": "tell the team",
    "keep": "keep a copy",
    "look": "look at the list",
    "wait": "wait for the news",
}
SUBJECTS = (ACTS, OBJECTS, DAYS, REASONS, tuple(ASKS))
NUM_SUBJECTS = math.prod(map(len, SUBJECTS))

# How it is said: of each list an author has favourites.
WORDS: dict[str, tuple[str, ...]] = {
    "greeting": ("Hi", "Hello", "Hey", "Dear all", "Good day", ""),
    "sign-off": ("Thanks", "Best", "Cheers", "Regards", "Take care", ""),
    "opening": ("", "So", "Well", "As agreed", "In short", "By the way"),
    "hedge": ("I think", "maybe", "probably", "I guess", "it seems"),
    "because": ("because", "since", "as", "for"),
    "by": ("on", "by", "before", "this"),
    "ready": ("ready", "done", "finished", "complete"),
    "please": ("please", "kindly", "could you", "you should"),
    "and": ("and", "and also", "so", "then"),
}


@dataclass(frozen=True)
class Habits:
    """An author: how often each word of `WORDS` is chosen, and seven rates, all in [0, 1].

    contractions, hedges, exclamations, commas, typos
        of "I will" and "is not" said as "I'll" and "isn't"; of messages with a hedge; of sentences that end in "!"; of places for a
        comma with one; of words of four letters or more with two neighbours exchanged.
    joined
        of two clauses that become one sentence: the mean length of a sentence follows from it.
    """

    words: dict[str, tuple[float, ...]]
    contractions: float
    hedges: float
    exclamations: float
    commas: float
    typos: float
    joined: float

    @classmethod
    def drawn(cls, seed: int, author: int) -> Habits:
        """Those of one author, from ``(seed, author)`` alone."""
        rng = numpy_generator(seed, "habits", author)
        words = {name: tuple(rng.dirichlet([CONCENTRATION] * len(of))) for name, of in WORDS.items()}
        short, hedges, exclamations, commas, joined = map(float, rng.beta(0.5, 0.5, 5))
        return cls(words, short, hedges, exclamations, commas, float(0.08 * rng.beta(0.5, 1.0)), joined)


class Message(NamedTuple):
    """``asked``: what it is about, in a word for each of `SUBJECTS`; ``text``: how its author says that."""

    author: int
    part: Part | Literal["imitated"]
    asked: str
    text: str


def subject(number: int) -> tuple[str, ...]:
    """One of the `NUM_SUBJECTS` things that a message can be about."""
    return tuple(of[i] for of, i in zip(SUBJECTS, np.unravel_index(number, [*map(len, SUBJECTS)]), strict=True))


def written(about: Sequence[str], habits: Habits, rng: np.random.Generator) -> str:
    """One message on a subject, as this author writes."""
    act, thing, day, reason, ask = about

    def word(of: str) -> str:
        return WORDS[of][int(rng.choice(len(WORDS[of]), p=habits.words[of]))]

    def often(rate: float) -> bool:
        return bool(rng.random() < rate)

    short = often(habits.contractions)
    comma = "," if often(habits.commas) else ""
    will, is_not = ("I'll", "isn't") if short else ("I will", "is not")
    first = f"{will} {act} the {thing} {word('by')} {day}"
    if often(habits.hedges):
        first = f"{word('hedge')}{comma} {first}"
    if opening := word("opening"):
        first = f"{opening}, {first}" if comma or " " in opening else f"{opening} {first}"
    why = f"the {reason} {is_not} {word('ready')}"
    last = f"{word('please')} {ASKS[ask]}"
    sentences = [f"{first}{comma} {word('because')} {why}"] if often(habits.joined) else [first, why]
    if often(habits.joined):
        sentences[-1] += f"{comma} {word('and')} {last}"
    else:
        sentences.append(last)
    ends = ["!" if often(habits.exclamations) else "." for _ in sentences]
    body = " ".join(s[0].upper() + s[1:] + end for s, end in zip(sentences, ends, strict=True))
    body = " ".join(_typed(w, rng) if often(habits.typos) else w for w in body.split(" "))
    greeting, close = word("greeting"), word("sign-off")
    return "\n".join(filter(None, [f"{greeting}," if greeting else "", body, close]))


def _typed(word: str, rng: np.random.Generator) -> str:
    """With two neighbours inside exchanged."""
    if len(word) < 4:
        return word
    i = int(rng.integers(1, len(word) - 2))
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


@lru_cache(maxsize=4)
def messages(authors: int, num: int, seed: int) -> tuple[tuple[Message, ...], ...]:
    """``num`` messages of each author, the part to train on first; no author writes twice on one subject."""
    ends = [round(sum(SHARES[: i + 1]) * num) for i in range(len(SHARES))]
    found = []
    for author in range(authors):
        habits, rng = Habits.drawn(seed, author), numpy_generator(seed, "messages", author)
        about = [subject(int(i)) for i in numpy_generator(seed, "subjects", author).permutation(NUM_SUBJECTS)[:num]]
        parts = [get_args(Part)[sum(i >= end for end in ends)] for i in range(num)]
        found.append(
            tuple(
                Message(author, part, " ".join(a), written(a, habits, rng))
                for a, part in zip(about, parts, strict=True)
            )
        )
    return tuple(found)


@options_of("authors")
@config
class Authors:
    """Messages of authors that nobody is, as rows of bytes: what to write about, then the message, whose bytes are the targets. No download.

    Parameters
    ----------
    authors, messages
        K, and how many each has written: two thirds to train on, a sixth to calibrate with, a sixth held out.
    only, without
        whose messages the task has: these, or all but these; with neither, everybody's.
    first
        so many of each author's messages to train on; 0: all of them.
    context
        T: bytes of a row, of which a message that is longer leaves no end.
    seed
        of habits, subjects and messages.

    ``author`` is the column for splits (``by:author``), and the natural group. A model that predicts tokens goes with it.

    Raises
    ------
    RecipeError
        for an author that there is not, and where nobody or nothing is left.
    """

    authors: Annotated[int, Field(ge=2)] = 20
    messages: Annotated[int, Field(ge=6, le=NUM_SUBJECTS)] = 300
    only: tuple[int, ...] = ()
    without: tuple[int, ...] = ()
    first: Annotated[int, Field(ge=0)] = 0
    context: Count = 176
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        for name, chosen in (("only", self.only), ("without", self.without)):
            if not set(chosen) <= set(range(self.authors)):
                raise RecipeError(
                    f"data.{name} = {list(chosen)}: there are authors 0 to {self.authors - 1} (data.authors says how many)"
                )
        if not self.chosen:
            raise RecipeError("data.only and data.without leave no author: name fewer of them")

    @property
    def chosen(self) -> tuple[int, ...]:
        """Whose messages the task has."""
        return tuple(a for a in self.only or range(self.authors) if a not in self.without)

    def of(self, author: int, part: Part) -> list[Message]:
        """The messages of one author in one part, in order; to train on, those that `first` leaves."""
        found = [m for m in messages(self.authors, self.messages, self.seed)[author] if m.part == part]
        return found[: self.first] if self.first and part == "train" else found

    @property
    def encoder(self) -> Encoder:
        """Messages to rows of T + 1 bytes."""
        return encoder(self.context)

    def task(self) -> Messages:
        return Messages(self._examples("train"), self._examples("test"))

    def _examples(self, part: Part) -> Examples:
        found = [m for a in self.chosen for m in self.of(a, part)]
        inputs, targets = rows(found, self.encoder)
        author = torch.tensor([m.author for m in found])
        return Examples(inputs, targets, author, columns={"author": author})


def encoder(context: int) -> Encoder:
    """Rows of T + 1 bytes: the room of the longest subject is its own, the rest a message's."""
    longest = sum(max(map(len, of)) for of in SUBJECTS) + len(SUBJECTS) - 1
    if context < 2 * longest:
        raise RecipeError(f"data.context = {context} leaves no room for a message: set it to {2 * longest} or more")
    return Encoder(BYTES, context, context - longest)


def rows(found: Sequence[Message], encode: Encoder) -> tuple[Tensor, Tensor]:
    """Inputs and targets of messages: int64 ``[E, T]``, bytes that follow, −100 where none counts."""
    made = encode.rows([Example(m.asked, m.text, str(m.author)) for m in found])
    return made.tensors(np.arange(len(found)))


@dataclass(frozen=True, eq=False)
class Messages:
    """Which byte comes next? Cross entropy over the bytes of messages and their ends; a model gives ``[B, T, V]`` logits."""

    train: Examples
    held_out: Examples
    num_outputs: int = VOCABULARY

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per byte that counts, a scalar; 0 where none does."""
        logits: Tensor = module(inputs)
        if logits.shape != (*targets.shape, self.num_outputs):
            raise RecipeError(
                f"the model gives a tensor of shape {list(logits.shape)}: a model for this task gives {self.num_outputs} numbers for each of "
                f"{list(targets.shape)} bytes: use one that predicts tokens, for example model=nano"
            )
        fine = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        count = (targets != IGNORED).sum().clamp(min=1)
        return F.cross_entropy(fine, targets.flatten(), ignore_index=IGNORED, reduction="sum") / count

    def num_targets(self, targets: Tensor) -> int:
        """How many are not −100."""
        return int((targets != IGNORED).sum())

    def by_example(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats per byte, and ``accuracy``, of each message, float64 ``[B]``."""
        return by_row(module, inputs, targets)

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        """``perplexity`` per byte of the messages, of a module in eval mode."""
        inputs, targets = examples.take(torch.arange(len(examples)))
        counts = (targets != IGNORED).sum(1).double()
        nats = by_row(module, inputs, targets)["loss"] * counts
        return {"perplexity": math.exp(float(nats.sum() / counts.sum()))}
