"""Execution traces: read back by a reader of their bytes, they hold the ledger and the seconds, and play as the lab prices them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.costs.network import Network
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.columns import Columns
from lab.runs.plan import plan
from lab.runs.trainer import train
from lab.study import trace
from lab.study.trace import Course, of_plan, of_run, write
from tests.support.chakra import COLL, COMP, RECV, SEND, Node, play, read
from tests.support.recipes import recipe

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

LINK = Network(bits_per_second=8e6)  # a byte is a microsecond, and nothing has a latency
OPS = {0: "all_reduce", 2: "all_gather"}


def written(course: Course, folder: Path) -> tuple[list[list[Node]], dict[str, list[int]]]:
    write(course, folder)
    files = sorted(folder.glob(f"{course.name}.*.et"), key=lambda file: int(file.suffixes[-2][1:]))
    assert [file.name for file in files] == [f"{course.name}.{npu}.et" for npu in range(len(files))]
    traces = []
    for file in files:
        version, nodes = read(file)
        assert version == "0.0.4"
        assert [node.id for node in nodes] == list(range(len(nodes)))
        assert all(d < node.id for node in nodes for d in (*node.data_deps, *node.ctrl_deps))
        assert nodes
        traces.append(nodes)
    groups = json.loads((folder / f"{course.name}.comm_groups.json").read_text())
    return traces, groups


def on_a_ring(node: Node, n: int) -> float:
    size = node.attributes["comm_size"]
    if node.type == COLL:
        return LINK.seconds(OPS[node.attributes["comm_type"]], size, tuple(range(n)))
    return size / 1e6


HAND = Course(
    "by_hand",
    np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]),
    [
        Sent(2, "all_reduce", "params", (0, 1), {"mlp": 600, "norm": 400}),
        Sent(3, "broadcast", "params", (2,), {"mlp": 1000}),
        Sent(3, "all_gather", "exp_avg", (0, 1, 2), {"mlp": 50}),
        Sent(3, "all_reduce", "params", (0, 1, 2), {"mlp": 1000}),
    ],
)


def test_nodes_by_hand(tmp_path: Path) -> None:
    """Steps between exchanges are one node; a broadcast that comes first is before the step, its source is who does not receive."""
    traces, groups = written(HAND, tmp_path)
    assert groups == {"1": [0, 1], "2": [0, 1, 2]}
    told = [[(n.type, n.micros, n.data_deps, n.ctrl_deps) for n in nodes] for nodes in traces]
    assert told[0] == [
        (COMP, 2_000_000, [], []),
        (COLL, 0, [0], []),
        (SEND, 0, [1], []),
        (COMP, 1_000_000, [2], []),
        (COLL, 0, [3], [2]),
        (COLL, 0, [4], []),
        (COMP, 1_000_000, [5], []),
    ]
    assert told[1] == [
        (COMP, 4_000_000, [], []),
        (COLL, 0, [0], []),
        (COMP, 2_000_000, [1], []),
        (COLL, 0, [2], [1]),
        (COLL, 0, [3], []),
        (COMP, 2_000_000, [4], []),
    ]
    assert told[2] == [
        (COMP, 4_000_000, [], []),
        (RECV, 0, [0], []),
        (COMP, 4_000_000, [1], []),
        (COLL, 0, [2], [1]),
        (COLL, 0, [3], []),
        (COMP, 4_000_000, [4], []),
    ]
    first, gathered = traces[0][1], traces[0][4]
    assert first.attributes == {
        "is_cpu_op": False,
        "comm_type": 0,
        "comm_size": 1000,
        "involved_dim": [True] * 4,
        "pg_name": "1",
        "state": "params",
        "local_step": 2,
    }
    assert (gathered.attributes["comm_type"], gathered.attributes["comm_size"]) == (2, 50)
    assert gathered.attributes["pg_name"] == "2"
    sent, received = traces[0][2], traces[2][1]
    for node in (sent, received):
        ends = [node.attributes[name] for name in ("comm_src", "comm_dst", "comm_tag", "comm_size")]
        assert ends == [0, 2, 1, 1000]
    assert first.name == "all_reduce params, step 2"
    assert traces[0][0].attributes == {"is_cpu_op": False, "first_step": 1, "num_steps": 2}


def test_types_of_attributes(tmp_path: Path) -> None:
    """As Chakra's own feeder reads them, which takes another field of the same value for 0."""
    traces, _ = written(HAND, tmp_path)
    kinds = {name: kind for nodes in traces for n in nodes for name, kind in n.kinds.items()}
    assert kinds == {
        "is_cpu_op": 27,
        "comm_type": 9,
        "comm_size": 9,
        "involved_dim": 28,
        "pg_name": 29,
        "state": 29,
        "local_step": 9,
        "first_step": 9,
        "num_steps": 9,
        "comm_src": 7,
        "comm_dst": 7,
        "comm_tag": 7,
    }


def test_what_is_used_later_is_waited_for_later(tmp_path: Path) -> None:
    """With an overlap of one step the step after the exchange goes on beside it, and the one after that waits."""
    seconds = np.ones((4, 2))
    sent = [Sent(1, "all_reduce", "params", (0, 1), {"mlp": 10}), Sent(3, "all_reduce", "params", (0, 1), {"mlp": 10})]
    traces, groups = written(Course("late", seconds, sent, overlap=1), tmp_path)
    told = [(n.type, n.data_deps, n.ctrl_deps) for n in traces[0]]
    assert told == [
        (COMP, [], []),
        (COLL, [0], []),
        (COMP, [0], []),
        (COMP, [2, 1], []),
        (COLL, [3], [1]),
        (COMP, [3], []),
    ]
    slow = play(traces, groups, lambda node, n: 1.5)  # half a second longer than what hides it
    assert slow == [5.0, 5.0]  # 1, 1.5 that step 2 hides in part, 1 for step 3, and 1.5 beside which step 4 runs


def test_a_server_is_one_more(tmp_path: Path) -> None:
    """Each hands in, the server waits for all, and hands out."""
    sent = [
        Sent(1, "broadcast", "params", (0, 1), {"a": 100}),
        Sent(2, "reduce", "params", (0, 1), {"a": 30}),
        Sent(3, "broadcast", "params", (1,), {"a": 100}),
    ]
    traces, groups = written(Course("served", np.ones((3, 2)), sent, served=True), tmp_path)
    assert groups == {}
    assert len(traces) == 3
    assert [(n.type, n.data_deps, n.attributes["comm_size"]) for n in traces[2]] == [
        (SEND, [], 100),
        (SEND, [], 100),
        (RECV, [0, 1], 30),
        (RECV, [0, 1], 30),
        (SEND, [2, 3], 100),
    ]
    assert [n.type for n in traces[0]] == [RECV, COMP, SEND, COMP]
    assert [n.type for n in traces[1]] == [RECV, COMP, SEND, RECV, COMP]


def test_microseconds_are_not_lost(tmp_path: Path) -> None:
    """Of a million steps of 0.4 µs each, in stretches between exchanges, nothing is rounded away."""
    sent = [Sent(step, "all_reduce", "params", (0, 1), {"a": 1}) for step in range(3, 1000, 3)]
    traces, _ = written(Course("short", np.full((1000, 2), 4e-7), sent), tmp_path)
    assert sum(n.micros for n in traces[0]) == 400


STORMY = Scenario(outages=(Outage(1, 5, 3), Outage(2, 2)), slow={0: 2.0})
CASES: dict[str, Recipe] = {
    "ddp": recipe("ddp"),
    "des_loc": recipe(),
    "diloco in int8": recipe("diloco", codecs={"params": "int8"}, steps=70),
    "des_loc, stormy": recipe(scenario=STORMY, steps=8),
    "noloco": recipe("noloco", num_workers=4, steps=100),
    "streaming_diloco": recipe("streaming_diloco", steps=40),
    "fomoe": Recipe.of("fomoe", ["steps=64", "placement.overlap=2", "placement.kind=random", "placement.every=1"]),
    "prelort": Recipe.of("prelort", ["model=nano", "start=", "steps=64"]),
}


def handed(ledger: list[Sent], served: bool) -> Counter[tuple[int, int, str, str]]:
    """Bytes by (worker, step, operation, state), without collectives of one."""
    out: Counter[tuple[int, int, str, str]] = Counter()
    for record in ledger:
        if served or len(record.workers) > 1 or record.op == "broadcast":
            for w in record.workers:
                out[w, record.step, record.op, record.state] += record.bytes_each
    return out


@pytest.mark.parametrize("name", CASES)
def test_a_plan_holds_the_ledger_and_plays_to_its_end(name: str, tmp_path: Path) -> None:
    """Every byte of every worker is in its file, nothing else is; nobody waits for ever; computing is who is up times the plan's seconds."""
    asked = CASES[name]
    course, planned = of_plan(asked), plan(asked)
    traces, groups = written(course, tmp_path)
    found: Counter[tuple[int, int, str, str]] = Counter()
    for npu, nodes in enumerate(traces[: asked.num_workers]):
        for n in nodes:
            from_peer = n.type == SEND and not course.served  # a source of a broadcast
            if n.type != COMP and not from_peer:
                op, state = n.name.partition(",")[0].split(" ", 1)
                found[npu, n.attributes["local_step"], op, state] += n.attributes["comm_size"]
    assert found == handed(planned.ledger, course.served)
    assert course.served == planned.served
    ends = play(traces, groups, on_a_ring)
    up = asked.scenario.trace(asked.num_workers, asked.steps, asked.seed).sum(0)
    for w in range(asked.num_workers):
        seconds = sum(n.micros for n in traces[w]) * 1e-6
        assert seconds == pytest.approx(
            float(up[w]) * planned.seconds_per_step * asked.scenario.slow.get(w, 1.0), abs=1e-6
        )
        assert ends[w] >= seconds - 1e-9


@pytest.mark.parametrize("name", ["ddp", "des_loc", "diloco in int8", "noloco"])
def test_a_plan_plays_as_it_is_priced(name: str, tmp_path: Path) -> None:
    """On a ring without latencies, at the end of all steps: the trace played by its bytes alone takes what the lab's network says."""
    asked = CASES[name]
    course = of_plan(asked, "laptop")
    traces, groups = written(course, tmp_path)
    bill = plan(asked, device="laptop").calendar.price(
        LINK, num_workers=asked.num_workers, compute_seconds=plan(asked, device="laptop").seconds_per_step
    )
    assert max(play(traces, groups, on_a_ring)) == pytest.approx(bill.total_seconds, abs=1e-5)
    assert bill.communication_seconds > 0.001


def test_a_run_has_the_seconds_that_it_took(tmp_path: Path) -> None:
    """As if each worker had a machine of its own; slow ones are slow, those that were down did nothing. Same ledger."""
    columns = train(recipe(scenario=STORMY, steps=8))
    course = of_run(columns, "mine")
    traces, groups = written(course, tmp_path)
    assert columns.started is not None
    threads = columns.started.environment["threads"]
    for w, slow in enumerate((2.0, 1.0, 1.0)):
        up = [t for t, row in zip(columns.seconds, columns.loss_W, strict=True) if row[w] is not None]
        want = sum(up) * slow * threads / 3
        assert sum(n.micros for n in traces[w]) * 1e-6 == pytest.approx(want, abs=2e-6)
    assert list(course.sent) == columns.ledger.records
    play(traces, groups, on_a_ring)


def test_a_worker_that_is_never_up_has_a_node(tmp_path: Path) -> None:
    """A simulator refuses an empty file."""
    course = of_plan(recipe(scenario=Scenario(outages=(Outage(2, 6),))))
    traces, groups = written(course, tmp_path)
    assert [(n.type, n.micros) for n in traces[2]] == [(COMP, 0)]
    play(traces, groups, on_a_ring)


def test_all_receive_from_their_neighbours(tmp_path: Path) -> None:
    """Where everybody receives nobody is a source for all; messages in a circle do not lock each other out."""
    sent = [Sent(1, "broadcast", "params", (0, 1, 2), {"a": 10})]
    traces, groups = written(Course("circle", np.ones((1, 3)), sent), tmp_path)
    assert [[n.type for n in nodes] for nodes in traces] == [[SEND, RECV, COMP]] * 3
    assert {(n.attributes["comm_src"], n.attributes["comm_dst"]) for nodes in traces for n in nodes[:2]} == {
        (1, 0),
        (2, 1),
        (0, 2),
    }
    assert play(traces, groups, lambda node, n: 1.0) == [2.0, 2.0, 2.0]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recipe and of a stored run, of all steps and of the first."""
    monkeypatch.chdir(tmp_path)
    out = CliRunner().invoke(main, ["trace", "des_loc", "-o", "steps=64", "--out", "t", "--steps", "40"])
    assert out.exit_code == 0, out.output
    name = Recipe.of("des_loc", ["steps=64"]).id
    nodes = sum(len(read(file)[1]) for file in (tmp_path / "t").glob(f"{name}.*.et"))
    assert out.output == (
        f"40 local steps of 4 workers: {nodes} nodes in t/{name}.*.et, 1 groups in t/{name}.comm_groups.json\n"
    )
    assert sum(n.attributes.get("num_steps", 0) for n in read(tmp_path / "t" / f"{name}.0.et")[1]) == 40
    columns = train(recipe(), "runs/mine")
    out = CliRunner().invoke(main, ["trace", "--run", "mine"])
    assert out.exit_code == 0, out.output
    _, nodes = read(tmp_path / "traces/mine.0.et")
    sizes = sum(n.attributes.get("comm_size", 0) for n in nodes)
    assert sizes == columns.ledger.total_bytes(worker=0)
    assert isinstance(columns, Columns)


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much, nowhere to put it, and without protobuf: one line each."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"cannot write .*: give another folder"):
        write(HAND, tmp_path / "file" / "folder")
    with pytest.raises(RecipeError, match="has no events yet"):
        of_run(Columns(), "mine")
    monkeypatch.setattr(trace, "MOST_NODES", 20)
    with pytest.raises(RecipeError, match=r"up to 36 nodes, and 20 is the most: take fewer steps \(--steps\)"):
        of_plan(recipe("ddp"))
    assert len(of_plan(recipe("ddp"), steps=3).sent) == 3
    trace.messages.cache_clear()
    for module in [name for name in sys.modules if name.startswith("google.protobuf")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(RecipeError, match=r"pip install 'isthmus\[trace\]'"):
        write(HAND, tmp_path)
