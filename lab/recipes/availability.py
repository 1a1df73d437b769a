"""Which clients can take part in a round: all of them, those who have night where they live, or those whom a file names.

A file is a table in CSV, one line for each time in which a client is up::

    client,first_round,last_round        client,from_hour,to_hour
    0,1,12                               0,22.5,30
    0,20,24                              1,4,12
    7,3,3                                1,28,36

Rounds count from 1, and both are included. Hours count from the beginning of the run, where round r begins at hour
(r − 1) · ``clients.round_hours``; ``to_hour`` is the first at which the client is away again. A client that the file does not name is never
up. After the last round (or hour) that it names the file begins again, so that one of a day serves for a week.

Legend: C clients that are asked about.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lab.data.files import expanded
from lab.ground.config import number_in
from lab.ground.errors import RecipeError, shown
from lab.ground.seeds import numpy_generator

DAY_NIGHT = "day_night"
ZONES = 24
FALLS_ASLEEP, SLEEPS = (22.0, 1.5), (8.0, 1.0)  # o'clock and hours: mean and spread over clients
HEADS = ("client,first_round,last_round", "client,from_hour,to_hour")


class Availability(Protocol):
    def up(self, clients: np.ndarray, number: int) -> np.ndarray:
        """Which of these clients could take part in a round (from 0), bool ``[C]``."""


class DayNight:
    """A device can take part while it is charged and idle: in the night of its owner, at about 22 to 6 o'clock, every day.

    That is when devices of people come to a federation (Bonawitz et al. 2019, arXiv 1902.01046, section 9: four times as many at night as
    by day, of people in one country). ``zones`` time zones lie evenly around the earth, and clients live in any of them; with one zone
    all have their night at the same time. When each goes to bed and gets up is its own, and the same every day.
    """

    def __init__(self, num_clients: int, zones: int, round_hours: float, seed: int):
        self.round_hours = round_hours
        rng = numpy_generator(seed, "day and night")
        zone = rng.integers(zones, size=num_clients)
        self.begins = rng.normal(*FALLS_ASLEEP, num_clients) - zone * (24 / zones)  # hours of the first zone's clock
        self.lasts = rng.normal(*SLEEPS, num_clients).clip(1, 23)

    def up(self, clients: np.ndarray, number: int) -> np.ndarray:
        asleep: np.ndarray = (number * self.round_hours - self.begins[clients]) % 24 < self.lasts[clients]
        return asleep


@dataclass(frozen=True)
class Times:
    """What a file says. Of every time, sorted by client and beginning: ``first``, and ``end``, the latest of the client's until then.

    Both are counted on from one client to the next, ``length`` for each, so that one search finds them.
    """

    first: np.ndarray
    end: np.ndarray
    length: float  # after which the file begins again
    round_hours: float  # 1 where it counts rounds

    def up(self, clients: np.ndarray, number: int) -> np.ndarray:
        at = clients * self.length + (number * self.round_hours) % self.length
        last = np.searchsorted(self.first, at, side="right") - 1  # that has begun
        found: np.ndarray = (last >= 0) & (self.end[last] > at)
        return found


def is_file(available: str) -> bool:
    """Whether this names a file."""
    return available.endswith(".csv")


def check_available(available: str) -> None:
    """Raises RecipeError for what is neither a pattern nor may be a file."""
    kind, colon, zones = available.partition(":")
    if kind == DAY_NIGHT and colon:
        count = number_in(zones)
        if count is None or not 1 <= count <= 1e6 or count != int(count):
            raise RecipeError(
                f"clients.available = {shown(available)}: write {DAY_NIGHT}, or {DAY_NIGHT}:<number of time zones>, as in {DAY_NIGHT}:1"
            )
    elif available and kind != DAY_NIGHT and not is_file(available):
        raise RecipeError(
            f"clients.available = {shown(available)} is not allowed: use {DAY_NIGHT}, {DAY_NIGHT}:<number of time zones>, the path of a "
            ".csv file, or nothing where all can take part"
        )


def availability(available: str, num_clients: int, round_hours: float, seed: int) -> Availability | None:
    """Who can take part, and when; None: all, always. Raises RecipeError for a file that cannot be read."""
    kind, _, zones = available.partition(":")
    if not available:
        return None
    if kind == DAY_NIGHT:
        return DayNight(num_clients, int(number_in(zones) or ZONES) if zones else ZONES, round_hours, seed)
    return _read(available, num_clients, round_hours)


def _read(available: str, num_clients: int, round_hours: float) -> Times:
    path, what = expanded(available, "clients.available"), f"clients.available = {shown(available, 200)}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            head = "".join(file.readline().split())
            if head not in HEADS:
                raise RecipeError(f"{what} begins with {shown(head)}: its first line is {HEADS[0]} or {HEADS[1]}")
            lines = file.read().splitlines()
        rows = np.loadtxt(lines, delimiter=",", ndmin=2) if any(map(str.strip, lines)) else np.empty((0, 3))
    except OSError as error:
        raise RecipeError(f"{what} cannot be read: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise RecipeError(f"{what}: {' '.join(str(error).split())} (below the first line)") from None
    if rows.size == 0:
        raise RecipeError(f"{what} names no client: give one line for each time in which one is up")
    return _times(rows, head == HEADS[0], num_clients, round_hours, what)


def _times(rows: np.ndarray, by_round: bool, num_clients: int, round_hours: float, what: str) -> Times:
    if rows.shape[1] != 3:
        raise RecipeError(
            f"{what} has lines with {rows.shape[1]} numbers: each has three, {HEADS[0 if by_round else 1]}"
        )
    client, first, end = rows.T
    wrong = ~((client >= 0) & (client < num_clients) & (client == np.floor(client)))
    if wrong.any():
        raise RecipeError(
            f"{what} names client {client[wrong][0]:g} in line {2 + int(wrong.argmax())}, but the clients are 0 … {num_clients - 1}"
        )
    if by_round:
        first, end, round_hours = first - 1, end.copy(), 1.0
    wrong = ~((first >= 0) & (end > first) & np.isfinite(end))
    if wrong.any():
        raise RecipeError(
            f"{what}, line {2 + int(wrong.argmax())}: {'rounds count from 1, and the last' if by_round else 'hours count from 0, and the second'} "
            "is not before the first"
        )
    order = np.lexsort((first, client))
    length = float(end.max())
    before = client[order] * length
    return Times(before + first[order], np.maximum.accumulate(before + end[order]), length, round_hours)
