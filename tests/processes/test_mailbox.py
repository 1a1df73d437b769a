"""Sites that talk through one place: the same run, the bytes that it is priced at, and no socket.

All recipes over 2 and 4 sites take minutes: some of each have their turn here, and ``ISTHMUS_ALL_MAILBOXES=1`` gives all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from lab.costs.network import Network
from lab.events import Sent, Started, from_json
from lab.ground.errors import RecipeError
from lab.processes.invitation import Invitation
from lab.processes.mailbox import Mailbox
from lab.processes.places import Folder
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.launch import train_over_processes
from lab.runs.sites import check_mailbox
from lab.runs.trainer import Trainer
from tests.support import ROOT
from tests.support.cases import OVER_PROCESSES
from tests.support.compared import check, run_over
from tests.support.launched import SMALL, begun, unbroken
from tests.support.lost_sites import MEASURED
from tests.support.posts import SUM, by, posts, together
from tests.support.recipes import corpus
from tests.support.stories import close_events, read, story, tell

pytestmark = pytest.mark.processes
ALL = bool(os.environ.get("ISTHMUS_ALL_MAILBOXES"))
OF_FOUR, OF_TWO = ([*OVER_PROCESSES][first :: 1 if ALL else 20] for first in (0, 0 if ALL else 10))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    for name in {*OF_FOUR, *OF_TWO}:
        tell(Trainer(OVER_PROCESSES[name], corpus=corpus()).events(RunFolder(out / name)), out, name)
    return out


def through_a_place(num: int, out: Path, names: list[str]) -> Path:
    box = out / "box"
    Invitation.new(num, {}).put(Folder(box), None)
    run_over(num, out, names=names, mailbox=box)
    return out


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return through_a_place(4, tmp_path_factory.mktemp("four"), OF_FOUR)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return through_a_place(2, tmp_path_factory.mktemp("two"), OF_TWO)


@pytest.mark.slow
@pytest.mark.timeout(1200 if ALL else 300)
@pytest.mark.parametrize("name", OF_FOUR)
def test_four_sites_of_one_worker_are_one_process_of_four(name: str, one: Path, four: Path) -> None:
    check(one, four, name)


@pytest.mark.slow
@pytest.mark.timeout(1200 if ALL else 300)
@pytest.mark.parametrize("name", OF_TWO)
def test_two_sites_of_two_workers_are_one_process_of_four(name: str, one: Path, two: Path) -> None:
    check(one, two, name)


def test_sites_open_no_socket_and_the_run_is_the_same(tmp_path: Path) -> None:
    folder, launcher = begun(tmp_path, "--mailbox", str(tmp_path / "box"))
    sites = [p for p in psutil.Process(launcher.pid).children(recursive=True) if p.environ().get("RANK") in ("0", "1")]
    assert len(sites) == 2
    assert not [c for site in sites for c in site.net_connections(kind="all") if c.status == psutil.CONN_LISTEN]
    assert not [c for site in sites for c in site.net_connections(kind="inet")]
    assert launcher.wait(100) == 0, launcher.communicate()
    assert close_events(story(folder.events()), unbroken())


def test_a_script_names_a_place(tmp_path: Path) -> None:
    columns = train_over_processes(2, Recipe.of("des_loc", SMALL), tmp_path / "run", mailbox=str(tmp_path / "box"))
    assert columns.ended is not None
    assert columns.ended.status == "done"
    assert close_events(story(RunFolder(tmp_path / "run").events()), unbroken())


def test_what_no_mailbox_can_be_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such kind of URL here: use a folder, or one of fsspec's"):
        check_mailbox("nowhere://bucket/runs", 2)
    with pytest.raises(RecipeError, match="is for several processes: say how many with --processes"):
        check_mailbox(str(tmp_path), 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written to"):
        Invitation.new(2, {}).put(Folder(tmp_path / "file"), None)


# --- what sites say to each other ---------------------------------------------------------------------------------------


def test_sums_are_in_the_order_of_the_sites(tmp_path: Path) -> None:
    """So that all have the same bits, which a sum in another order does not give."""
    mine = [torch.tensor([x]) for x in (1.0, 1e8, -1e8, 1.0)]

    def summed(group: Mailbox, p: int) -> Tensor:
        x = mine[p].clone()
        work = group.allreduce([x], SUM)
        assert x == mine[p], "the others are waited for when the sum is needed"
        work.wait()
        return x

    assert together(posts(tmp_path, 4), summed) == [torch.tensor([1.0])] * 4  # 1 + 1e8 is 1e8 in float32


def test_each_gets_what_was_meant_for_it(tmp_path: Path) -> None:
    def exchange(group: Mailbox, p: int) -> list[float]:
        told, heard, parts = torch.tensor([7.0 + p]), torch.zeros(1), [torch.zeros(1) for _ in range(3)]
        group.broadcast([told], by(1))
        group.send([torch.tensor([10.0 * p])], (p + 1) % 3)
        group.recv([heard], (p - 1) % 3)
        group.allgather([parts], [heard])
        group.barrier()
        return [*told.tolist(), *heard.tolist(), *torch.cat(parts).tolist()]

    assert together(posts(tmp_path, 3), exchange) == [
        [8.0, 20.0, 20.0, 0.0, 10.0],
        [8.0, 0.0, 20.0, 0.0, 10.0],
        [8.0, 10.0, 20.0, 0.0, 10.0],
    ]


@pytest.mark.slow
def test_a_whole_run_moves_what_its_ledger_is_priced_at(tmp_path: Path) -> None:
    """Beside that, the evaluation at its end (float64, among four), and small values, 256 bytes from each site to each."""
    through = [sys.executable, "-m", "tests.support.lost_sites", str(tmp_path), "4", "-1", "0", *MEASURED]
    done = subprocess.run(
        through, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout
    for name, recipe in MEASURED.items():
        events = [from_json(json.dumps(event)) for event in read(tmp_path, name)]
        sent = [event for event in events if isinstance(event, Sent)]
        assert len(sent) > 1
        priced = Network(topology="mailbox").price(sent, num_workers=4, steps=recipe.steps).wire_bytes_W.sum()
        moved = sum(sum(json.loads((tmp_path / f"{name} moved {p}").read_text())) for p in range(4))
        started = events[0]
        assert isinstance(started, Started)
        small, rest = divmod(moved - priced - 4 * 4 * 8 * started.num_params, 4 * 4 * 256)
        if "experts" in name:  # the evaluation moves them in another way
            assert moved > priced
        else:
            assert (rest, 0 < small < 3 * recipe.steps + 12) == (0, True), name


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "broadcast"])
def test_what_goes_up_and_down_is_what_it_is_priced_at(op: str, tmp_path: Path) -> None:
    def say(group: Mailbox, p: int) -> None:
        x = torch.ones(250)
        if op == "all_reduce":
            group.allreduce([x], SUM).wait()
        elif op == "all_gather":
            group.allgather([[torch.empty_like(x) for _ in range(4)]], [x])
        else:
            group.broadcast([x], by(0))

    sites = posts(tmp_path, 4)
    together(sites, say)
    up, down = (sum(site.moved_bytes[k] for site in sites) for k in range(2))
    receivers = 3 if op == "broadcast" else 4
    assert up + down == Network(topology="mailbox").wire_bytes(op, 1000, receivers)
    assert down == 3 * up


def test_a_mailbox_takes_as_long_as_the_busiest_link(tmp_path: Path) -> None:
    net = Network(bits_per_second=8e6, latency_seconds=0.5, topology="mailbox")
    assert net.seconds("all_reduce", 1e6, (0, 1, 2, 3)) == pytest.approx(1 + 3 + 1)
    assert net.seconds("broadcast", 1e6, (1, 2, 3)) == pytest.approx(1 + 1 + 1)
    assert net.seconds("gather", 1e6, (0, 1, 2)) == pytest.approx(1 + 3 + 1)
    assert net.seconds("all_reduce", 1e6, (0,)) == 0
    narrow = Network(bits_per_second=8e6, server_bits_per_second=16e6, topology="mailbox")
    assert narrow.seconds("all_reduce", 1e6, (0, 1, 2, 3)) == pytest.approx(4 / 2 + 12 / 2)
