"""A plan or a run as an execution trace in the Chakra schema of MLCommons, for simulators of networks such as ASTRA-sim.

::

    des_loc.0.et … des_loc.7.et    one file for each worker (an NPU, in the simulators' words), and one more for a server
    des_loc.comm_groups.json       who takes part in the collectives of each group: {"1": [0, 1, 2, 3]}

A file is a sequence of length-delimited protobuf messages: one GlobalMetadata, then Nodes (the fields and their numbers are facts of
`mlcommons/chakra`, ``schema/protobuf/et_def.proto``, version 0.0.4). What becomes of a run:

==========================  ===================================================================================================
local steps                 COMP_NODE: those between two exchanges of a worker together, with their duration
all_reduce, all_gather      COMM_COLL_NODE at every worker that takes part, with the number of their group in ``pg_name``; ``comm_size`` is the
                            payload of one worker (of an all_gather its own part)
reduce, gather              COMM_SEND_NODE at each worker, COMM_RECV_NODE at the server, which is the NPU after the last worker
broadcast                   COMM_SEND_NODE at the server, else at a worker that does not receive; COMM_RECV_NODE at those that do
==========================  ===================================================================================================

What is sent in a local step comes after its computing, in the ledger's order, but broadcasts that come first in a step (what workers
fetch, or missed) before it. The next step waits for it, or that which is ``overlap`` steps later where the method has such an option. A worker that is down has no nodes. Bytes are those of the ledger, seconds of computing the
plan's, or those that a run measured as `lab.runs.columns.pace` understands them. How long an exchange takes, the simulator says.

ASTRA-sim is given the beginning of the files' names (``--workload-configuration``) and the groups (``--comm-group-configuration``).
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from lab.costs.network import pace_TW
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.ground.files import write_atomically
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns, slowness, turns
from lab.runs.plan import plan

SCHEMA = "0.0.4"
COMP, SEND, RECV, COLL = 4, 5, 6, 7  # types of nodes
COLLECTIVES = {"all_reduce": 0, "all_gather": 2}
DIMENSIONS = 4  # of a network, all of which a collective may use: as many as ASTRA-sim takes where nothing is said
MOST_NODES = 2_000_000
UP = {
    "reduce": 1,
    "gather": 1,
    "broadcast": 0,
    "all_reduce": 1,
    "all_gather": 1,
}  # payloads that a worker sends to a server


@dataclass(frozen=True)
class Course:
    """What happens in a run, as far as a network is concerned.

    seconds_TW
        of computing, by local step and worker, ``[steps, workers]``; 0 where it is down.
    sent
        records in the order of sending.
    served
        whether everything goes to and from a server.
    overlap
        local steps that go on until what was sent is waited for.
    """

    name: str
    seconds_TW: np.ndarray
    sent: Sequence[Sent]
    served: bool = False
    overlap: int = 0


def of_plan(recipe: Recipe, device: str = "h100", devices_per_worker: int = 1, steps: int | None = None) -> Course:
    """What a recipe will do in its first ``steps`` local steps, with the seconds of a plan (`lab.runs.plan.plan`) on such devices."""
    planned = plan(recipe, device=device, devices_per_worker=devices_per_worker)
    steps = min(recipe.steps, steps or recipe.steps)
    each = [sum(len(record.workers) for record in kind) for kind in planned.calendar.kinds]
    _refuse_above(int(np.array(each)[planned.calendar.which_T[:steps]].sum()))
    slow = np.array([recipe.scenario.slow.get(w, 1.0) for w in range(recipe.num_workers)])
    sent = list(takewhile(lambda record: record.step <= steps, planned.calendar))
    pace = pace_TW(planned.turns, recipe.steps, recipe.num_workers)[:steps]
    seconds_TW = planned.up_TW[:steps] * planned.seconds_per_step * slow * pace
    return Course(recipe.id, seconds_TW, sent, planned.served, _overlap(recipe.to_dict()))


def of_run(run: Columns, name: str, steps: int | None = None) -> Course:
    """What a run has done in its first ``steps`` local steps, with the seconds that they took, had each worker a machine of its own."""
    if run.started is None:
        raise RecipeError(f"{name} has no events yet: run it, or leave --run out for what its recipe will do")
    started, num_workers = run.started, run.num_workers
    end = min(len(run.step), steps or len(run.step))
    sent = [record for record in run.ledger if record.step <= end]
    _refuse_above(sum(len(record.workers) for record in sent))
    slow = slowness(started)
    share = int(started.environment.get("threads", 1)) / num_workers
    share_W = share * np.array([slow.get(w, 1.0) for w in range(num_workers)])
    up_TW = np.array([[x is not None for x in row] for row in run.loss_W[:end]]).reshape(-1, num_workers)
    served = any(record.op in ("reduce", "gather") for record in run.ledger)
    pace = pace_TW(list(turns(run.recipe, run.seated)), end, num_workers)
    seconds_TW = up_TW * np.array(run.seconds[:end])[:, None] * share_W * pace
    return Course(name, seconds_TW, sent, served, _overlap(started.recipe))


def _overlap(recipe: dict[str, Any]) -> int:
    found = recipe["method"].get("overlap", 0)
    return found if isinstance(found, int) else 0


def _refuse_above(num_exchanges: int) -> None:
    if 2 * num_exchanges > MOST_NODES:
        raise RecipeError(
            f"this trace would have up to {2 * num_exchanges:,} nodes, and {MOST_NODES:,} is the most: take fewer steps (--steps)"
        )


# --- messages --------------------------------------------------------------------------------------------------------


@cache
def messages() -> dict[str, Any]:
    """The classes of the messages that are written, by name, made of the schema's field numbers. Raises RecipeError without protobuf."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ModuleNotFoundError:
        raise RecipeError("protobuf is not installed, which writes traces: pip install 'isthmus[trace]'") from None
    package, kinds = "ChakraProtoMsg", descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="et_def.proto", package=package, syntax="proto3")

    def message(name: str, *fields: tuple[str, int, str], many: Sequence[str] = (), one_of: str = "") -> None:
        made = file.message_type.add(name=name)
        if one_of:
            made.oneof_decl.add(name=one_of)
        for called, number, kind in fields:
            new = made.field.add(name=called, number=number)
            new.label = kinds.LABEL_REPEATED if called in many else kinds.LABEL_OPTIONAL
            if kind[0].isupper():
                new.type, new.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                new.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
            if one_of and called not in ("name", "doc_string"):
                new.oneof_index = 0

    values = [
        ("int32_val", 7, "int32"),
        ("int64_val", 9, "int64"),
        ("bool_val", 27, "bool"),
        ("bool_list", 28, "BoolList"),
    ]
    message("BoolList", ("values", 1, "bool"), many=["values"])
    message("AttributeProto", ("name", 1, "string"), *values, ("string_val", 29, "string"), one_of="value")
    message("GlobalMetadata", ("version", 1, "string"), ("attr", 2, "AttributeProto"), many=["attr"])
    message(
        "Node",
        ("id", 1, "uint64"),
        ("name", 2, "string"),
        ("type", 3, "int32"),  # an enumeration, which is written alike
        ("ctrl_deps", 4, "uint64"),
        ("data_deps", 5, "uint64"),
        ("duration_micros", 7, "uint64"),
        ("attr", 10, "AttributeProto"),
        many=["ctrl_deps", "data_deps", "attr"],
    )
    pool = descriptor_pool.DescriptorPool()  # its own: that of all may know the schema already
    pool.Add(file)
    names = ("AttributeProto", "GlobalMetadata", "Node")
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{n}")) for n in names}


def _attribute(name: str, value: bool | int | str | list[bool], small: bool = False) -> Any:
    """``small``: of 32 bits, as feeders expect the numbers of NPUs and tags."""
    make = messages()["AttributeProto"]
    if isinstance(value, list):
        made = make(name=name)
        made.bool_list.values.extend(value)
        return made
    if isinstance(value, bool):
        return make(name=name, bool_val=value)
    if isinstance(value, str):
        return make(name=name, string_val=value)
    return make(name=name, int32_val=value) if small else make(name=name, int64_val=value)


# --- nodes -----------------------------------------------------------------------------------------------------------


@dataclass
class Npu:
    """The trace of one worker, or of the server, as far as it is written.

    micros_T
        microseconds of computing until the end of each local step, whole numbers ``[steps + 1]``.
    """

    name: str
    micros_T: np.ndarray
    overlap: int = 0
    num: int = 0  # nodes so far
    done: int = 0  # local steps that they have
    ready: list[int] = field(default_factory=list)  # nodes that whatever comes next waits for
    last: int | None = None  # exchange
    arriving: deque[tuple[int, list[int]]] = field(default_factory=deque)  # step after which exchanges are waited for
    out: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        about = [_attribute("made_by", "isthmus"), _attribute("name", self.name)]
        self._write(messages()["GlobalMetadata"](version=SCHEMA, attr=about))

    def _write(self, message: Any) -> None:
        from google.protobuf import proto

        proto.serialize_length_prefixed(message, self.out)

    def add(self, name: str, kind: int, attributes: Iterable[Any], after: int | None = None, micros: int = 0) -> int:
        """A node that waits for what is ``ready`` (and, for order alone, for node ``after``); returns its number."""
        node = messages()["Node"](id=self.num, name=name, type=kind, data_deps=self.ready, duration_micros=micros)
        if after is not None and after not in self.ready:
            node.ctrl_deps.append(after)
        node.attr.append(_attribute("is_cpu_op", False))
        node.attr.extend(attributes)
        self._write(node)
        self.num += 1
        return self.num - 1

    def compute(self, until: int) -> None:
        """Go on to the end of local step ``until``."""
        while self.done < until:
            end = min(until, self.arriving[0][0]) if self.arriving else until
            micros = int(self.micros_T[end] - self.micros_T[self.done])
            if micros:
                steps = [_attribute("first_step", self.done + 1), _attribute("num_steps", end - self.done)]
                self.ready = [self.add(f"local steps {self.done + 1} to {end}", COMP, steps, micros=micros)]
            self.done = end
            while self.arriving and self.arriving[0][0] <= self.done:
                self.ready += self.arriving.popleft()[1]

    def exchange(self, step: int, nodes: Iterable[tuple[str, int, list[Any]]]) -> None:
        """What is sent and received in one record after local step ``step``, all of it at the same time."""
        self.compute(step)
        nodes = list(nodes)
        made = [self.add(name, kind, attributes, self.last) for name, kind, attributes in nodes]
        self.last = made[-1]
        if self.overlap and nodes[0][1] == COLL:
            self.arriving.append((step + self.overlap, made))
        else:
            self.ready = made


class Writer:
    """The traces of all workers, and of a server if there is one."""

    def __init__(self, course: Course):
        steps, self.num_workers = course.seconds_TW.shape
        self.course, self.served = course, course.served
        micros = np.zeros((steps + 1, self.num_workers), dtype=np.int64)
        micros[1:] = np.rint(course.seconds_TW.cumsum(0) * 1e6)  # of sums, so that nothing is lost by rounding
        names = [f"{course.name}, worker {w}" for w in range(self.num_workers)]
        self.npus = [Npu(name, micros[:, w], course.overlap) for w, name in enumerate(names)]
        if self.served:
            self.npus.append(Npu(f"{course.name}, server", np.zeros(steps + 1, dtype=np.int64)))
        self.groups: dict[tuple[int, ...], int] = {}
        self._tag = 0
        up_TW = course.seconds_TW > 0
        for step, records in groupby(course.sent, key=lambda record: record.step):
            computed = step - 1  # steps that come before it
            for record in records:
                if record.op != "broadcast":
                    computed = step
                self._exchange(record, computed, up_TW[step - 1])
        for npu in self.npus:
            npu.compute(steps)
            if not npu.num:  # a simulator wants something to begin with
                npu.add("never up", COMP, [])

    def _exchange(self, record: Sent, computed: int, up_W: np.ndarray) -> None:
        if self.served:
            self._with_server(record, computed)
        elif record.op == "broadcast":
            self._from_peers(record, computed, up_W)
        elif len(record.workers) > 1:
            self._collective(record, computed)

    def _collective(self, record: Sent, computed: int) -> None:
        group = self.groups.setdefault(record.workers, len(self.groups) + 1)
        attributes = [
            _attribute("comm_type", COLLECTIVES[record.op]),
            _attribute("comm_size", record.bytes_each),
            _attribute("involved_dim", [True] * DIMENSIONS),
            _attribute("pg_name", str(group)),
            *_about(record),
        ]
        for w in record.workers:
            self.npus[w].exchange(computed, [(_title(record), COLL, attributes)])

    def _with_server(self, record: Sent, computed: int) -> None:
        server, n = self.num_workers, len(record.workers)
        down = {"all_gather": n, "all_reduce": 1, "broadcast": 1}.get(record.op, 0)  # payloads that a worker receives
        if UP[record.op]:
            self._messages(record, computed, [(w, server) for w in record.workers], record.bytes_each)
        if down:
            self._messages(record, computed, [(server, w) for w in record.workers], down * record.bytes_each)

    def _from_peers(self, record: Sent, computed: int, up_W: np.ndarray) -> None:
        """Each receives from a worker that does not, or where all do from the next one."""
        others = [w for w in np.flatnonzero(up_W).tolist() if w not in record.workers]
        following = [*record.workers[1:], record.workers[0]]
        sources = others[:1] * len(record.workers) or following
        pairs = [(a, b) for a, b in zip(sources, record.workers, strict=True) if a != b]
        self._messages(record, computed, pairs, record.bytes_each)

    def _messages(self, record: Sent, computed: int, pairs: Sequence[tuple[int, int]], num_bytes: int) -> None:
        """Messages from NPU to NPU, each with a tag of its own."""
        at: dict[int, list[tuple[str, int, list[Any]]]] = {}
        for source, target in pairs:
            self._tag += 1
            ends = {"comm_src": source, "comm_dst": target, "comm_tag": self._tag}
            attributes = [_attribute(name, value, small=True) for name, value in ends.items()]
            attributes += [_attribute("comm_size", num_bytes), *_about(record)]
            at.setdefault(source, []).append((_title(record), SEND, attributes))
            at.setdefault(target, []).append((_title(record), RECV, attributes))
        for npu, nodes in sorted(at.items()):  # sent before received: a simulator may do one after the other
            self.npus[npu].exchange(computed, sorted(nodes, key=lambda node: node[1]))


def _title(record: Sent) -> str:
    return f"{record.op} {record.state}, step {record.step}"


def _about(record: Sent) -> list[Any]:
    return [_attribute("state", record.state), _attribute("local_step", record.step)]


def write(course: Course, folder: Path) -> str:
    """Write the files of a trace; returns what was written, in words.

    Raises
    ------
    RecipeError
        where protobuf is not installed, or the files cannot be written.
    """
    writer = Writer(course)
    groups_file = folder / f"{course.name}.comm_groups.json"
    groups = {str(number): list(workers) for workers, number in writer.groups.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, npu in enumerate(writer.npus):
            write_atomically(folder / f"{course.name}.{number}.et", npu.out.getvalue())
        write_atomically(groups_file, json.dumps(groups).encode())
    except OSError as error:
        raise RecipeError(
            f"cannot write {error.filename or folder} ({error.strerror or error}): give another folder"
        ) from None
    nodes = sum(npu.num for npu in writer.npus)
    server = f" and a server (NPU {writer.num_workers})" if writer.served else ""
    return (
        f"{len(course.seconds_TW):,} local steps of {writer.num_workers} workers{server}: {nodes:,} nodes in "
        f"{folder / course.name}.*.et, {len(groups)} groups in {groups_file}"
    )
