"""Data sets of the Hugging Face hub, as tasks: for those who are online."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from lab.data import hub
from lab.data.corpora import HELD_OUT, fraction


@dataclass(frozen=True)
class HubDataset:
    """One data set: its name on the hub, the columns it must have, and how a row becomes prompt, completion and domain.

    Without a ``validation`` split 5 % of the rows are held out, by a hash of the prompt.
    """

    about: str
    path: str
    columns: tuple[str, ...]
    read: Callable[[dict[str, Any]], tuple[str, str, str]]
    validation: str = ""
    has_labels: bool = False

    def identity(self) -> list[Any]:
        """What the rows are known by without reading them."""
        return [self.path, self.columns, self.validation]

    def rows(self) -> Iterator[tuple[str, str, str, bool]]:
        """Prompt, completion, domain, and whether it is held out. A label is the letter of its domain."""
        found = [(*row, False) for row in self._split("train")]
        if self.validation:
            found += [(*row, True) for row in self._split(self.validation)]
        else:
            found = [(p, c, d, fraction("validation", p) < HELD_OUT) for p, c, d, _ in found]
            if found and not any(row[3] for row in found):
                found[-1] = (*found[-1][:3], True)
        if self.has_labels:
            letters = dict(zip(sorted({domain for _, _, domain, _ in found}), ascii_uppercase, strict=False))
            found = [(prompt, letters[domain], domain, held) for prompt, _, domain, held in found]
        yield from found

    def _split(self, split: str) -> Iterator[tuple[str, str, str]]:
        what = f"cannot read split {split!r} of {self.path!r} from the hub"
        with hub.reading(what, "task:packages and task:docstrings need none"):
            rows, _ = hub.load(self.path, hub.Hub(), split, self.columns)
            for row in rows:
                prompt, completion, domain = self.read(row)
                if prompt and (completion or self.has_labels):
                    yield prompt, completion, domain


def _joined(*parts: str | None) -> str:
    return "\n\n".join(part.strip() for part in parts if part and part.strip())


SOURCES = {
    "dolly": HubDataset(
        "instructions and answers written by people, in eight categories (hub)",
        "databricks/databricks-dolly-15k",
        ("instruction", "context", "response", "category"),
        lambda row: (_joined(row["instruction"], row["context"]), _joined(row["response"]), row["category"]),
    ),
    "alpaca": HubDataset(
        "instructions and answers written by a model, without categories (hub)",
        "tatsu-lab/alpaca",
        ("instruction", "input", "output"),
        lambda row: (_joined(row["instruction"], row["input"]), _joined(row["output"]), "all"),
    ),
    "20newsgroups": HubDataset(
        "which of twenty newsgroups a post is from (hub)",
        "SetFit/20_newsgroups",
        ("text", "label_text"),
        lambda row: (_joined(row["text"]), "", row["label_text"]),
        validation="test",
        has_labels=True,
    ),
}
