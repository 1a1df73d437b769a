"""Messages between the sites of a run, through a place that all can reach. Nobody listens; who waits looks again and again.

::

    run                        which run it is, of how many sites, and its recipe
    <run>/from-2/all.17        what site 2 said to all, its 18th message to them
    <run>/from-2/2to0.4        … and to site 0 alone
    <run>/from-2/step-000008   what site 2 needs to begin again after step 8
    <run>/from-2/read          how far it would not have to read again, and what it has removed

All sites make the same calls in the same order, so who sends what under which name follows from the program. A site that was lost
begins again: it says what it has said under the same names, and reads what it missed. So a message stays until all who read it have
kept themselves (`Post.keep`) after that; whoever sent it removes it then. Where nobody keeps itself, it stays until all have read it.

What is long is sent in several messages, one after the other (`Post.begin_to_put`): others read the first while the next go up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from lab.ground.errors import Damaged, LabError, RecipeError
from lab.ground.files import write_atomically
from lab.processes.deadline import Deadline, Missed
from lab.processes.invitation import Invitation, tell
from lab.processes.messages import HEAD_BYTES, Refused, Seal, Unfit
from lab.processes.places import Place

T = TypeVar("T")
MOST_TRIES = 6  # of a place that fails, before that is an error
ABOUT_SECONDS = (1.0, 20.0)  # after so long, and then every so long, who waits looks whether that makes sense
LONGER = 1.2  # each wait between two looks is so much longer than the one before: what comes late is seen at most so much later
EVERY = 16  # messages after which a site says how far it has read, where none keeps itself
READ, READ_BYTES = "read", 1 << 22
KEPT = "step-"
SEED_BYTES = 32
WORD = re.compile(r"(here|said|verdict|back|welcome-[0-9]+)\.[0-9]+")  # of `lab.processes.deadline`
MEETINGS = "verdict"  # under which their number is counted


class SiteRefused(LabError):
    """A site has sent what cannot be used."""


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
    deadline_seconds
        after which the run goes on without a site; None: all wait for it.
    """

    def __init__(
        self,
        place: Place,
        seal: Seal,
        index: int,
        num: int,
        timeout_seconds: float,
        note: Callable[[str], None] = tell,
        deadline_seconds: float | None = None,
    ):
        self.place, self.seal, self.index, self.num, self.timeout_seconds = place, seal, index, num, timeout_seconds
        self.note = note
        self.clock = time.monotonic
        self.latest = ""  # the last message that was sent or received
        self.unread: set[str] = set()  # messages that are counted, and will be read when somebody needs the sum
        self.keeps = False  # whether sites keep themselves, and can come back
        self.counts: dict[str, int] = {}  # messages so far, by channel
        self.mark: dict[str, int] | None = (
            None  # those before are of the beginning, which a site that is back goes through again
        )
        self.deadline = None if deadline_seconds is None else Deadline(self, deadline_seconds)
        self.removed: dict[str, int] = {}  # up to which number this site has removed what it said, by channel
        self.members: dict[str, Sequence[int]] = {}  # of channels whose names do not tell
        self.moved_bytes = [0, 0]  # of content, that went up and came down
        self.on_the_way: list[Future[None]] = []  # messages that a thread puts, in order
        self.mover = ThreadPoolExecutor(1, "post") if place.both_ways else None
        self.told = 0  # messages there had been when this site last said how far it has read
        self.refused: dict[str, tuple[str, int]] = {}  # why, and how often
        there = self._try(lambda: place.names(self._folder(index)))
        self.there = {name.rpartition("/")[2] for name in there}  # what this site has put, also before it was lost
        self.said_before: set[str] = set()
        self._remove([name for name in self.there if name.startswith(".")])  # left by a write that was cut off
        self.said_before = {*self.there}

    # names

    def channel(self, members: Sequence[int]) -> str:
        """The channel of a group of sites."""
        name = "all" if len(members) == self.num else "-".join(map(str, members))
        if len(name) > 64:
            name = hashlib.sha256(name.encode()).hexdigest()[:32]
            self.members[name] = members
        return name

    def _who(self, channel: str) -> Sequence[int]:
        """The sites of a channel; nobody where this site does not know."""
        channel = channel.partition("@")[0]
        if channel == "all":
            return range(self.num)
        found = re.fullmatch(r"[0-9]+(to[0-9]+|(-[0-9]+)+)", channel)
        return [int(p) for p in re.split("to|-", channel)] if found else self.members.get(channel, ())

    def next(self, channel: str) -> str:
        """The name of the next message of a channel; all who use it count it."""
        if self.deadline is not None:
            self.deadline.enter()
        channel += f"@{self.epoch}" * (self.epoch > 0)
        number = self.counts.get(channel, 0)
        self.counts[channel] = number + 1
        self.latest = f"{channel}.{number}"
        return self.latest

    @property
    def epoch(self) -> int:
        """A part of the names of messages: another one when what was said may not count."""
        return 0 if self.deadline is None else self.deadline.epoch

    def forget(self) -> None:
        """Begin a new epoch."""
        self.unread.clear()
        self.counts = {
            channel: n for channel, n in self.counts.items() if "@" not in channel
        }  # else they would pile up

    def _folder(self, sender: int) -> str:
        return f"{self.seal.run}/from-{sender}"

    # sending and receiving

    def put(self, name: str, data: bytes, of: str | None = None) -> bytes:
        """Send a message (``of``: with which numbers); returns what the others will read: what this site said under that name before."""
        said = self.begin_to_put(name, data, of)
        self.put_all()
        return said

    def begin_to_put(self, name: str, data: bytes, of: str | None = None) -> bytes:
        """As `put`, but it may still be on the way (`put_all`) when this returns."""
        if name in self.said_before:
            before = self._read(self.index, name, len(data))
            if before is not None:
                if before != data and self.keeps and self.mark is None:
                    raise RecipeError(
                        f"site {self.index} would not begin as it did before it was lost ({name}): it needs the same recipe, files and "
                        "versions, or all begin again"
                    )
                if before != data:
                    self.note(
                        f"site {self.index} would now say something else than before it was lost ({name}): that counts"
                    )
                return before
        self.moved_bytes[0] += len(data)
        if self.mover is None:
            self._put(name, data, of=of)
        else:
            self.on_the_way.append(self.mover.submit(self._put, name, data, of=of))
        return data

    def put_all(self) -> None:
        """Wait until all that this site has said is there. Raises RuntimeError where the place fails."""
        while self.on_the_way:
            self.on_the_way.pop(0).result()

    def _put(self, name: str, data: bytes, lasting: bool = False, of: str | None = None) -> None:
        closed = self.seal.close(self.index, name, data, of)
        self._try(lambda: self.place.put(f"{self._folder(self.index)}/{name}", closed, lasting))
        self.there.add(name)

    def take(
        self, name: str, num_bytes: Mapping[int, int | None], of: str | None = None, began: float | None = None
    ) -> dict[int, bytes]:
        """The messages of this name from some sites, with the bytes that each must have (None: any), and the numbers.

        ``began``: since when this site waits for what they are a part of.

        Raises
        ------
        SiteRefused, Missed
            if a site itself has sent something else (`refuse`).
        RuntimeError
            if one has not come within the timeout: from whom; or if it cannot come any more.
        """
        found: dict[int, bytes] = {}
        for waited in self.looks(name, lambda: [p for p in num_bytes if p not in found], began):
            for sender in [p for p in num_bytes if p not in found]:
                data = self._read(sender, name, num_bytes[sender], of, sent=True)
                if data is not None:
                    found[sender] = data
                    self.moved_bytes[1] += len(data)
            if self.deadline is not None and len(found) < len(num_bytes):
                self.deadline.look([p for p in num_bytes if p not in found], waited)
        if not self.keeps and sum(self.counts.values()) >= self.told + EVERY:
            self._tell()
        return {p: found[p] for p in num_bytes}

    def looks(self, name: str, missing: Callable[[], Sequence[int]], began: float | None = None) -> Iterator[float]:
        """Yield, with the seconds until then (from ``began`` on), for each look, less and less often, until nothing is missing. Raises RuntimeError when that makes no sense any more."""
        now, wait, said = self.clock(), self.place.first_seconds, False
        began = now if began is None else began
        waited = now - began
        about = waited + ABOUT_SECONDS[0]
        while True:
            yield waited
            if not missing():
                return
            waited = self.clock() - began
            if waited > self.timeout_seconds:
                raise RuntimeError(self._words(name, missing()))
            if waited > about:
                about += ABOUT_SECONDS[1]
                self._check_that_it_can_come(name, missing())
                if waited > ABOUT_SECONDS[1] and not said:
                    said = True
                    self.note(f"note: site {self.index} waits: {self._words(name, missing())}")
            time.sleep(min(wait, max(0.0, began + self.timeout_seconds - self.clock()) + 0.001))
            wait = min(LONGER * wait, self.place.most_seconds)

    def say(self, word: str, data: bytes) -> None:
        """A word on who is there. What this site has said of it before holds."""
        if word not in self.said_before:
            self._put(word, data)

    def heard(self, sender: int, word: str) -> bytes | None:
        """What a site has said of it, if it has."""
        return self._read(sender, word, None) if sender != self.index or word in self.there else None

    def refuse(self, sender: int, name: str, reason: str) -> None:
        """Count what a site has sent as refused, and do without it: it is down, or, where all wait for it, the run ends.

        Raises
        ------
        Missed
            with a deadline: the meeting does not count.
        SiteRefused
            without one.
        """
        self._refused(f"{self._folder(sender)}/{name}", reason)
        if self.deadline is not None and self.deadline.on:
            raise Missed(refused={sender: f"was refused ({name}: {reason})"})
        raise SiteRefused(
            f"site {sender} of {self.num} has sent what cannot be used ({name}: {reason}): look at that site (its versions, its learning rate); "
            "with --deadline the others would go on without it"
        )

    def _refused(self, file: str, reason: str) -> None:
        times = self.refused.get(file, ("", 0))[1]
        self.refused[file] = reason, times + 1
        if not times:
            self.note(f"refused {file} in {self.place}: {reason}")

    def _read(
        self, sender: int, name: str, num_bytes: int | None, of: str | None = None, sent: bool = False
    ) -> bytes | None:
        """A message, if it is there; ``sent``: as one that this sender cannot have meant otherwise, if it is signed."""
        file = f"{self._folder(sender)}/{name}"
        most = (
            READ_BYTES
            if name == READ or WORD.fullmatch(name)
            else None
            if num_bytes is None
            else num_bytes + HEAD_BYTES
        )
        try:
            raw = self._try(lambda: self.place.get(file, most))
            return None if raw is None else self.seal.open(raw, sender, name, num_bytes, of)
        except (Refused, Damaged) as why:
            if isinstance(why, Unfit) and of is not None and sent:
                self.refuse(sender, name, str(why))
            self._refused(file, str(why))
            return None

    def _words(self, name: str, senders: Sequence[int]) -> str:
        who = f"site{'s' * (len(senders) > 1)} {', '.join(map(str, senders))} of {self.num}"
        refused = [self.refused[f] for f in (f"{self._folder(p)}/{name}" for p in senders) if f in self.refused]
        because = "".join(f"; refused {times} times: {why}" for why, times in refused[:1])
        return f"no {name} from {who}{because}"

    def _check_that_it_can_come(self, name: str, senders: Sequence[int]) -> None:
        there = Invitation.found(self.place, self.seal.secret)
        if there is not None and there.run != self.seal.run:
            raise RuntimeError("the run in this mailbox has begun anew: join it again")
        if there is not None and there.ended:
            raise RuntimeError("the run has ended")
        channel, _, number = name.rpartition(".")
        for sender in senders if channel and not WORD.fullmatch(name) else ():
            if self._said(sender).get("removed", {}).get(channel, 0) > int(number):
                raise RuntimeError(
                    f"site {sender} has removed {name}, which all others have read: site {self.index} has lost what it kept, so all have "
                    "to begin again"
                )

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

    # coming back

    def private_seed(self) -> bytes:
        """32 bytes that only this site knows, the same when it is back on this machine; they leave it with the end of the run."""
        path = self._seed_path()
        try:
            found = path.read_bytes()
        except OSError:
            found = b""
        if len(found) == SEED_BYTES:
            return found
        seed = secrets.token_bytes(SEED_BYTES)
        with contextlib.suppress(OSError):  # nothing can be written here: it would come back with another one
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, seed, mode=0o600)
        return seed

    def _seed_path(self) -> Path:
        from lab.data.cache import cache_folder

        return cache_folder("keys") / f"{self.seal.run}-{self.index}"

    def begun(self) -> None:
        """The beginning is over: what was said until now stays."""
        self.mark = dict(self.counts)

    def keep(self, step: int, data: bytes) -> None:
        """Keep what this site needs to go on after ``step``, and from here in its messages. What nobody needs any more is removed."""
        self.put_all()
        said = {"counts": self.counts, "mark": self.mark, "removed": self.removed}
        said |= {} if self.deadline is None else {"deadline": self.deadline.json()}
        line = json.dumps(said).encode() + b"\n"
        self._put(f"{KEPT}{step:06d}", line + data, lasting=True)

    def kept_for_good(self, step: int) -> None:
        """What was kept of this step is all that this site needs: it would not read again what it has read until now."""
        self._tell(step)
        first = self._said(0).get("step", -1)  # that site reads what the others keep
        for name in self._kept()[:-2]:
            if self.index == 0 or int(name.removeprefix(KEPT)) < first:
                self._remove([name])

    def kept_last(self, sender: int, step: int, seconds: float) -> bytes | None:
        """As `kept_by`; of a site that is down, or takes longer than that, what it has kept last; None where it has kept nothing."""
        began, name = self.clock(), f"{KEPT}{step:06d}"
        for _ in self.looks(name, lambda: [sender]):
            data = self._read(sender, name, None)
            away = self.deadline is not None and sender in self.deadline.away
            if data is not None or away or self.clock() - began > seconds:
                break
        names = self._try(lambda: self.place.names(self._folder(sender))) if data is None else []
        older = [n for n in (x.rpartition("/")[2] for x in names) if n.startswith(KEPT)]
        for n in sorted(older, key=lambda n: int(n.removeprefix(KEPT)), reverse=True):
            data = self._read(sender, n, None) if data is None else data
        return None if data is None else data.partition(b"\n")[2]

    def _kept(self) -> list[str]:
        return sorted((name for name in self.there if name.startswith(KEPT)), key=lambda n: int(n.removeprefix(KEPT)))

    def kept(self) -> Iterator[tuple[int, bytes]]:
        """What this site has kept, the newest first."""
        for name in reversed(self._kept()):
            data = self._read(self.index, name, None)
            if data is not None:
                yield int(name.removeprefix(KEPT)), data.partition(b"\n")[2]

    def kept_by(self, sender: int, step: int) -> bytes:
        """What another site has kept after this step, as soon as it has."""
        return self.take(f"{KEPT}{step:06d}", {sender: None})[sender].partition(b"\n")[2]

    def back_to(self, step: int) -> None:
        """Go on in messages from where this site was when it kept itself."""
        data = self._read(self.index, f"{KEPT}{step:06d}", None)
        assert data is not None, "it was read before"
        said = json.loads(data.partition(b"\n")[0])
        self.counts, self.mark = said["counts"], said["mark"]
        if self.deadline is not None and "deadline" in said:
            self.deadline.load_json(said["deadline"])
        self.removed = self._said(self.index).get("removed", said["removed"])

    @property
    def has_told(self) -> bool:
        """Whether others may have removed what this site would have to read if it began from nothing."""
        return READ in self.there

    def _said(self, sender: int) -> dict[str, Any]:
        """What a site says of how far it has come; nothing where it has not yet."""
        data = self._read(sender, READ, None)
        found = json.loads(data) if data is not None else {}
        return found if isinstance(found, dict) else {}

    def _tell(self, step: int = -1, ended: bool = False) -> None:
        """Say up to where this site will not read again, and remove what no site will."""
        self.told = sum(self.counts.values())
        self._remove(self._needless())
        counts = dict(self.counts)
        for channel, _, number in (name.rpartition(".") for name in self.unread):
            counts[channel] = min(counts[channel], int(number))
        if self.deadline is not None:
            counts[MEETINGS] = self.deadline.number
        said = {"counts": counts, "step": step, "removed": self.removed, "ended": ended, "epoch": self.epoch}
        self._put(READ, json.dumps(said).encode())

    def _needless(self) -> list[str]:
        """Messages of this site that all who were to read them will not read again."""
        said = {p: self._said(p) for p in range(self.num) if p != self.index}
        found, first = list[str](), self.mark or {}
        for name in tuple(self.there):  # to which a thread adds
            channel, _, number = name.rpartition(".")
            if not number.isdigit() or int(number) < first.get(channel, 0):
                continue
            word = WORD.fullmatch(name) is not None
            readers = [p for p in (self._hearers(channel, int(number)) if word else self._who(channel)) if p in said]
            counted, epoch = (MEETINGS, 0) if word else (channel, int(channel.partition("@")[2] or 0))
            if readers and all(
                said[p].get("counts", {}).get(counted, 0) > int(number)
                or (not word and said[p].get("epoch", 0) > epoch)  # who would begin after that
                for p in readers
            ):
                found.append(name)
                if not word:
                    self.removed[channel] = max(self.removed.get(channel, 0), int(number) + 1)
        return found

    def _hearers(self, word: str, number: int) -> Sequence[int]:
        """Who may read again what was said of a meeting."""
        if word.startswith("welcome-"):
            return [int(word.removeprefix("welcome-"))]
        everybody = range(self.num) if self.deadline is None else self.deadline.expected(number)
        return everybody if word in ("verdict", "here") else [0]

    def _remove(self, names: Sequence[str]) -> None:
        self._try(lambda: self.place.remove(f"{self._folder(self.index)}/{name}" for name in names))
        self.there.difference_update(names)
        self.said_before.difference_update(names)

    # the end

    def end(self) -> None:
        """This site has come to the end; the first one waits until all have, and then removes all that was said."""
        self.put_all()
        with contextlib.suppress(OSError):
            self._seed_path().unlink(missing_ok=True)
        self._tell(ended=True)
        if self.refused:
            self.note(
                f"note: {len(self.refused)} files in {self.place} were refused, {next(iter(self.refused))} among them"
            )
        if self.index:
            return
        late = list(range(1, self.num)) if self.deadline is None else [p for p in self.deadline.here if p]
        try:
            for waited in self.looks(READ, lambda: late):
                late[:] = [p for p in late if not self._said(p).get("ended")]
                if self.deadline is not None and waited > 3 * self.deadline.seconds:
                    break
        except RuntimeError as error:
            self.note(f"note: {error}: what was said in the run stays in {self.place}")
            return
        there = Invitation.found(self.place, self.seal.secret)
        if there is not None and there.run == self.seal.run:
            there.over().put(self.place, self.seal.secret)
        clear(self.place, str(self.seal.run))


def clear(place: Place, run: str) -> None:
    """Remove all that was said in a run."""
    place.remove(place.names(run))
