"""What a claim rests on: how large the models were, how many runs, how much they saw and sent, how long they took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.costs.network import duration, human

if TYPE_CHECKING:
    from lab.runs.columns import Columns


@dataclass(frozen=True)
class Evidence:
    """The runs behind a claim, all of them together where nothing else is said; 0 or empty where it is not known.

    size
        of the model: parameters, ``116k``, or what else it was: ``toy``, ``1.7B, dry run``.
    seen, counted
        tokens (or examples) of one run, of all its workers together; the longest run.
    """

    size: str = ""
    num_runs: int = 0
    num_seeds: int = 0
    steps: int = 0  # local steps of the longest
    seen: int = 0
    counted: str = "tokens"
    payload_bytes: int = 0
    seconds: float = 0.0  # of training, in this process

    @classmethod
    def of(cls, runs: Iterable[Columns], size: str = "") -> Evidence:
        """Each run once, whatever the number of claims that it serves."""
        different = list({id(run): run for run in runs if run.started is not None}.values())
        started = [run.started for run in different if run.started is not None]
        sizes = sorted({s.num_params for s in started})
        return cls(
            size or (" and ".join(map(parameters, sizes)) + " parameters" if sizes else ""),
            len(different),
            len({s.recipe["seed"] for s in started}),
            max((run.step[-1] for run in different if run.step), default=0),
            max((int(run.curves.tokens.values[-1]) for run in different if run.step), default=0),
            started[0].counted if started else "tokens",
            sum(run.ledger.total_bytes() for run in different),
            sum(sum(run.seconds) for run in different),
        )

    @property
    def words(self) -> str:
        """``9 runs, 3 seeds, 192 steps, 786k tokens each, 1.2 GB sent, 95 s``."""
        parts = [
            (self.num_runs, f"{self.num_runs} run{'s' * (self.num_runs != 1)}"),
            (self.num_seeds, f"{self.num_seeds} seed{'s' * (self.num_seeds != 1)}"),
            (self.steps, f"{self.steps:,} steps"),
            (self.seen, f"{parameters(self.seen)} {self.counted} each"),
            (self.payload_bytes, f"{human(self.payload_bytes)} sent"),
            (self.seconds, duration(self.seconds)),
        ]
        return ", ".join(words for number, words in parts if number)


NONE = Evidence()


def parameters(number: int) -> str:
    """A count in three digits: ``116k``, ``1.72B``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return str(number)
