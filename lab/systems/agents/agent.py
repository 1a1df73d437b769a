"""What agents are to whoever lets them answer together: questions, calls, answers, and the one place where calls and tokens are counted.

A call asks one agent one question, with the answers of others that it hears first. Agents are asked in batches (all drafts of a batch of
questions at once), so that a model can answer many at a time.

Legend: Q questions of a batch, N agents, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Query:
    """A question. ``number`` tells it from all others, and its draws depend on it; ``target``: what a right answer comes to."""

    number: int
    text: str
    target: str


@dataclass(frozen=True)
class Call:
    """One agent (numbered from 0) is asked one question, with what it ``heard``: answers of others, that of the highest rank first."""

    query: Query
    agent: int
    heard: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came back, and the tokens that it took: read by the agent (question and what it heard), and written."""

    text: str
    tokens_in: int
    tokens_out: int


class Agents(Protocol):
    """Some agents, numbered from 0, who answer by themselves or after they have heard others."""

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer for each call, in their order. A call's answer depends on that call alone."""


class Agent(Protocol):
    """One agent: what `OneByOne` makes `Agents` of."""

    def answer(self, query: str, heard: Sequence[str]) -> Answer: ...


@dataclass(frozen=True)
class OneByOne:
    """Agents that are asked one after another."""

    agents: Sequence[Agent]

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """See `Agents`."""
        return [self.agents[call.agent].answer(call.query.text, call.heard) for call in calls]


class Questions(Protocol):
    """Questions to learn from, and others that nobody learns from."""

    def queries(self, first: int, num: int, held_out: bool) -> list[Query]:
        """``num`` questions from place ``first`` (from 0) on of a sequence that has no end, and may come round."""

    def result(self, text: str) -> str:
        """What an answer comes to: the answer is right where that is the question's target."""


class Encoder(Protocol):
    """Texts to vectors; frozen. What it computes is not in the ledger, which counts calls of agents."""

    @property
    def width(self) -> int:
        """E."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Float32 ``[texts, E]``. The same text is the same vector, whatever stands beside it."""


@dataclass(frozen=True)
class Setting:
    """Who answers what, and how answers are compared."""

    questions: Questions
    agents: Agents
    encoder: Encoder

    def right(self, query: Query, text: str) -> bool:
        return self.questions.result(text) == query.target


@dataclass
class Ledger:
    """The one place where agents are asked. It counts calls, and the tokens that answers say they took."""

    agents: Agents
    calls: int = field(default=0, init=False)
    tokens_in: int = field(default=0, init=False)
    tokens_out: int = field(default=0, init=False)

    def answer(self, calls: Sequence[Call]) -> list[str]:
        """The texts of the answers; nobody is asked where there is no call."""
        answers = self.agents.answer(calls) if calls else []
        self.calls += len(calls)
        self.tokens_in += sum(a.tokens_in for a in answers)
        self.tokens_out += sum(a.tokens_out for a in answers)
        return [a.text for a in answers]
