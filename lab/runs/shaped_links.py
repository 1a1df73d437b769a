"""Links of a chosen rate to measure on: recipes over processes in network namespaces, and what the kernel counts there.

Each process has a namespace of its own. A veth pair leads from it to a bridge, which has a namespace too; ``tc … tbf`` limits
both ends of each pair. Bytes are those of the kernel's own interface counters, headers and acknowledgements included. Needs
root on Linux with ``ip`` and ``tc``; addresses stay inside the namespaces. All that is made is removed, and what a crash has
left behind goes before the next run.

To leave out what starting and the last evaluation send, take the `difference` of a longer run and a shorter one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lab.costs.network import Bill, Network
from lab.events import Evaluated, Event, Sent, Stepped
from lab.ground.errors import LabError
from lab.ground.files import locked
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.folder import RunFolder
from lab.runs.launch import events_over_processes, prepare

PREFIX = "isthmus-"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def remove_all() -> None:
    """End what still runs in our namespaces and remove them; the links in them go with them."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(PREFIX):
            for pid in _run("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            _run("ip", "netns", "del", name)


def why_not() -> str | None:
    """Why this machine cannot do it, None if it can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        with narrow(1, 1e9):
            return None
    except OSError as error:
        return str(error)


@contextlib.contextmanager
def narrow(num: int, bits_per_second: float, apart: int = 0) -> Iterator[list[str]]:
    """The names of ``num`` namespaces 10.77.0.1 … on one bridge, each behind a link of this rate in both directions.

    The first ``apart`` of them cannot reach each other, only the others. Raises OSError while another process has them.
    """
    with _only_here():
        yield from _narrow(num, bits_per_second, apart)


@contextlib.contextmanager
def _only_here() -> Iterator[None]:
    """Context manager: nobody else makes namespaces of these names, or removes them, as they are the machine's."""
    lock = locked(Path(tempfile.gettempdir()) / f"{PREFIX}namespaces-{os.getuid()}.lock")
    if lock is None:
        raise OSError("another run has the network namespaces: wait for its end")
    with lock:
        yield


def _narrow(num: int, bits_per_second: float, apart: int) -> Iterator[list[str]]:
    remove_all()
    hub, names = f"{PREFIX}hub", [f"{PREFIX}{p}" for p in range(num)]
    try:
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge0", "up")
        for p, name in enumerate(names):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", hub, "link", "add", f"port{p}", "type", "veth", "peer", "name", "wan0", "netns", name)
            _run("ip", "-n", hub, "link", "set", f"port{p}", "master", "bridge0", "up")
            if p < apart:
                _run("ip", "-n", hub, "link", "set", f"port{p}", "type", "bridge_slave", "isolated", "on")
            _run("ip", "-n", name, "addr", "add", f"10.77.0.{p + 1}/24", "dev", "wan0")
            _run("ip", "-n", name, "link", "set", "wan0", "up")
            for where, device in ((name, "wan0"), (hub, f"port{p}")):
                # No packet may be larger than the bucket, or tbf drops it: large segments are cut before they are counted.
                _run("ip", "netns", "exec", where, "ip", "link", "set", device, "gso_max_segs", "1")
                limit(where, device, bits_per_second)
        yield names
    finally:
        remove_all()


def limit(where: str, device: str, bits_per_second: float, change: str = "add") -> None:
    """What leaves a namespace by a device goes at this rate; ``change`` to ``replace`` another one."""
    rate, burst = f"{bits_per_second:.0f}bit", f"{max(16_000, int(bits_per_second / 8 / 250))}"
    shape = ("root", "tbf", "rate", rate, "burst", burst, "latency", "200ms")
    _run("tc", "-n", where, "qdisc", change, "dev", device, *shape)


def sent(name: str) -> tuple[int, int]:
    """Bytes and packets that have left this namespace by its link so far."""
    (device,) = json.loads(_run("ip", "-n", name, "-s", "-j", "link", "show", "wan0"))
    return int(device["stats64"]["tx"]["bytes"]), int(device["stats64"]["tx"]["packets"])


def pairs() -> None:
    """Count what crosses the bridge by sender and receiver, until the input ends; prints JSON. Runs in the hub."""
    import select
    import socket

    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    sniffer.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
    seen: dict[str, int] = {}
    frame = bytearray(34)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sniffer, sys.stdin], [], [])
        if sys.stdin in ready and sniffer not in ready:
            break
        num, (_, _, kind, *_) = sniffer.recvfrom_into(frame, 0, socket.MSG_TRUNC)
        if kind == socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00":  # each packet leaves the bridge once
            key = f"{frame[29] - 1}-{frame[33] - 1}"
            seen[key] = seen.get(key, 0) + num
    print(json.dumps(seen))


@dataclass(frozen=True)
class LinkMeasurement:
    """W: the processes, one worker each. Without links to count on, bytes and packets are empty."""

    bytes_W: list[int]  # that left each process, with all headers
    packets_W: list[int]
    bytes_by_pair: dict[str, int]  # "sender-receiver", as seen on the bridge
    step_seconds: dict[int, float]  # of each step, by the first process
    ledger: list[Sent]
    loss: float  # at the end

    @classmethod
    def of(cls, events: list[Event], counters: list[tuple[int, int]], bytes_by_pair: dict[str, int]) -> LinkMeasurement:
        return cls(
            [b for b, _ in counters],
            [n for _, n in counters],
            bytes_by_pair,
            {e.step: e.seconds for e in events if isinstance(e, Stepped)},
            [e for e in events if isinstance(e, Sent)],
            [e.loss for e in events if isinstance(e, Evaluated)][-1],
        )

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds.values())

    @property
    def alone_seconds(self) -> float:
        """Seconds of a step in which nothing was sent: the median without the first ones, which warm up; 0 where there was none."""
        sends = {r.step for r in self.ledger}
        alone = sorted(x for t, x in self.step_seconds.items() if t > 2 and t not in sends)
        return alone[len(alone) // 2] if alone else 0.0

    def after(self, step: int) -> LinkMeasurement:
        """The later steps alone, with the bytes of all."""
        later = {t: x for t, x in self.step_seconds.items() if t > step}
        return replace(self, step_seconds=later, ledger=[r for r in self.ledger if r.step > step])

    def bill(self, network: Network, alone_seconds: float | None = None) -> Bill:
        """What the ledger says that these steps cost on a network, if computing takes so long a step (default: as alone)."""
        begin = min(self.step_seconds) - 1
        num = 1 + max((w for r in self.ledger for w in r.workers), default=0)
        alone = self.alone_seconds if alone_seconds is None else alone_seconds
        ledger = [replace(r, step=r.step - begin) for r in self.ledger]
        return network.price(ledger, num_workers=num, steps=len(self.step_seconds), compute_seconds=alone)

    def less(self, other: LinkMeasurement) -> LinkMeasurement:
        """The difference of this run to a shorter one."""
        return replace(
            self,
            bytes_W=[a - b for a, b in zip(self.bytes_W, other.bytes_W, strict=True)],
            packets_W=[a - b for a, b in zip(self.packets_W, other.packets_W, strict=True)],
            bytes_by_pair={pair: n - other.bytes_by_pair.get(pair, 0) for pair, n in self.bytes_by_pair.items()},
        ).after(max(other.step_seconds))


def measure(recipe: Recipe, bits_per_second: float, count_pairs: bool = False) -> LinkMeasurement:
    """One run over as many processes as there are workers, each behind a link of this rate in both directions.

    Parameters
    ----------
    count_pairs
        also count what travels between each two of them.

    Raises
    ------
    LabError
        with what the processes said, if one of them failed.
    OSError
        where namespaces cannot be made (`why_not`).
    """
    num = recipe.num_workers
    with narrow(num, bits_per_second) as names, tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        prepare(folder, recipe, num)
        env = child.environment() | {
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": "29500",
            "WORLD_SIZE": str(num),
        }
        inside = ("ip", "netns", "exec")
        sniffer = None
        if count_pairs:
            sniffer = subprocess.Popen(
                [*inside, f"{PREFIX}hub", *child.command("lab.runs.shaped_links")],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert sniffer.stdout is not None
            sniffer.stdout.readline()
        started = []
        for p, name in enumerate(names):
            command = [*inside, name, *child.command("lab", "resume", str(folder.path))]
            with open(Path(path) / f"{p}.log", "w", encoding="utf-8") as log:
                mine = env | {"RANK": str(p), "LOCAL_RANK": "0"}
                started.append(subprocess.Popen(command, env=mine, stdout=log, stderr=subprocess.STDOUT))
        codes = [p.wait() for p in started]
        if any(codes):
            raise LabError("\n".join((Path(path) / f"{p}.log").read_text() for p in range(num)))
        bytes_by_pair = json.loads(sniffer.communicate("")[0]) if sniffer is not None else {}
        counters = [sent(name) for name in names]
        events = list(folder.events())
    return LinkMeasurement.of(events, counters, bytes_by_pair)


def loopback(recipe: Recipe) -> LinkMeasurement:
    """The same without links of its own, where none can be made: nothing is slowed down, no bytes are counted."""
    with tempfile.TemporaryDirectory() as path:
        return LinkMeasurement.of(
            list(events_over_processes(recipe.num_workers, recipe, RunFolder(Path(path) / "run"))), [], {}
        )


def difference(
    recipe: Recipe, bits_per_second: float, steps: tuple[int, int], count_pairs: bool = False
) -> LinkMeasurement:
    """Measure the steps after ``steps[0]``, up to ``steps[1]``: the difference of two runs."""
    short, long = (measure(recipe.but(steps=n), bits_per_second, count_pairs) for n in steps)
    return long.less(short)


if __name__ == "__main__":
    pairs()
