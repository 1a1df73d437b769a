"""A line from whoever started a run to its first process: events one way, knobs and stops the other.

The first process says ``["event", …]`` for each event and, where a hand may turn knobs, ``["ask", t]`` before local step t. The
answer is any number of ``[knob, value]`` and at last ``["go", stopping]``; a pause is an answer that takes its time. It passes
each of them on to the other processes, so that all turn the same knobs before the same step. JSON lines over TCP on 127.0.0.1,
opened by a word that only the started processes know.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from lab.events import Event, Started, Turned, from_json, to_json
from lab.processes.peers import Peers
from lab.run import Trainer

LINE = "ISTHMUS_LINE"  # in the environment of the processes: "port word asks", the last "1" or "0"
PAUSE_SECONDS = 0.1


class Line:
    """One end. EOFError when the other has gone."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is asked is asked now
        self._heard: deque[bytes] = deque()
        self._rest = b""

    def say(self, *words: Any) -> None:
        try:
            self.connection.settimeout(None)
            self.connection.sendall(json.dumps(words).encode() + b"\n")
        except OSError:
            raise EOFError from None

    def hear(self, seconds: float) -> list[Any] | None:
        """What the other end says next; None if it says nothing for so long."""
        self.connection.settimeout(seconds)
        while not self._heard:
            try:
                data = self.connection.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError:
                data = b""
            if not data:
                raise EOFError
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._heard.extend(lines)
        words: list[Any] = json.loads(self._heard.popleft())
        return words

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
    """What the first process says to whoever started the run, and asks. Without a line it does neither."""

    def __init__(self, peers: Peers):
        self.peers = peers
        self.line: Line | None = None
        port, word, asks = os.environ.get(LINE, "0 - 0").split()
        if peers.first and port != "0":
            with contextlib.suppress(OSError, EOFError):
                self.line = Line(socket.create_connection(("127.0.0.1", int(port)), 10))
                self.line.say(word)
        self.asks = bool(peers.share(asks == "1")[0])

    def say(self, event: Event) -> None:
        if self.line is not None:
            try:
                self.line.say("event", to_json(event))
            except EOFError:  # nobody listens any more: the run goes on, or stops where it would ask
                self.line = None

    def follow_(self, trainer: Trainer) -> None:
        """Let the other end turn this trainer's knobs and stop it: in all processes, before the same step.

        Costs two exchanges of `lab.processes.peers.SLOT_BYTES` a step, one of them of the step's losses, and one for each knob.
        """
        if not self.asks:
            return
        self.peers.every_step = True

        def between(t: int) -> Iterator[tuple[str, Any]]:
            asked = False
            while True:
                word = self.peers.share(self._word(t, asked) if self.peers.first else None)[0]
                asked = True
                if word is None:  # a pause; the others see that this process is alive
                    continue
                knob, value = word
                if knob == "go":
                    trainer.stopping = value
                    return
                yield knob, value

        trainer.between = between

    def _word(self, t: int, asked: bool) -> list[Any] | None:
        try:
            if self.line is None:
                raise EOFError
            if not asked:
                self.line.say("ask", t)
            return self.line.hear(self.peers.timeout_seconds / 4)
        except EOFError:
            self.line = None
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
        self.word, self.asks = secrets.token_hex(16), asks

    def environment(self) -> dict[str, str]:
        return {LINE: f"{self.server.getsockname()[1]} {self.word} {int(self.asks)}"}

    def events(
        self,
        going_on: Callable[[], bool],
        between: Callable[[int, Callable[[], bool]], Iterable[tuple[str, Any]]] = lambda t, still: (),
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """What the run says until it is over, every event once, also if some steps are done again.

        Parameters
        ----------
        between
            knobs to turn before step t; may wait as long as ``still()``.
        """
        once, line = Once(), None
        with self.server:
            while True:
                over = not going_on()
                line = line or self._accept()
                try:
                    words = line.hear(PAUSE_SECONDS) if line is not None else None
                    match words:
                        case ["event", text]:
                            yield from once.new(from_json(text))
                        case ["ask", t] if line is not None:
                            for knob, value in between(t, partial(_there, line, going_on)):
                                line.say(knob, value)
                            line.say("go", stopping())
                        case _ if over:
                            return
                except EOFError:
                    line = None
                    once.again()

    def _accept(self) -> Line | None:
        self.server.settimeout(PAUSE_SECONDS)
        try:
            line = Line(self.server.accept()[0])
            return line if line.hear(5.0) == [self.word] else None
        except (TimeoutError, EOFError):
            return None


def _there(line: Line, going_on: Callable[[], bool]) -> bool:
    return line.open and going_on()


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
            0 if isinstance(event, Started) else event.step - isinstance(event, Turned)
        )  # it is turned before its step
        self.seen += step == self.step
        if step > self.step:
            self.step, self.num, self.seen = step, 0, 1
        if step == self.step and self.seen > self.num:
            self.num = self.seen
            yield event
