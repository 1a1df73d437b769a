"""Agents without a model: how often they are right, whom they believe, and what their answers look like, in a few numbers.

Every draw depends on the seed, the question and the agent alone. So plans are compared on the same drafts and the same coins, an agent's
answer does not depend on how many others there are, and nothing has to be kept to go on later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lab.ground.config import Count, Fraction, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from lab.systems.agents.agent import Answer, Call, Query, Setting

RIGHT = "0"  # what a right answer comes to; wrong ones: 1, 2 …
MOST_AGENTS = 32


@config
class Synthetic:
    """A small world of questions, agents and embeddings. The defaults are those under which the notes on Nexa measured it.

    easy, hard
        the probability that an agent is right by itself is drawn between these, for each question.
    wrong
        how many wrong answers a question has; an agent that is wrong has one of them, each as likely.
    width, noise
        right answers to a question share one random unit vector, each wrong one has another; noise is added in every coordinate.
    rescue
        probability that an agent which hears at least one right answer is right afterwards. One that was right stays so.
    sway
        probability that an agent which hears wrong answers alone takes the most frequent of them (of equally frequent: from the highest rank).
    query_tokens, answer_tokens
        what a call costs: it reads the question and each answer it hears, and writes one ([inferred]: no text is there to be counted).
    """

    seed: int = 0
    hard: Fraction = 0.05
    easy: Fraction = 0.75
    wrong: Count = 6
    width: Count = 64
    noise: Annotated[float, Field(ge=0)] = 0.06
    rescue: Fraction = 0.65
    sway: Fraction = 0.15
    query_tokens: Count = 60
    answer_tokens: Count = 120

    def __post_init__(self) -> None:
        if self.hard > self.easy:
            raise RecipeError(f"hard = {self.hard} is above easy = {self.easy}: it is the lower of the two")

    def setting(self) -> Setting:
        world = World(self)
        return Setting(world, world, world)


class _Question(NamedTuple):
    """What is drawn for a question, with a row for each of `MOST_AGENTS` agents."""

    first: list[str]  # what each comes to by itself
    coins: np.ndarray  # [N, 2]: of rescue and sway
    vectors: np.ndarray  # [1 + wrong, width]
    noise: np.ndarray  # [N, 2, width]: of drafts, and of what comes after


@dataclass(frozen=True)
class World:
    """`lab.systems.agents.agent.Questions`, `Agents` and `Encoder` in one. A text is ``result #question.agent.version``, so that each is another one."""

    of: Synthetic

    @property
    def width(self) -> int:
        """See `lab.systems.agents.agent.Encoder`."""
        return self.of.width

    def queries(self, first: int, num: int, held_out: bool) -> list[Query]:
        """See `lab.systems.agents.agent.Questions`: even numbers to learn from, odd ones held out."""
        numbers = range(2 * first + held_out, 2 * (first + num) + held_out, 2)
        return [Query(number, f"question {number}", RIGHT) for number in numbers]

    def result(self, text: str) -> str:
        return text.split(" ", 1)[0]

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """See `lab.systems.agents.agent.Agents`."""
        return [self._answer(call) for call in calls]

    def _answer(self, call: Call) -> Answer:
        number, agent, of = call.query.number, call.agent, self.of
        if agent >= MOST_AGENTS:
            raise RecipeError(f"agent {agent} is one too many: a synthetic world has at most {MOST_AGENTS}")
        drawn = _draw(of, number)
        result = drawn.first[agent]
        if call.heard:
            heard = Counter(map(self.result, call.heard))
            rescue, sway = drawn.coins[agent]
            if RIGHT in heard:
                result = RIGHT if rescue < of.rescue else result
            elif sway < of.sway:
                result = heard.most_common(1)[0][0]
        tokens_in = of.query_tokens + len(call.heard) * of.answer_tokens
        return Answer(f"{result} #{number}.{agent}.{int(bool(call.heard))}", tokens_in, of.answer_tokens)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `lab.systems.agents.agent.Encoder`."""
        return torch.from_numpy(np.stack([self._vector(text) for text in texts]).astype(np.float32))

    def _vector(self, text: str) -> np.ndarray:
        result, of = text.split(" #")
        number, agent, version = map(int, of.split("."))
        drawn = _draw(self.of, number)
        vector: np.ndarray = drawn.vectors[int(result)] + drawn.noise[agent, version]
        return vector


@lru_cache(maxsize=512)
def _draw(of: Synthetic, number: int) -> _Question:
    """Rows are drawn agent by agent, so that an agent's do not depend on `MOST_AGENTS`."""
    coins = numpy_generator(of.seed, "answers", number)
    able = of.hard + (of.easy - of.hard) * coins.random()
    rows = coins.random((MOST_AGENTS, 4))
    wrong = 1 + (rows[:, 1] * of.wrong).astype(int)
    first = [RIGHT if right else str(x) for right, x in zip(rows[:, 0] < able, wrong, strict=True)]
    looks = numpy_generator(of.seed, "embeddings", number)
    vectors = looks.standard_normal((1 + of.wrong, of.width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = (of.noise * looks.standard_normal((MOST_AGENTS, 2, of.width))).astype(np.float32)
    return _Question(first, rows[:, 2:], vectors, noise)
