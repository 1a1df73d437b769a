"""Sites of a run that reach nothing but one place, to see what becomes of one that is killed or held, and what links carry.

Each site, and an S3 server that keeps its objects in memory (`moto`), has a network namespace of its own (`lab.runs.shaped_links`); the sites
cannot reach each other. Where namespaces cannot be made, or the server is not installed (``pip install 'moto[s3]' flask flask-cors s3fs``), the place is a
folder and sites are plain processes: nothing is counted then. Sites are started as anybody would, by ``lab run … --site 0`` and ``lab join``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lab.events import Event, Sent
from lab.ground.errors import LabError
from lab.processes.peers import PeerLost
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.again import as_it_was
from lab.runs.folder import RunFolder
from lab.runs.shaped_links import narrow, sent, why_not

NEEDS = ("moto", "flask", "flask_cors", "s3fs")
PORT = 5000
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
MAKE = """
import time, boto3
for _ in range(100):
    try:
        boto3.client("s3").create_bucket(Bucket="box")
        break
    except Exception:
        time.sleep(0.5)
"""
REACH = """
import socket, sys
for host in sys.argv[2:]:
    s = socket.socket()
    s.settimeout(1.0)
    print(int(s.connect_ex((host, int(sys.argv[1]))) in (0, 111)))  # 111: there, but nobody listens
"""
PAUSE_SECONDS = 2.0  # until a site that was killed is started again


def why_no_bucket() -> str | None:
    """Why there can be no S3 server in a namespace here, None if there can."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else why_not()


@contextlib.contextmanager
def bucket(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """An S3 server with the bucket ``box`` in the last of these namespaces; the environment of those who use it."""
    inside, address = ("ip", "netns", "exec"), f"10.77.0.{len(names)}"
    env = {"AWS_ENDPOINT_URL": f"http://{address}:{PORT}"} | CREDENTIALS
    command = [*inside, names[-1], sys.executable, "-P", "-m", "moto.server", "-H", address, "-p", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            subprocess.run([*inside, names[0], sys.executable, "-P", "-c", MAKE], env=os.environ | env, check=True)
            yield env
        finally:
            server.kill()


@dataclass(frozen=True)
class Story:
    """What became of a run. Without links to count on, bytes are empty."""

    events: list[Event]
    again: Recipe  # with what happened to its workers as its scenario
    bytes_sent: list[int]  # that left each site's namespace, and then the place's, with all headers
    started: list[int]  # how often each site was
    reaches: list[bool]  # whether the last site reached each of the others, and the place
    seconds: float

    @property
    def ledger(self) -> list[Sent]:
        return [event for event in self.events if isinstance(event, Sent)]


def sites(
    recipe: Recipe,
    num: int = 3,
    *,
    bits_per_second: float = 1e9,
    kill: Mapping[int, int] | None = None,
    hold: Mapping[int, int] | None = None,
    deadline_seconds: float | None = None,
    timeout_seconds: float = 300.0,
) -> Story:
    """One run over so many sites and a place.

    Parameters
    ----------
    kill
        after which step which site (from 1) gets a SIGKILL; it is started again by the same command, alone.
    hold
        after which step which site stands still, until the others have gone on without it (or the run has ended).

    Raises
    ------
    LabError
        with what the sites said, if one of them failed.
    """
    with tempfile.TemporaryDirectory() as path, contextlib.ExitStack() as stack:
        folder, prefixes, env = Path(path), [list[str]() for _ in range(num)], dict[str, str]()
        names, place, reaches = list[str](), str(folder / "place"), list[bool]()
        if why_no_bucket() is None:
            names = stack.enter_context(narrow(num + 1, bits_per_second, apart=num))
            env, place = stack.enter_context(bucket(names)), "s3://box/run"
            prefixes = [["ip", "netns", "exec", name] for name in names[:num]]
            reaches = _reached(prefixes[-1], num)
        began = time.monotonic()
        crew = _Crew(recipe, folder, place, prefixes, env, timeout_seconds, deadline_seconds)
        stack.callback(crew.end)
        crew.run(dict(kill or {}), dict(hold or {}))
        seconds = time.monotonic() - began
        run = RunFolder(folder / "0/runs" / recipe.id)
        return Story(
            list(run.events()), as_it_was(run), [sent(name)[0] for name in names], crew.started, reaches, seconds
        )


def _reached(prefix: Sequence[str], num: int) -> list[bool]:
    """Whether the site in a namespace reaches the others, and the place."""
    hosts = [f"10.77.0.{p + 1}" for p in (*range(num - 1), num)]
    said = subprocess.run(
        [*prefix, sys.executable, "-P", "-c", REACH, str(PORT), *hosts], capture_output=True, text=True
    )
    return [line == "1" for line in said.stdout.split()]


class _Crew:
    """The processes of the sites."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        place: str,
        prefixes: Sequence[Sequence[str]],
        env: dict[str, str],
        timeout_seconds: float,
        deadline_seconds: float | None,
    ):
        self.folder, self.place, self.prefixes = folder, place, prefixes
        self.env = child.environment() | env | {"OMP_NUM_THREADS": "1"}
        self.timeout, self.deadline = timeout_seconds, deadline_seconds
        self.written = folder / "0/runs" / recipe.id / "events.jsonl"
        self.started, self.processes = [0] * len(prefixes), dict[int, subprocess.Popen[bytes]]()
        for p in range(len(prefixes)):
            (folder / str(p)).mkdir()
        (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()), encoding="utf-8")

    def start(self, p: int) -> None:
        options = ["--timeout", f"{self.timeout:g}"]
        if p:
            command = ["join", self.place, "--site", str(p), *options]
        else:
            num = str(len(self.prefixes))
            command = ["run", "../recipe.json", "--processes", num, "--mailbox", self.place, "--site", "0", *options]
            command += [] if self.deadline is None else ["--deadline", f"{self.deadline:g}"]
        with open(self.folder / f"{p}.log", "ab") as log:
            self.processes[p] = subprocess.Popen(
                [*self.prefixes[p], *child.command("lab", *command)],
                cwd=self.folder / str(p),
                env=self.env,
                stdout=log,
                stderr=log,
            )
        self.started[p] += 1

    def run(self, kill: dict[int, int], hold: dict[int, int]) -> None:
        """Start all, and do to them what is to be done, to the end."""
        for p in range(len(self.prefixes)):
            self.start(p)
        held = dict[int, int]()
        while any(process.poll() is None for process in self.processes.values()):
            step, changes = self._seen()
            for p in [p for p, after in kill.items() if step >= after]:
                del kill[p]
                self.processes[p].send_signal(signal.SIGKILL)
                self.processes[p].wait()
                time.sleep(PAUSE_SECONDS)
                self.start(p)
            for p in [p for p, after in hold.items() if step >= after]:
                del hold[p]
                held[p] = changes
                self.processes[p].send_signal(signal.SIGSTOP)
            over = self.processes[0].poll() is not None
            for p in [p for p, before in held.items() if changes > before or over]:
                del held[p]
                self.processes[p].send_signal(signal.SIGCONT)
            time.sleep(0.02)
        codes = [process.returncode for process in self.processes.values()]
        if codes[0] == 0:  # who was held to the end of the run comes too late for it
            codes = [0 if code == PeerLost.exit_code else code for code in codes]
        if any(codes):
            said = "; ".join(f"site {p}: {code}, {self._said(p)}" for p, code in enumerate(codes) if code)
            raise LabError(f"a site failed ({said})")

    def _seen(self) -> tuple[int, int]:
        """The last step that is written down, and how often workers came or went."""
        try:
            text = self.written.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0, 0
        steps = re.findall(r'"kind":"stepped","step":(\d+)', text)
        return int(steps[-1]) if steps else 0, text.count('"kind":"workers_changed"')

    def _said(self, p: int) -> str:
        lines = (self.folder / f"{p}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing said"

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
