"""Messages between the sites of a run, through a place that all can reach. Nobody listens; who waits looks again and again.

::

    run                        which run it is, of how many sites, and its recipe
    <run>/from-2/all.17        what site 2 said to all, its 18th message to them
    <run>/from-2/2to0.4        … and to site 0 alone

All sites make the same calls in the same order, so who sends what under which name follows from the program. A message stays when it
has been read: a site that was lost begins again, says what it has said under the same names, and reads what it missed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from lab.errors import Damaged, LabError, RecipeError, plain
from lab.processes.messages import HEAD_BYTES, Refused, Seal
from lab.processes.places import Place

T = TypeVar("T")
NOTE_SECONDS = 20.0  # after which who waits says for whom
MOST_TRIES = 6  # of a place that fails, before that is an error


class Post:
    """What one site sends and receives.

    Parameters
    ----------
    seal
        of this run's messages.
    index, num
        this site, and how many there are.
    timeout_seconds
        of each wait for others.
    note
        where it is told that somebody is late, or that a file was refused.
    """

    def __init__(
        self,
        place: Place,
        seal: Seal,
        index: int,
        num: int,
        timeout_seconds: float,
        note: Callable[[str], None] = lambda line: print(f"lab: {plain(line)}", file=sys.stderr, flush=True),
    ):
        self.place, self.seal, self.index, self.num, self.timeout_seconds = place, seal, index, num, timeout_seconds
        self.note = note
        self.counts: dict[str, int] = {}  # messages so far, by channel
        self.moved_bytes = [0, 0]  # of content, that went up and came down
        self.refused: dict[str, tuple[str, int]] = {}  # why, and how often
        self.said_before = {*self._try(lambda: place.names(self._folder(index)))}  # by this site, before it was lost

    # names

    def channel(self, members: Sequence[int]) -> str:
        """The channel of a group of sites."""
        name = "all" if len(members) == self.num else "-".join(map(str, members))
        return name if len(name) <= 64 else hashlib.sha256(name.encode()).hexdigest()[:32]

    def next(self, channel: str) -> str:
        """The name of the next message of a channel; all who use it count it."""
        number = self.counts.get(channel, 0)
        self.counts[channel] = number + 1
        return f"{channel}.{number}"

    def _folder(self, sender: int) -> str:
        return f"{self.seal.run}/from-{sender}"

    # sending and receiving

    def put(self, name: str, data: bytes) -> bytes:
        """Send a message; returns what the others will read: what this site said under that name before, if it has."""
        file = f"{self._folder(self.index)}/{name}"
        if file in self.said_before:
            before = self._read(self.index, name, len(data))
            if before is not None:
                return before
        closed = self.seal.close(self.index, name, data)
        self._try(lambda: self.place.put(file, closed))
        self.moved_bytes[0] += len(data)
        return data

    def take(self, name: str, num_bytes: Mapping[int, int]) -> dict[int, bytes]:
        """The messages of this name from some sites, with the bytes that each must have.

        Raises
        ------
        RuntimeError
            if one has not come within the timeout: from whom.
        """
        found: dict[int, bytes] = {}
        began, wait, said = time.monotonic(), self.place.first_seconds, False
        while True:
            for sender in [p for p in num_bytes if p not in found]:
                data = self._read(sender, name, num_bytes[sender])
                if data is not None:
                    found[sender] = data
                    self.moved_bytes[1] += len(data)
            if len(found) == len(num_bytes):
                return {p: found[p] for p in num_bytes}
            waited = time.monotonic() - began
            if waited > self.timeout_seconds:
                raise RuntimeError(self._missing(name, [p for p in num_bytes if p not in found]))
            if waited > NOTE_SECONDS and not said:
                said = True
                self.note(
                    f"note: site {self.index} waits: {self._missing(name, [p for p in num_bytes if p not in found])}"
                )
            time.sleep(min(wait, max(0.0, began + self.timeout_seconds - time.monotonic()) + 0.001))
            wait = min(1.5 * wait, self.place.most_seconds)

    def _read(self, sender: int, name: str, num_bytes: int) -> bytes | None:
        file = f"{self._folder(sender)}/{name}"
        try:
            raw = self._try(lambda: self.place.get(file, num_bytes + HEAD_BYTES))
            return None if raw is None else self.seal.open(raw, sender, name, num_bytes)
        except (Refused, Damaged) as why:
            reason, times = str(why), self.refused.get(file, ("", 0))[1]
            self.refused[file] = reason, times + 1
            if not times:
                self.note(f"refused {file} in {self.place}: {reason}")
            return None

    def _missing(self, name: str, senders: Sequence[int]) -> str:
        who = f"site{'s' * (len(senders) > 1)} {', '.join(map(str, senders))} of {self.num}"
        refused = [self.refused[f] for f in (f"{self._folder(p)}/{name}" for p in senders) if f in self.refused]
        because = "".join(f"; refused {times} times: {why}" for why, times in refused[:1])
        return f"no {name} from {who}{because}"

    def _try(self, do: Callable[[], T]) -> T:
        """What ``do`` returns; a place that fails is tried again a few times. Raises RuntimeError when it goes on to fail."""
        wait = 0.05
        for more in reversed(range(MOST_TRIES)):
            try:
                return do()
            except LabError:
                raise
            except Exception as error:  # whatever a file system behind a URL raises
                if not more:
                    raise RuntimeError(f"{self.place} fails: {type(error).__name__}: {error}") from error
            time.sleep(wait)
            wait *= 2
        raise AssertionError


SECRET = "ISTHMUS_SECRET"  # the environment variable with what sites sign with


def secret() -> bytes | None:
    """The secret of this process's environment. Raises RecipeError for one that could be guessed."""
    said = os.environ.get(SECRET)
    if said is None:
        return None
    if len(said.encode()) < 16:
        raise RecipeError(f"{SECRET} must have 16 characters or more, since whoever guesses it can speak in the run")
    return said.encode()
