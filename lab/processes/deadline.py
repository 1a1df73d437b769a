"""A run that goes on without a site that does not come in time: who is there is said by the first site, and all others follow.

::

    from-2/here.7       site 2 has come to the 8th meeting
    from-2/said.7       … and has all that it needs from the others; or lacks something from some, or refuses what one has sent
    from-0/verdict.7    whether that counts; who is down from the last meeting on; who comes back with the next step
    from-2/back.7       site 2, which that verdict has left out, would come back
    from-0/welcome-2.7  … with these small values, at that step

A **meeting** is all that sites exchange in a step. Whoever waits for longer than the deadline says what it lacks, and waits for the
verdict. A meeting that does not count is held again, by those who are left, from the end of the one before it: so nobody goes on with a
sum that another has not. Only the first site decides, and a site says each thing once: what it said before it was lost holds when it is
back. There is thus no moment in which two sites could follow different verdicts. The first site itself is never left out: it has the run
folder, and is waited for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lab.ground.errors import Diverged

OTHERS = 2.0  # deadlines more that a site has that has come, but not yet said how it went


class Missed(Exception):
    """This meeting does not count here: somebody has not come, or has sent what cannot be meant."""

    def __init__(self, missing: Sequence[int] = (), refused: Mapping[int, str] | None = None):
        super().__init__(f"sites {sorted({*missing, *(refused or {})})}")
        self.missing, self.refused = list(missing), dict(refused or {})


class Sender(Protocol):
    """What is needed of a `lab.processes.post.Post`."""

    index: int
    num: int
    clock: Callable[[], float]
    note: Callable[[str], None]

    def say(self, word: str, data: bytes) -> None: ...
    def heard(self, sender: int, word: str) -> bytes | None: ...
    def looks(self, name: str, missing: Callable[[], Sequence[int]]) -> Iterator[float]: ...
    def forget(self) -> None: ...


@dataclass(frozen=True)
class Verdict:
    step: int  # in which they met
    counts: bool
    down: Sequence[int]  # sites, from the step after the last meeting that counts
    back: Sequence[int]  # sites, with the next step
    why: Mapping[str, str] | None = None  # by site, of those that are down


class Deadline:
    """The deadline of one site.

    Parameters
    ----------
    seconds
        for which others wait for a site.
    """

    def __init__(self, post: Sender, seconds: float):
        self.post, self.seconds = post, seconds
        self.epoch = 0  # how often other sites were there than before, or a meeting was held again
        self.number = 0  # of the meeting that comes next
        self.away: dict[int, int] = {}  # sites that are down, and with which verdict they went
        self.changes: list[tuple[int, list[int]]] = [(0, [*range(post.num)])]  # from which meeting on who is expected
        self.on = False  # whether what is exchanged now belongs to a meeting
        self.entered = False
        self.first_came: float | None = None  # when this site saw that the first one has come
        self.known: Verdict | None = None  # of the present meeting, if it was held before

    @property
    def here(self) -> Sequence[int]:
        return self.changes[-1][1]

    def expected(self, number: int) -> Sequence[int]:
        """Who was to come to a meeting."""
        return next(who for first, who in reversed(self.changes) if first <= number)

    def json(self) -> dict[str, Any]:
        return {"number": self.number, "epoch": self.epoch, "away": [*self.away.items()], "changes": self.changes}

    def load_json(self, values: Mapping[str, Any]) -> None:
        self.number, self.epoch, self.away = values["number"], values["epoch"], dict(values["away"])
        self.changes = [(first, list(who)) for first, who in values["changes"]]

    # in a meeting

    def prepare(self) -> None:
        """From now on what is exchanged is of the next meeting."""
        self.on, self.entered, self.first_came, self.known = True, False, None, None

    def enter(self) -> None:
        """Called before anything is exchanged. Raises Missed where it is known that this meeting does not count."""
        if not self.on or self.entered:
            return
        self.entered = True
        self.known = self._verdict()
        if self.known is None:
            self._say("here", None)
        elif not self.known.counts:
            raise Missed

    def look(self, missing: Sequence[int], waited: float) -> None:
        """Called while messages are waited for. Raises Missed when that is over."""
        if not self.on or (self.known is not None and self.known.counts):
            return
        if self.post.index:
            self.known = self._verdict()
            if self.known is not None and not self.known.counts:
                raise Missed
            if self.first_came is None and self._has_come(0):
                self.first_came = self.post.clock()
            waited = 0.0 if self.first_came is None else min(waited, self.post.clock() - self.first_came)
        if waited >= self.seconds:
            raise Missed(missing)

    def conclude(
        self, step: int, missed: Missed | None, admits: bool, welcome: Callable[[], dict[str, Any]]
    ) -> Verdict | None:
        """Called when a step is through, or was missed; returns the verdict, None where nobody met.

        Parameters
        ----------
        admits
            whether sites may come back with the next step.
        welcome
            what those need who do so, at the first site.
        """
        self.on = False
        if not self.entered:
            return None
        if self.known is None or not self.known.counts:
            self.known = self._verdict()
        if self.known is None and self.post.index:
            report = {"missing": missed.missing, "refused": missed.refused} if missed is not None else {}
            self._say("said", report)
            self.known = self._awaited()
        elif self.known is None:
            self.known = self._decided(step, missed, admits)
            self._say("verdict", vars(self.known))
        for p in self.known.back if not self.post.index else ():
            told = {"verdict": vars(self.known), "deadline": self.json()}
            self._say(f"welcome-{p}", told | welcome(), self.away[p])
        self._follow(self.known)
        return self.known

    def _decided(self, step: int, missed: Missed | None, admits: bool) -> Verdict:
        """What the first site decides: who has come, and said how it went."""
        others = [p for p in self.here if p]
        said, late = self._all_said(others, missed is not None and bool(missed.missing))
        refused = dict(missed.refused) if missed is not None else {}
        for of_p in said.values():
            refused |= {int(p): why for p, why in of_p.get("refused", {}).items()}
        if 0 in refused:
            raise Diverged(f"site 0 has sent what others refuse ({refused[0]}), and nobody goes on without it")
        refused = {p: why for p, why in refused.items() if p in others}
        why = {str(p): f"did not come within {self.seconds:g} s" for p in late} | {
            str(p): why for p, why in refused.items()
        }
        again = missed is not None or bool(why) or any(of_p.get("missing") for of_p in said.values())
        if again:
            return Verdict(step, False, sorted({*late, *refused}), [], why)
        back = [p for p, left in self.away.items() if admits and self._heard(p, "back", left) is not None]
        return Verdict(step, True, [], back)

    def _all_said(self, others: Sequence[int], waited: bool) -> tuple[dict[int, Any], list[int]]:
        """What others have said of this meeting, and who has not in time. ``waited``: the deadline has passed already."""
        began = self.post.clock() - (self.seconds if waited else 0.0)
        said: dict[int, Any] = {}
        silent = list(others)
        for _ in self.post.looks(f"said.{self.number}", lambda: silent):
            said |= {p: x for p in silent if (x := self._heard(p, "said", self.number)) is not None}
            silent[:] = [p for p in others if p not in said]
            over = (self.post.clock() - began) / self.seconds
            late = [p for p in silent if over >= 1 + OTHERS or (over >= 1 and not self._has_come(p))]
            if late or not silent:
                return said, late
        raise AssertionError

    def _awaited(self) -> Verdict:
        for _ in self.post.looks(f"verdict.{self.number}", lambda: [0]):
            found = self._verdict()
            if found is not None:
                return found
        raise AssertionError

    def _follow(self, verdict: Verdict) -> None:
        told = [p for p in (*verdict.down, *verdict.back) if self.post.index in (0, p)]
        for p in verdict.down:
            self.away[p] = self.number
            if p in told:
                self.post.note(f"note: site {p} is left out until it is back: it {(verdict.why or {}).get(str(p), '')}")
        for p in verdict.back:
            self.away.pop(p, None)
            if p in told:
                self.post.note(f"note: site {p} is there again after step {verdict.step}")
        self.number += 1
        if verdict.down or verdict.back:
            self.changes.append((self.number, [p for p in range(self.post.num) if p not in self.away]))
        if verdict.down or verdict.back or not verdict.counts:
            self.epoch += 1
            self.post.forget()

    # coming back

    def ask_to_come_back(self) -> dict[str, Any]:
        """What the first site says to this one, which is down, at the end of a meeting; from the next step on it is there again."""
        left, word = self.away[self.post.index], f"welcome-{self.post.index}"
        self._say("back", None, left)
        for _ in self.post.looks(f"{word}.{left}", lambda: [0]):
            found = self._heard(0, word, left)
            if found is not None:
                self.load_json(found["deadline"])
                self._follow(Verdict(**found["verdict"]))
                return dict(found)
        raise AssertionError

    # words

    def _say(self, word: str, what: Any, number: int | None = None) -> None:
        self.post.say(f"{word}.{self.number if number is None else number}", json.dumps(what).encode())

    def _heard(self, sender: int, word: str, number: int) -> Any:
        data = self.post.heard(sender, f"{word}.{number}")
        return None if data is None else (json.loads(data) or {})

    def _has_come(self, p: int) -> bool:
        return self._heard(p, "here", self.number) is not None

    def _verdict(self) -> Verdict | None:
        found = self._heard(0, "verdict", self.number)
        return None if found is None else Verdict(**found)
