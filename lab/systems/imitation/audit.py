"""The audit as a record: every author, number of messages, way and seed a cell, and federations after them.

``audit(Audit(), runs="runs")`` and ``lab audit`` do the cells that are missing, so whoever is stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lab.events import Event, Warned
from lab.ground.seeds.surroundings import one_core
from lab.runs.records import Record, Work, fill
from lab.systems.imitation.bench import Bench
from lab.systems.imitation.federated import looked_at
from lab.systems.imitation.settings import Audit


def cells(settings: Audit) -> dict[str, Work]:
    """What there is to be done, by name, in order."""
    bench = Bench(settings)
    found: dict[str, Work] = {"base": partial(_base, bench)}
    for author in settings.targets:
        found[f"defences of author {author}"] = partial(_defend, bench, author)
    for seed in settings.seeds:
        for num in settings.counts:
            for author in settings.targets:
                for way in settings.ways if num else ("base",):
                    found[f"author {author}, {num} messages, {way}, seed {seed}"] = partial(
                        _imitate, bench, author, num, way, seed
                    )
    for federation in settings.federation.runs:
        found[f"federation: {federation.name}"] = partial(looked_at, bench, federation)
    return found


def _base(bench: Bench, record: Record) -> Iterator[Event]:
    spent = bench.read_all_others(record)
    yield Warned(
        0, f"a base has read {bench.s.authors - len(bench.s.targets)} authors in {spent:.0f} seconds of CPU time"
    )


def _defend(bench: Bench, author: int, record: Record) -> Iterator[Event]:
    yield bench.defend(record, author, len(record.cells))


def _imitate(bench: Bench, author: int, num: int, way: str, seed: int, record: Record) -> Iterator[Event]:
    yield bench.imitate(record, author, num, way, seed, len(record.cells))


def audit(
    settings: Audit | None = None,
    runs: str | Path = "runs",
    *,
    stored: str | Path = "",
    again: bool = False,
    tell: Callable[[Event], None] = lambda event: None,
) -> Record:
    """Do what is missing of an audit, and return its record; see `lab.runs.records.fill`."""
    settings = settings or Audit()
    with one_core():  # what is not training is many small products
        return fill(settings, cells(settings), runs, stored=stored, again=again, tell=tell)
