"""A channel between the process that started a run and the run's first process: events one way, knobs and stops the other.

The first process sends ``["event", …]`` for each event and, where knobs may be set, ``["ask", t]`` before local step t. The
answer is any number of ``[knob, value]`` and at last ``["go", stopping]``; during a pause the answer is late. The first process
broadcasts each of them to the others, so that all set the same knobs before the same step. Messages are JSON lines over TCP on
127.0.0.1. Any user of this machine can connect there, so each end first sends a secret token. A connection that sends anything
else, or nothing for a while, is dropped; the run neither ends nor waits for it.
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

CHANNEL = "ISTHMUS_LINE"  # in the environment of the processes: "port token answer asks", the last "1" or "0"
PAUSE_SECONDS = 0.1
STRANGER_SECONDS = 5.0  # in which a new connection must have sent the token
LONGEST = 1 << 26  # bytes of one message; a stranger's may have no end
STRANGERS = 64  # who may be trying at a time; of more, those who came first are dropped


class Channel:
    """One end of the connection. `send` and `receive` raise EOFError when the other end is closed."""

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
        """Return the next message, or None after ``seconds`` without one. Raises EOFError also for a message that is no JSON."""
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
        """Whether the other end is still connected, as far as the socket knows."""
        try:
            self.connection.settimeout(0)
            return self.connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


# --- the end of the first process ------------------------------------------------------------------------------------


class Reports:
    """The first process's end: sends events to the process that started the run, and asks it for knobs. May have no channel."""

    def __init__(self, world: ManyProcesses):
        self.world = world
        self.channel: Channel | None = None
        self.answered = False  # whether the other end has proved with its token that it started the run
        port, self.token, self.answer, asks = os.environ.get(CHANNEL, "0 - - 0").split()
        if world.first and port != "0":
            self._connect(int(port))
        self.asks = bool(world.all_gather_json(asks == "1")[0])
        if self.asks:
            world.meets_every_step = True

    def _connect(self, port: int, tries: int = 10) -> None:
        """Connect and send the token; retry if the other end drops this connection, as it may among many strangers."""
        for _ in range(tries):
            try:
                self.channel = Channel(socket.create_connection(("127.0.0.1", port), 10))
                self.channel.send(self.token)
                self._receive(1.0)
                return
            except TimeoutError:
                continue
            except OSError:  # nobody is there
                return
            except EOFError:
                self.channel = None

    def _receive(self, seconds: float) -> Any:
        """Return the next message after the other end's token, or None after ``seconds`` without one."""
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
            except EOFError:  # the channel is closed: the run goes on, or stops where it would ask
                self.channel = None

    def knobs(self, t: int) -> Iterator[tuple[str, Any]]:
        """Yield the knobs to set before local step ``t``, or `STOP`: the same in all processes, which all call this.

        Costs two exchanges of `lab.processes.peers.SLOT_BYTES` a step, one of them of the step's losses, and one for each knob.
        """
        asked = False
        while self.asks:
            message = self.world.all_gather_json(self._next_message(t, asked) if self.world.first else None)[0]
            asked = True
            if message is None:  # a pause; the others see that this process is alive
                continue
            knob, value = message
            if knob == "go":
                yield STOP, value
                return
            yield knob, value

    def _next_message(self, t: int, asked: bool) -> list[Any] | None:
        try:
            if self.channel is None:
                raise EOFError
            if not asked:
                self.channel.send("ask", t)
            message: list[Any] | None = self._receive(self.world.timeout_seconds / 4)
            return message
        except EOFError:
            self.channel = None
            return ["go", True]  # nobody is there to ask: stop, with a checkpoint


# --- the end of whoever started it -----------------------------------------------------------------------------------


class Listener:
    """The end of the process that started the run: accepts the first process, again after a restart, and yields its events.

    Parameters
    ----------
    asks
        whether the processes ask before every step.
    """

    def __init__(self, asks: bool):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.token, self.answer, self.asks = secrets.token_hex(16), secrets.token_hex(16), asks
        self._strangers: dict[socket.socket, tuple[float, bytes]] = {}  # their deadline, and what each has sent so far

    def environment(self) -> dict[str, str]:
        return {CHANNEL: f"{self.server.getsockname()[1]} {self.token} {self.answer} {int(self.asks)}"}

    def events(
        self,
        going_on: Callable[[], bool],
        knob_source: Callable[[int, Callable[[], bool]], Iterable[tuple[str, Any]]] = lambda t, still: (),
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Yield the events of the run until it is over; each once, also if a restart repeats steps.

        Parameters
        ----------
        knob_source
            called as ``knob_source(t, still)``: returns the knobs to set before step t; may wait as long as ``still()``.
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
        """Accept connections for ``seconds`` at most; return the first process if it has sent its token. Others are dropped in time."""
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
        expected, found = json.dumps([self.token]).encode() + b"\n", None
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
        """Drop the connections that have not sent the token."""
        for stranger in list(self._strangers):
            self._drop(stranger)

    def _drop(self, stranger: socket.socket) -> None:
        del self._strangers[stranger]
        stranger.close()


def _is(said: Any, token: str) -> bool:
    return isinstance(said, list) and len(said) == 1 and hmac.compare_digest(str(said[0]).encode(), token.encode())


def _there(channel: Channel, going_on: Callable[[], bool]) -> bool:
    return channel.open and going_on()


class Once:
    """Filters the events of a run that may restart and repeat steps: gives each of them once."""

    def __init__(self) -> None:
        self.step, self.num = 0, 0  # of the newest event, and how many of that step were given
        self.seen = 0  # of them, how many have come since the run began anew

    def again(self) -> None:
        """The run restarted: its events come from the beginning again."""
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
