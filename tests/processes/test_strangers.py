"""What somebody else on the machine, or beyond it, can reach of a run: no port that is not needed, no word that is not known."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lab.events import Event, Stepped, to_json
from lab.ground.errors import RecipeError
from lab.processes import peers, rendezvous
from lab.processes.environment import STORE, Launched, launched
from lab.processes.peers import resolve
from lab.recipes.recipe import Recipe
from lab.runs.control import STRANGERS, Channel, Listener
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare
from tests.support import ROOT
from tests.support.launched import SMALL, begun, free_port, unbroken
from tests.support.stories import close_events, story

PATIENCE = 60.0


# --- the sockets of a run --------------------------------------------------------------------------------------------


class Stranger:
    """Looks at all sockets of some processes and connects to each port: garbage, silence, and what looks like one of them."""

    def __init__(self, pid: int):
        self.pid, self.over = pid, threading.Event()
        self.listening: set[tuple[str, int]] = set()
        self.addresses: set[str] = set()  # that sockets of any kind are bound to
        self.kept: list[socket.socket] = []
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Stranger:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        for s in self.kept:
            s.close()

    def _look(self) -> None:
        while not self.over.wait(0.02):
            with contextlib.suppress(psutil.Error):
                mine = psutil.Process(self.pid)
                for process in (mine, *mine.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        self._visit(process)

    def _visit(self, process: psutil.Process) -> None:
        for c in process.net_connections(kind="inet"):
            self.addresses.add(c.laddr.ip)
            place = (c.laddr.ip, c.laddr.port)
            if c.status == psutil.CONN_LISTEN and place not in self.listening:
                self.listening.add(place)
                for word in [
                    *(struct.pack("<q", k) for k in range(4)),
                    os.urandom(4096),
                    b'["ask", 1]\n',
                    *[b""] * 100,
                ]:
                    with contextlib.suppress(OSError):
                        s = socket.create_connection(place, 1)
                        s.sendall(word)
                        self.kept.append(s)


IN_A_NOTEBOOK = """
import sys
import lab
recipe = lab.Recipe.of("des_loc", sys.argv[2:])
if __name__ == "__main__":
    run = lab.start(recipe, folder=sys.argv[1], processes=2, paused=True)
    run.step(2)
    while not (run.t == 2 and run.status == "paused"):
        assert not run.finished.wait(0.01)
    run.resume()
    run.wait()
"""
FORKED = """
import sys
import lab
from accelerate import notebook_launcher
from lab.runs.launch import train
recipe = lab.Recipe.of("des_loc", sys.argv[2:])
notebook_launcher(train, (recipe, sys.argv[1]), num_processes=2, rdzv_backend="isthmus")
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("way", ["lab.start", "notebook_launcher", "accelerate launch"])
def test_a_stranger_reaches_nothing_and_holds_up_nothing(way: str, tmp_path: Path) -> None:
    """Whatever starts the processes of one machine. A port that Accelerate's launcher itself opens is not looked at."""
    path = tmp_path / "run"
    RunFolder(path).write_recipe(Recipe.of("des_loc", SMALL))
    python, port = [sys.executable, "-P", "-c"], str(free_port())
    command = {
        "lab.start": [*python, IN_A_NOTEBOOK, str(path), *SMALL],
        "notebook_launcher": [*python, FORKED, str(path), *SMALL],
        "accelerate launch": [
            *(
                sys.executable,
                "-m",
                "accelerate.commands.accelerate_cli",
                "launch",
                "--multi_gpu",
                "--num_machines",
                "1",
            ),
            *("--num_processes", "2", "--main_process_port", port, "-m", "lab", "resume", str(path)),
        ],
    }[way]
    own = 1 if way == "accelerate launch" else 0
    env = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    started = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Stranger(started.pid) as stranger:
        out, said = started.communicate(timeout=200)
    assert started.returncode == 0, out + said
    theirs = {place for place in stranger.listening if place[1] == int(port)}
    assert len(theirs) == own
    assert {ip for ip, _ in stranger.listening - theirs} <= {"127.0.0.1"}
    assert len(stranger.listening - theirs) == (way == "lab.start"), "but for the line of `lab.start` nothing listens"
    assert ("the launcher listens to every network" in said) == bool(own)
    steps = [e for e in story(RunFolder(path).events()) if isinstance(e, Stepped)]
    assert close_events(steps, [e for e in unbroken() if isinstance(e, Stepped)])


@pytest.mark.slow
@pytest.mark.processes
def test_nothing_of_a_run_listens_and_no_pickle_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a restart, which meets anew. Python's own audit tells of every pickle in any of the processes."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.addaudithook(lambda e, a: e == 'pickle.find_class' and open({str(tmp_path / 'read')!r}, 'a').write(repr(a)))"
    )
    monkeypatch.setattr("tests.support.launched.ROOT", f"{tmp_path}{os.pathsep}{ROOT}")
    folder, launcher = begun(tmp_path, "--restarts", "1")
    with Stranger(launcher.pid) as stranger:
        for child in psutil.Process(launcher.pid).children(recursive=True):
            if child.environ().get("RANK") == "1":
                child.kill()
        assert launcher.wait(timeout=100) == 0, launcher.communicate()
    assert folder.done
    assert not stranger.addresses, "processes of one machine need no network"
    assert not (tmp_path / "read").exists(), (tmp_path / "read").read_text()


@pytest.mark.slow
@pytest.mark.processes
def test_a_process_that_is_interrupted_alone_ends_the_run_with_a_line(tmp_path: Path) -> None:
    folder, launcher = begun(tmp_path, steps=100_000)
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert f"stopped; go on with: lab resume {folder.path} --processes 2" in said.splitlines()


# --- the line to whoever started a run -------------------------------------------------------------------------------


def heard(listener: Listener, num: int) -> Callable[[], list[Event]]:
    """Begin to listen until so many events have come; the result waits for them."""
    events: list[Event] = []
    over = threading.Event()

    def listen() -> None:
        for event in listener.events(lambda: not over.is_set()):
            events.append(event)
            if len(events) == num:
                over.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def wait() -> list[Event]:
        thread.join(PATIENCE)
        assert not thread.is_alive()
        return events

    return wait


@contextlib.contextmanager
def throng(port: int) -> Iterator[list[socket.socket]]:
    """Strangers of all kinds at a port."""
    words = [
        b"",
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        b'["event", "{}"]\n',
        b"[" * 100_000 + b"\n",
        b'["go", true]\n',
    ]
    with contextlib.ExitStack() as stack:
        met = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(100 + len(words))]
        for s, word in zip(met, words, strict=False):
            with contextlib.suppress(OSError):
                s.sendall(word)
        yield met


def step(t: int) -> Event:
    return Stepped(t, [1.0], 0.1, 0.1)


def test_strangers_at_the_channel_neither_end_nor_hold_up_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred who say nothing, and some who say what they should not, before the first process comes and when it comes again."""
    listener = Listener(asks=False)
    port, word, answer, _ = listener.environment()["ISTHMUS_LINE"].split()
    wait = heard(listener, 4)
    for generation in range(2):
        with throng(int(port)):
            channel = Channel(socket.create_connection(("127.0.0.1", int(port))))
            channel.send(word)
            assert channel.receive(PATIENCE) == [answer]
            for t in range(1, 3 + 2 * generation):  # the second generation does the same steps again
                channel.send("event", to_json(step(t)))
            if generation == 0:
                channel.connection.close()
    assert [e.step for e in wait()] == [1, 2, 3, 4]
    assert len(listener._strangers) <= STRANGERS


def test_who_says_half_of_the_word_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right or wrong, the beginning of a word is answered by silence, and after a while by the end."""
    monkeypatch.setattr("lab.runs.control.STRANGER_SECONDS", 0.5)
    listener = Listener(asks=False)
    port, word, _, _ = listener.environment()["ISTHMUS_LINE"].split()
    wait = heard(listener, 1)
    for begin in (f'["{word[:9]}', '["000000000'):
        with socket.create_connection(("127.0.0.1", int(port))) as s:
            s.sendall(begin.encode())
            s.settimeout(0.2)
            with pytest.raises(TimeoutError):
                s.recv(1)
            s.settimeout(PATIENCE)
            assert s.recv(1) == b""
    channel = Channel(socket.create_connection(("127.0.0.1", int(port))))
    channel.send(word)
    channel.send("event", to_json(step(1)))
    assert len(wait()) == 1


class Alone:
    """The first process, as far as `Reports` asks."""

    first, timeout_seconds = True, 1.0

    def all_gather_json(self, value: object, about_bytes: int = 0) -> list[object]:
        return [value]


@pytest.mark.parametrize("says", [b"", b'["another word"]\n', b"\xff\xfe nonsense\n", b'["go", false]\n'])
def test_who_takes_the_port_of_a_notebook_that_has_gone_cannot_turn_anything(
    says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.runs.control import Reports

    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    s, _ = impostor.accept()
                    s.sendall(says)
                    s.close()

        threading.Thread(target=take, daemon=True).start()
        monkeypatch.setenv("ISTHMUS_LINE", f"{impostor.getsockname()[1]} word answer 1")
        reports = Reports(Alone())  # type: ignore[arg-type]
        assert reports._next_message(1, False) == ["go", True], "as if nobody were there: stop, with a checkpoint"
        impostor.shutdown(socket.SHUT_RDWR)


# --- the folder in which processes meet ------------------------------------------------------------------------------


def test_processes_meet_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can look into it, what the dead left is removed, and a port that a living run has is not taken again."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(rendezvous, "LONGEST", 1000)
    folder = rendezvous.own_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    left = [folder / f"port-29500-{pid}-{began}" for pid, began in ((2**22 + 1, 5), (os.getpid(), 5))]
    for path in left:
        path.touch()
        os.utime(path, (5, 5))
    mine = rendezvous.file_of_first(29500, 0, 1.0)
    assert not any(path.exists() for path in left)
    assert rendezvous.file_of_first(29500, 1, 1.0) == mine
    with pytest.raises(Exception, match=r"did not come within 0\.1 s"):
        rendezvous.file_of_first(2950, 1, 0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        began = round(psutil.Process(other.pid).create_time())
        mine.rename(folder / f"port-29500-{other.pid}-{began}")
        with pytest.raises(RecipeError, match="another run on this machine goes on under MASTER_PORT=29500"):
            rendezvous.file_of_first(29500, 0, 1.0)
        other.communicate(b"\n")
    folder.chmod(0o755)
    with pytest.raises(RecipeError, match="is not a folder that you alone can reach"):
        prepare(RunFolder(tmp_path / "run"), Recipe.of("des_loc", SMALL), 2)
    assert not (tmp_path / "run").exists()


# --- what the environment says ---------------------------------------------------------------------------------------

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", STORE)
WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def tell(**env: str) -> None:
        for name in LAUNCHER:
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    return tell


def test_what_a_launcher_says(told: Callable[..., None]) -> None:
    for alone in ({}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "1"}):
        told(**alone)
        assert launched() is None
    told(**WHOLE)
    assert launched() == Launched(1, 2, 1, None, "127.0.0.1", 29500)
    for more, one_machine in (
        ({}, True),
        ({"MASTER_ADDR": "192.0.2.1"}, False),
        ({"MASTER_ADDR": "192.0.2.1", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, False),
        ({"MASTER_ADDR": "192.0.2.1", STORE: "/tmp/x"}, True),
        ({"MASTER_ADDR": "no.such.host.invalid"}, False),
    ):
        told(**WHOLE | more)
        here = launched()
        assert here is not None
        assert here.one_machine == one_machine, more


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that this is one of 2 processes, but RANK, MASTER_ADDR, MASTER_PORT are"),
        (WHOLE | {"MASTER_PORT": " "}, "but MASTER_PORT is not set"),
        (WHOLE | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment"),
        (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment"),
        (WHOLE | {"RANK": "2"}, "RANK='2' in the environment: a launcher sets it to a whole number from 0 to 1"),
        (WHOLE | {"MASTER_PORT": "1e4"}, "MASTER_PORT='1e4'"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE='3'"),
        ({"LOCAL_RANK": "1", "ISTHMUS_LIST": "-o stepz=3"}, "unknown option 'stepz'"),
        (WHOLE | {"LOCAL_RANK": "0", "ISTHMUS_LIST": "--processes 3"}, "--processes 3 is for processes that the lab itself starts"),
        (WHOLE | {"LOCAL_RANK": "0", "ISTHMUS_LIST": "--restarts 3"}, "--restarts 3 is for processes that the lab itself starts"),
    ],
)  # fmt: skip
def test_half_an_environment_is_one_line(
    env: dict[str, str], says: str, told: Callable[..., None], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from lab.cli import main

    more = env.get("ISTHMUS_LIST", "").split()
    told(**{name: value for name, value in env.items() if name in LAUNCHER})
    out = CliRunner().invoke(main, ["run", "des_loc", "-o", "corpus=grammar", *more, "--runs", str(tmp_path / "runs")])
    assert out.exit_code == 2
    (line,) = out.stderr.splitlines()
    assert line.startswith("lab: ")
    assert says in line
    assert not (tmp_path / "runs").exists()


def test_an_empty_word_of_the_environment_means_nothing() -> None:
    """``python -m lab`` with ``WORLD_SIZE=`` runs one process."""
    command = [sys.executable, "-P", "-m", "lab", "--version"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "", "LOCAL_RANK": ""}
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0


def test_a_network_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth99")
    elsewhere = Launched(0, 2, 0, 1, "127.0.0.1", 29500)
    with pytest.raises(
        RecipeError, match=r"GLOO_SOCKET_IFNAME=eth99: this machine has no network of that name: use one of .*lo"
    ):
        peers._choose_network(elsewhere)
    with pytest.raises(
        RecipeError, match=r"MASTER_ADDR=no\.such\.host\.invalid: no machine of that name is known here"
    ):
        resolve("no.such.host.invalid", 0.0)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth99")
    peers._choose_network(Launched(0, 2, 0, 2, "127.0.0.1", 29500))
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"]
    assert any(a.address == "127.0.0.1" for a in psutil.net_if_addrs()[os.environ["GLOO_SOCKET_IFNAME"]])


# --- the backend -----------------------------------------------------------------------------------------------------

TOGETHER = """
import json, os, sys, torch
import torch.distributed as dist
from lab.processes.peers import PeerLost, join, listening
world, out = join(int(os.environ["WORLD_SIZE"]), 5.0), {}
me, num = dist.get_rank(), dist.get_world_size()
for dtype in (torch.float64, torch.bfloat16, torch.int64):
    for n in (0, 1, 2, 5, 300_001):
        x = torch.arange(n, dtype=dtype) + me
        dist.all_reduce(x)
        whole = sum(torch.arange(n, dtype=dtype).double() + p for p in range(num))
        assert torch.allclose(x.double(), whole, rtol=0.02 if dtype is torch.bfloat16 else 0), (dtype, n)
        every = [torch.empty_like(x) for _ in range(num)]
        dist.all_gather(every, x)
        assert all(torch.equal(y, x) for y in every), "all have the same bits"
some = dist.new_group([0, num - 1])
if me in (0, num - 1):
    x = torch.full((3, 2), float(me + 1))
    dist.all_reduce(x, group=some)
    assert (x == num + 1).all()
    dist.broadcast(x, num - 1, group=some)
big = torch.full((1_000_000,), float(me))
dist.broadcast(big, num - 1)
assert (big == num - 1).all()
if me:
    dist.send(torch.tensor([me]), 0)
else:
    for p in range(1, num):
        dist.recv(got := torch.zeros(1, dtype=torch.int64), p)
        assert got == p
dist.barrier()
if me == num - 1:
    os._exit(0)
try:
    with listening(5.0):
        dist.all_reduce(torch.ones(10))
except PeerLost:
    os._exit(0)
os._exit(1)
"""


@pytest.mark.processes
def test_processes_of_one_machine_talk_over_sockets_of_their_own(tmp_path: Path) -> None:
    """Sums of all sizes and kinds, in all and in some of three processes; who is left alone is told."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-c", TOGETHER]
    started = [
        subprocess.Popen(command, env=env | {"RANK": str(p), "LOCAL_RANK": str(p)}, stderr=subprocess.PIPE, text=True)
        for p in range(3)
    ]
    said = [p.communicate(timeout=100)[1] for p in started]
    assert [p.returncode for p in started] == [0, 0, 0], said
