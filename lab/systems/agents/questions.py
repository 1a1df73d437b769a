"""Questions that have answers: those of a text task of the lab, or of a file that one brings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from lab.data.tasks.examples import load_examples
from lab.ground.errors import RecipeError
from lab.ground.files import located
from lab.ground.seeds.permutations import permutations
from lab.models.files import Unreadable, check_ordinary, in_one_line
from lab.systems.agents.agent import Query

Reading = Literal["text", "number"]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Listed:
    """Questions with their answers (pairs), to learn from and held out (`lab.systems.agents.agent.Questions`); the sequence is a permutation that comes round.

    reading
        what an answer comes to: its ``text`` without spaces around it, or the last ``number`` in it.
    """

    train: Sequence[tuple[str, str]]
    held_out: Sequence[tuple[str, str]]
    reading: Reading = "text"
    seed: int = 0

    def queries(self, first: int, num: int, held_out: bool) -> list[Query]:
        """See `lab.systems.agents.agent.Questions`. Numbers go on where the sequence comes round: to the same question, but with other draws."""
        pairs = self.held_out if held_out else self.train
        found = []
        for k in range(first, first + num):
            turn, place = divmod(k, len(pairs))
            question, answer = pairs[_order(self.seed, turn, len(pairs))[place]]
            found.append(Query(2 * k + held_out, question, self.result(answer)))
        return found

    def result(self, text: str) -> str:
        if self.reading == "text":
            return text.strip()
        numbers = NUMBER.findall(text)
        return f"{float(numbers[-1].replace(',', '')):g}" if numbers else ""


@lru_cache(maxsize=64)
def _order(seed: int, turn: int, size: int) -> list[int]:
    order: list[int] = permutations(seed, "questions", np.array([turn]), size)[0].tolist()
    return order


def of_task(name: str, domain: str | None = None, reading: Reading = "text", seed: int = 0) -> Listed:
    """Prompts and completions of a text task of the lab (`lab.data.tasks.examples`), of one domain or of all.

    Raises RecipeError for a task or a domain that there is not.
    """
    examples = load_examples(name)
    train, held_out = (
        [(e.prompt, e.completion) for e in part if domain in (None, e.domain)]
        for part in (examples.train, examples.held_out)
    )
    if not train or not held_out:
        raise RecipeError(f"task {name!r} has no examples of the domain {domain!r}")
    return Listed(train, held_out, reading, seed)


def of_file(path: str | Path, reading: Reading = "number", seed: int = 0) -> Listed:
    """Questions of a file, one JSON object a line with ``question`` and ``answer``: the first four fifths to learn from, the rest held out.

    Raises RecipeError, one line, for what is no such file.
    """
    place, pairs = located(path), list[tuple[str, str]]()
    try:
        check_ordinary(place)
        lines = place.read_text(encoding="utf-8").splitlines()
    except (Unreadable, OSError, ValueError) as error:
        raise RecipeError(f"questions {path}: {in_one_line(error)}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            pairs.append((str(row["question"]), str(row["answer"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RecipeError(
                f'questions {path}: line {number} is no {{"question": …, "answer": …}}: one JSON object a line'
            ) from None
    cut = len(pairs) * 4 // 5
    if not 0 < cut < len(pairs):
        raise RecipeError(f"questions {path}: {len(pairs)} are too few, two are the least")
    return Listed(pairs[:cut], pairs[cut:], reading, seed)
