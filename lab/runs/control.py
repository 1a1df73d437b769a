"""A channel from whoever started a run to its first process: events one way, knobs and stops the other.

The first process says ``["event", …]`` for each event and, where a hand may turn knobs, ``["ask", t]`` before local step t. The
answer is any number of ``[knob, value]`` and at last ``["go", stopping]``; a pause is an answer that takes its time. It passes
each of them on to the other processes, so that all turn the same knobs before the same step. JSON lines over TCP on 127.0.0.1.
Anybody on this machine can connect there, so each end first says a word that only these processes know; who says anything else, or
nothing for a while, is dropped, and the run neither ends nor waits for it.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from lab.events import Event, KnobChanged, Started, from_json, to_json
from lab.processes.peers import ManyProcesses
from lab.runs.knobs import STOP

CHANNEL = "ISTHMUS_LINE"  # in the environment of the processes: "port word answer asks", the last "1" or "0"
PAUSE_SECONDS = 0.1
STRANGER_SECONDS = 5.0  # in which who connects must have said the word
LONGEST = 1 << 26  # bytes of one word; a stranger's may have no end
STRANGERS = 64  # who may be trying at a time; of more, those who came first are dropped


class Channel:
    """One end. EOFError when the other has gone."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is asked is asked now
        self._received: deque[bytes] = deque()
        self._rest = b""

    def send(self, *words: Any) -> None:
        try:
            self.connection.settimeout(None)
            self.connection.sendall(json.dumps(words).encode() + b"\n")
        except OSError:
            raise EOFError from None

    def receive(self, seconds: float) -> Any:
        """What the other end says next; None if it says nothing for so long. What is no JSON is said by a stranger: EOFError."""
        self.connection.settimeout(seconds)
        while not self._received:
            try:
                data = self.connection.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError:
                data = b""
            if not data:
                raise EOFError
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._received.extend(lines)
            if len(self._rest) > LONGEST:
                raise EOFError
        try:
            return json.loads(self._received.popleft())
        except (ValueError, RecursionError):
            raise EOFError from None

    @property
    def open(self) -> bool:
        """Whether the other end is still there, as far as one can know."""
        try:
            self.connection.settimeout(0)
            return self.connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


# --- the end of the first process ------------------------------------------------------------------------------------


class Reports:
    """What the first process says to whoever started the run, and asks. Without a channel it does neither."""

    def __init__(self, world: ManyProcesses):
        self.world = world
        self.channel: Channel | None = None
        self.answered = False  # whether the other end has shown that it is who started the run
        port, self.word, self.answer, asks = os.environ.get(CHANNEL, "0 - - 0").split()
        if world.first and port != "0":
            self._connect(int(port))
        self.asks = bool(world.all_gather_json(asks == "1")[0])
        if self.asks:
            world.meets_every_step = True

    def _connect(self, port: int, tries: int = 10) -> None:
        """Where strangers throng, the other end may drop this one too: then once more. It may answer later, but not otherwise."""
        for _ in range(tries):
            try:
                self.channel = Channel(socket.create_connection(("127.0.0.1", port), 10))
                self.channel.send(self.word)
                self._receive(1.0)
                return
            except TimeoutError:
                continue
            except OSError:  # nobody is there
                return
            except EOFError:
                self.channel = None

    def _receive(self, seconds: float) -> Any:
        """What the other end says next, after the answer; None if it says nothing for so long."""
        assert self.channel is not None
        if not self.answered:
            said = self.channel.receive(seconds)
            if said is not None and not _is(said, self.answer):
                raise EOFError
            self.answered = said is not None
            return None
        return self.channel.receive(seconds)

    def send(self, event: Event) -> None:
        if self.channel is not None:
            try:
                self.channel.send("event", to_json(event))
            except EOFError:  # nobody listens any more: the run goes on, or stops where it would ask
                self.channel = None

    def knobs(self, t: int) -> Iterator[tuple[str, Any]]:
        """What the other end turns before local step ``t``, or that it stops the run: in all processes, before the same step.

        Costs two exchanges of `lab.processes.peers.SLOT_BYTES` a step, one of them of the step's losses, and one for each knob.
        """
        asked = False
        while self.asks:
            word = self.world.all_gather_json(self._word(t, asked) if self.world.first else None)[0]
            asked = True
            if word is None:  # a pause; the others see that this process is alive
                continue
            knob, value = word
            if knob == "go":
                yield STOP, value
                return
            yield knob, value

    def _word(self, t: int, asked: bool) -> list[Any] | None:
        try:
            if self.channel is None:
                raise EOFError
            if not asked:
                self.channel.send("ask", t)
            word: list[Any] | None = self._receive(self.world.timeout_seconds / 4)
            return word
        except EOFError:
            self.channel = None
            return ["go", True]  # nobody is there to ask: stop, with a checkpoint


# --- the end of whoever started it -----------------------------------------------------------------------------------


class Listener:
    """Waits for the first process, which comes again after a restart.

    Parameters
    ----------
    asks
        whether the processes ask before every step.
    """

    def __init__(self, asks: bool):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.word, self.answer, self.asks = secrets.token_hex(16), secrets.token_hex(16), asks
        self._strangers: dict[socket.socket, tuple[float, bytes]] = {}  # until when, and what each has said so far

    def environment(self) -> dict[str, str]:
        return {CHANNEL: f"{self.server.getsockname()[1]} {self.word} {self.answer} {int(self.asks)}"}

    def events(
        self,
        going_on: Callable[[], bool],
        knob_source: Callable[[int, Callable[[], bool]], Iterable[tuple[str, Any]]] = lambda t, still: (),
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """What the run says until it is over, every event once, also if some steps are done again.

        Parameters
        ----------
        knob_source
            knobs to turn before step t; may wait as long as ``still()``.
        """
        once = Once()
        channel: Channel | None = None
        with self.server, contextlib.closing(self):
            while True:
                over = not going_on()
                new = self._welcome(0.0 if channel is not None else PAUSE_SECONDS)
                if new is not None:  # the run has begun anew
                    channel = new
                    once.again()
                try:
                    words = channel.receive(PAUSE_SECONDS) if channel is not None else None
                    match words:
                        case ["event", text]:
                            yield from once.new(from_json(text))
                        case ["ask", t] if channel is not None:
                            for knob, value in knob_source(t, partial(_there, channel, going_on)):
                                channel.send(knob, value)
                            channel.send("go", stopping())
                        case _ if over:
                            return
                except EOFError:
                    channel = None

    def _welcome(self, seconds: float) -> Channel | None:
        """Look at who connects, for so long at most: the first process, if it is among them. Others are dropped in time."""
        with selectors.DefaultSelector() as ready:
            ready.register(self.server, selectors.EVENT_READ)
            for stranger in self._strangers:
                ready.register(stranger, selectors.EVENT_READ)
            talking = {key.fileobj for key, _ in ready.select(seconds)}
        if self.server in talking:
            with contextlib.suppress(OSError):
                for _ in range(STRANGERS):
                    stranger, _ = self.server.accept()
                    stranger.setblocking(False)
                    self._strangers[stranger] = time.monotonic() + STRANGER_SECONDS, b""
                    talking.add(stranger)
        expected, found = json.dumps([self.word]).encode() + b"\n", None
        for stranger, (until, said) in list(self._strangers.items()):
            with contextlib.suppress(OSError):
                if stranger in talking:
                    more = stranger.recv(len(expected) - len(said))
                    until = until if more else 0.0  # it has gone
                    said += more
            self._strangers[stranger] = until, said
            if hmac.compare_digest(said, expected):
                del self._strangers[stranger]
                found = Channel(stranger)
            elif (
                len(said) == len(expected) or time.monotonic() > until
            ):  # not sooner, or it could be guessed bit by bit
                self._drop(stranger)
        while len(self._strangers) > STRANGERS:
            self._drop(next(iter(self._strangers)))
        if found is not None:
            with contextlib.suppress(EOFError):  # that is noticed when it is heard
                found.send(self.answer)
        return found

    def close(self) -> None:
        """Nobody need wait any longer."""
        for stranger in list(self._strangers):
            self._drop(stranger)

    def _drop(self, stranger: socket.socket) -> None:
        del self._strangers[stranger]
        stranger.close()


def _is(said: Any, word: str) -> bool:
    return isinstance(said, list) and len(said) == 1 and hmac.compare_digest(str(said[0]).encode(), word.encode())


def _there(channel: Channel, going_on: Callable[[], bool]) -> bool:
    return channel.open and going_on()


class Once:
    """Takes in the events of a run that may begin anew: gives each of them once."""

    def __init__(self) -> None:
        self.step, self.num = 0, 0  # of the newest event, and how many of that step were given
        self.seen = 0  # of them, how many have come since the run began anew

    def again(self) -> None:
        """From here on they come from the beginning."""
        self.seen = 0

    def new(self, event: Event) -> Iterator[Event]:
        step = (
            0 if isinstance(event, Started) else event.step - isinstance(event, KnobChanged)
        )  # it is turned before its step
        self.seen += step == self.step
        if step > self.step:
            self.step, self.num, self.seen = step, 0, 1
        if step == self.step and self.seen > self.num:
            self.num = self.seen
            yield event
