"""Rates of links over time, from a file: a table in CSV, one line for each time at which a worker's link changes::

    time,worker,rate         time,worker,up,down
    0,0,20Mbit               0,0,20Mbit,100Mbit
    0,1,20Mbit               60.5,0,2e6,1e7
    90,1,0                   300,0,20Mbit,100Mbit
    95,1,20Mbit

``time`` is in seconds since the run began, ``rate`` in bits per second (a number, or as in ``20Mbit``), of both directions. A rate holds until
the worker's next line, the last one for good; 0 is a link that is cut off for a while. Before its first line, and without any, a
worker's link is as the network says. Lines of different workers may stand in any order.
"""

from __future__ import annotations

import os
import re

from lab.costs.links import UNITS, Rate, check_trace
from lab.data.files import expanded
from lab.ground.config import number_in
from lab.ground.errors import RecipeError, shown

HEADS = (["time", "worker", "rate"], ["time", "worker", "up", "down"])


def rate_in(text: str) -> float | None:
    """Bits per second: ``20Mbit`` (a second), or a plain number; None for anything else."""
    found = re.fullmatch(r"([0-9.eE+]+) *(?:([A-Za-z]+)(?:/s)?)?", text.strip())
    number = number_in(found[1].lower().replace("e+", "e")) if found else None
    if found is None or number is None:
        return None
    factor = {known.lower(): x for known, x in UNITS.items()}.get((found[2] or "bit").lower())
    return None if factor is None else number * factor


def read_trace(path: str) -> tuple[Rate, ...]:
    """The rates in a file, as `lab.costs.network.Network` takes them.

    Raises
    ------
    RecipeError
        for a file that cannot be read or says what cannot be: one line, with the number of the line in the file.
    """
    what = f"trace {shown(path, 200)}"
    try:
        with open(expanded(path, "trace"), encoding="utf-8-sig") as file:
            lines = [(i, line) for i, line in enumerate(file.read().splitlines(), 1) if line.strip()]
    except OSError as error:
        raise RecipeError(f"{what} cannot be read: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{what} cannot be read: it is no text in UTF-8") from None
    heads = " or ".join(map(",".join, HEADS))
    head = [word.strip() for word in lines[0][1].split(",")] if lines else []
    if head not in HEADS:
        raise RecipeError(
            f"{what}, line {lines[0][0] if lines else 1}: begins with {shown(','.join(head))}: write {heads}"
        )
    if len(lines) == 1:
        raise RecipeError(f"{what} names no rate: give one line for each time at which a worker's link changes")
    trace = tuple(_entry(line.split(","), len(head), f"{what}, line {i}") for i, line in lines[1:])
    check_trace(trace, what, [i for i, _ in lines[1:]])
    return trace


def _entry(words: list[str], num: int, here: str) -> Rate:
    if len(words) != num:
        raise RecipeError(f"{here}: has {len(words)} values: each line has {num}, {','.join(HEADS[num - 3])}")
    words = [word.strip() for word in words]
    seconds = number_in(words[0])
    if seconds is None:
        raise RecipeError(f"{here}: time {shown(words[0])} is no number of seconds, 0 or more")
    if not re.fullmatch("[0-9]{1,9}", words[1], re.ASCII):
        raise RecipeError(f"{here}: worker {shown(words[1])} is no number of a worker: they count from 0")
    rates = [rate_in(word) for word in words[2:]]
    for word, rate in zip(words[2:], rates, strict=True):
        if rate is None:
            raise RecipeError(f"{here}: rate {shown(word)} is none: write bits per second, as 2e6 or 2Mbit")
    up, down = float(rates[0] or 0), float(rates[-1] or 0)
    return seconds, int(words[1]), up, down
