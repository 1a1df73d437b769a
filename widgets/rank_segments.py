"""Which ranks are used, and by whom? The rank segments of a federation's adapters, and what every prefix of them is worth.

Legend: M segments, T aggregations or looks, W clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.events import Covered, Ended, Event, Sent, Started, Truncated
from lab.models.lora import LoRA
from widgets.answers import percent, plural
from widgets.matrices import Matrix
from widgets.pictures import Bars, Lines, Note, Picture, Series, numbered
from widgets.view import View

FORMER = 4  # earlier looks behind the latest curve over the prefixes
MAX_RANKS = 12  # so many clients have their ranks written out
SMALLER_IS_BETTER = ("loss", "perplexity")

STEP = "local step"
ENERGY = "{name}, step {x}: {y} of the adapters' energy\nEnergy of a segment S: ‖B_S·A_S‖²; of the spectrum: Σσ² of its indices"
CONTRIBUTORS = "{row} at step {column}: handed in by {value} clients"
MASS = "{row} at step {column}: {value} of all samples that took part\n1 = everybody covers it"
SINCE = "{row} at step {column}: {value} local steps after it was handed in last"
PREFIX = "{name}, adapters cut to rank {x}: {y}"
OVER_TIME = "{name}, step {x}: {y}\nAURAC: area under the curve over the rank ÷ the range of ranks"
BIAS = "step {x}: {y}\n‖Σ p·B·A − B̄·Ā‖ ÷ ‖Σ p·B·A‖, zero-padded mean factors against the mean product; 0 = no error"
BYTES = "client {x}, {name}: {y}"


@dataclass(eq=False, repr=False)
class RankSegments(View):
    """Energy, cover and age of rank segments, the worth of prefixes, and the bytes of clients, from `Covered`, `Truncated`
    and `Sent`.

    ``metric`` shows the worth of prefixes by ``loss`` or by that score of the task alone; by default by each of them.
    """

    title = "Which ranks are used, and by whom?"
    leads = True
    reads = (Started, Sent, Covered, Truncated, Ended)

    metric: str = ""
    ranks_W: tuple[int, ...] = field(default=(), init=False)
    covered: list[Covered] = field(default_factory=list, init=False)
    looks: list[Truncated] = field(default_factory=list, init=False)
    up_bytes_W: dict[int, int] = field(default_factory=dict, init=False)
    down_bytes_W: dict[int, int] = field(default_factory=dict, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                num_workers = int(event.recipe["num_workers"])
                ranks = tuple(event.recipe.get("lora", {}).get("ranks", ()))
                self.ranks_W = LoRA(ranks=ranks).ranks_W(num_workers) if ranks else ()
                self.covered, self.looks = [], []
                self.up_bytes_W, self.down_bytes_W = {}, {}
            case Sent():
                bytes_W = self.down_bytes_W if event.op == "broadcast" else self.up_bytes_W
                for worker in event.workers:
                    bytes_W[worker] = bytes_W.get(worker, 0) + event.bytes_each
            case Covered():
                self.covered.append(event)
            case Truncated():
                self.looks.append(event)

    def answer(self) -> str:
        """Of the highest segment, which the fewest clients have."""
        if not self.covered and not self.looks:
            return "No adapters were aggregated yet."
        parts, steps = list[str](), list[int]()
        if self.looks:
            share = percent(self.looks[-1].energy_M[-1])
            parts.append(f"carry {share} of the energy (size squared of what ranks add to the model)")
            steps.append(self.looks[-1].step)
        if self.covered:
            num = len(self.covered[-1].contributors_M[-1])
            parts.append(f"are handed in by {num} of {plural(self._clients(), 'client')}")
            steps.append(self.covered[-1].step)
        if len(set(steps)) == 1:
            parts[-1] += f" at step {steps[0]:,}"
        else:
            parts = [f"{part} at step {step:,}" for part, step in zip(parts, steps, strict=True)]
        name = segment_names((self.looks or self.covered)[-1].bounds_M)[-1].replace("-", " to ").capitalize()
        if not name.startswith("Ranks"):
            parts = [part.replace("carry", "carries").replace("are handed", "is handed") for part in parts]
        return f"{name} {' and '.join(parts)}."

    def _clients(self) -> int:
        """How many there are, or, where that is not known, the most that have handed in a segment."""
        return len(self.ranks_W) or max((len(c) for x in self.covered for c in x.contributors_M), default=0)

    def pictures(self) -> list[Picture]:
        if not self.covered and not self.looks:
            words = "No adapters were aggregated yet: set lora.ranks, and a round ends every sync_every local steps."
            return [Note("Who covers which rank segment?", words)]
        out: list[Picture | None] = [
            self._now(),
            self._energy(),
            self._bias(),
            self._bytes(),
            *self._cover(),
            *(p for name in self._metrics() for p in (self._curve(name), self._over_time(name))),
        ]
        return numbered([picture for picture in out if picture is not None])

    # one picture each

    def _now(self) -> Bars:
        """What each segment carries by now, and who hands it in; without a look the second alone."""
        names = [
            name.capitalize().replace("-", " to ") for name in segment_names((self.looks or self.covered)[-1].bounds_M)
        ]
        num_M = [len(c) for c in self.covered[-1].contributors_M] if self.covered else []
        who = [f"{num} of {plural(self._clients(), 'client')}" for num in num_M]
        if not self.looks:
            return Bars("Who hands in which ranks?", "clients", names, [float(num) for num in num_M], who)
        energy_M = self.looks[-1].energy_M
        labels = [", ".join([percent(share), *who[m : m + 1]]) for m, share in enumerate(energy_M)]
        title = f"Which ranks carry the energy{', and who hands them in' if who else ''}?"
        return Bars(title, "share of the energy", names, energy_M, labels)

    def _energy(self) -> Lines | None:
        if not self.looks:
            return None
        steps, names = [x.step for x in self.looks], segment_names(self.looks[-1].bounds_M)
        own_TM, spectrum_TM = np.array([x.energy_M for x in self.looks]), np.array([x.spectrum_M for x in self.looks])
        lines = [Series(name, steps, own_TM[:, m], colour=m) for m, name in enumerate(names)]
        thin = [Series(f"{n}, spectrum", steps, spectrum_TM[:, m], True, m) for m, n in enumerate(names)]
        y = "share (thin: of the spectrum)"
        return Lines("Which segments hold the energy?", STEP, y, [*thin, *lines], hover=ENERGY, reach=(0.0, 1.0))

    def _bias(self) -> Lines | None:
        known = [(x.step, x.bias) for x in self.covered if x.bias is not None]
        if not known:
            return None
        bias = Series("bias of mean factors", [step for step, _ in known], [x for _, x in known])
        return Lines("How wrong is the mean of factors?", STEP, "relative error", [bias], hover=BIAS)

    def _bytes(self) -> Lines | None:
        clients = sorted({*self.up_bytes_W, *self.down_bytes_W})
        if not clients:
            return None
        ranks = [str(r) for r in self.ranks_W]
        x = "client"
        if ranks:
            shown = ", ".join(ranks) if len(ranks) <= MAX_RANKS else f"{ranks[0]} … {ranks[-1]}"
            x = f"client, of rank {shown}"
        both = (("handed in", self.up_bytes_W), ("fetched", self.down_bytes_W))
        lines = [Series(name, clients, [float(b.get(w, 0)) for w in clients]) for name, b in both]
        return Lines("What does each client send and fetch?", x, "payload, bytes", lines, hover=BYTES)

    def _cover(self) -> list[Matrix]:
        """Who handed a segment in, what part of the samples that is, and how long the segment had waited; by round."""
        if not self.covered:
            return []
        names, steps = segment_names(self.covered[-1].bounds_M), [x.step for x in self.covered]

        def matrix(title: str, unit: str, hover: str, of: Callable[[Covered], Sequence[float]], high: float) -> Matrix:
            values_MT = np.array([of(x) for x in self.covered], dtype=float).T
            return Matrix(title, STEP, names, steps, values_MT, unit, low=0, high=high, hover=hover)

        most = max(len(self.ranks_W), *(len(c) for x in self.covered for c in x.contributors_M), 1)
        longest = max(s for x in self.covered for s in x.since_M)
        return [
            matrix(
                "How many clients hand in a segment?",
                "clients",
                CONTRIBUTORS,
                lambda x: [len(c) for c in x.contributors_M],
                most,
            ),
            matrix("How much data stands behind a segment?", "of all samples", MASS, lambda x: x.mass_M, 1),
            matrix("How long had a segment waited?", "local steps", SINCE, lambda x: x.since_M, longest),
        ]

    def _curve(self, metric: str) -> Lines:
        latest = self.looks[-1]
        known = _values(latest, metric)
        every = max(1, -(-(len(self.looks) - 1) // FORMER))
        former = self.looks[-2::-every][::-1]
        lines = [Series(f"step {x.step}", x.bounds_M, _values(x, metric), faint=True, colour=0) for x in former]
        lines.append(Series(f"step {latest.step}", latest.bounds_M, known, colour=0))
        rank, value = best_prefix(latest.bounds_M, known, metric)
        floor = (value, f"best: rank {rank}") if rank else None
        x = "adapters cut to rank" + (" (thin: earlier steps)" if former else "")
        return Lines(f"What is every prefix worth, by {metric}?", x, metric, lines, True, floor=floor, hover=PREFIX)

    def _over_time(self, metric: str) -> Lines:
        steps = [x.step for x in self.looks]
        values_T = [_values(x, metric) for x in self.looks]
        best = [best_prefix(x.bounds_M, v, metric)[1] for x, v in zip(self.looks, values_T, strict=True)]
        lines = [
            Series("AURAC", steps, [x.aurac.get(metric, float("nan")) for x in self.looks]),
            Series("best prefix", steps, best),
            Series("smallest", steps, [v[0] for v in values_T]),
            Series("largest", steps, [v[-1] for v in values_T]),
        ]
        return Lines(f"Do all prefixes learn, by {metric}?", STEP, metric, lines, hover=OVER_TIME)

    def _metrics(self) -> list[str]:
        if not self.looks:
            return []
        there = ["loss", *self.looks[-1].scores_M[0]]
        if self.metric and self.metric not in there:
            raise ValueError(f"metric = {self.metric[:40]!r} is not measured in this run: use {', '.join(there)}")
        return [self.metric] if self.metric else there


def segment_names(bounds_M: Sequence[int]) -> list[str]:
    """Segments (r_{m−1}, r_m] in words: ``ranks 5-8``."""
    low_M = [1, *(high + 1 for high in bounds_M[:-1])]
    return [f"ranks {a}-{b}" if a < b else f"rank {a}" for a, b in zip(low_M, bounds_M, strict=True)]


def best_prefix(bounds_M: Sequence[int], values_M: Sequence[float], metric: str) -> tuple[int, float]:
    """The rank with the best value (the smaller of two equal ones) and that value; 0 and not-a-number where none is known."""
    known: Mapping[int, float] = {r: v for r, v in zip(bounds_M, values_M, strict=True) if np.isfinite(v)}
    if not known:
        return 0, float("nan")
    rank = min(known, key=known.__getitem__) if metric in SMALLER_IS_BETTER else max(known, key=known.__getitem__)
    return rank, known[rank]


def _values(look: Truncated, metric: str) -> list[float]:
    return look.loss_M if metric == "loss" else [scores.get(metric, float("nan")) for scores in look.scores_M]
