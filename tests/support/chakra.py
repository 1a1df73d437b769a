"""Execution traces in the Chakra schema, read from their bytes alone, and played as a simulator of networks does.

Numbers of fields are those of ``et_def.proto``; nothing here knows protobuf, or the code that writes traces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMP, SEND, RECV, COLL = 4, 5, 6, 7


@dataclass
class Node:
    id: int = 0
    name: str = ""
    type: int = 0
    ctrl_deps: list[int] = field(default_factory=list)
    data_deps: list[int] = field(default_factory=list)
    micros: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)  # number of the field that holds each attribute's value


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a message: a number, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = varint(data, at)
            yield number, data[at : at + length]
            at += length
        else:
            size = {1: 8, 5: 4}[wire]
            yield number, struct.unpack("<Q" if size == 8 else "<I", data[at : at + size])[0]
            at += size


def packed(data: Any) -> list[int]:
    """Repeated numbers, packed into bytes or a single one."""
    if isinstance(data, int):
        return [data]
    out, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        out.append(value)
    return out


def attribute(data: bytes) -> tuple[str, int, Any]:
    name, kind, value = "", 0, None
    for number, found in fields(data):
        if number == 1:
            name = found.decode()
        else:
            kind, value = number, found
    if kind == 29:
        value = value.decode()
    elif kind == 27:
        value = bool(value)
    elif kind == 28:
        value = [bool(x) for n, x in fields(value) for x in packed(x)]
    return name, kind, value


def node(data: bytes) -> Node:
    out = Node()
    for number, value in fields(data):
        match number:
            case 1:
                out.id = value
            case 2:
                out.name = value.decode()
            case 3:
                out.type = value
            case 4:
                out.ctrl_deps += packed(value)
            case 5:
                out.data_deps += packed(value)
            case 7:
                out.micros = value
            case 10:
                name, kind, found = attribute(value)
                out.attributes[name], out.kinds[name] = found, kind
            case _:
                raise AssertionError(f"field {number}")
    return out


def read(file: Path) -> tuple[str, list[Node]]:
    """The version in the first message of a file, and the nodes in the others."""
    data, at, messages = file.read_bytes(), 0, []
    while at < len(data):
        length, at = varint(data, at)
        messages.append(data[at : at + length])
        at += length
    assert at == len(data)
    version = dict(fields(messages[0]))[1].decode()
    return version, [node(message) for message in messages[1:]]


class Npu:
    """One of them, playing its trace: one exchange at a time, the lowest number first; computing goes on beside it."""

    def __init__(self, number: int, nodes: list[Node]):
        self.number, self.left = number, {n.id: n for n in nodes}
        self.finished: dict[int, float] = {}
        self.free = 0.0  # when its last exchange was over
        self.collectives: dict[str, int] = {}  # so far, by group

    def when(self, n: Node) -> float | None:
        """When what a node waits for is over; None where that is not known yet."""
        needs = [*n.data_deps, *n.ctrl_deps]
        if not all(d in self.finished for d in needs):
            return None
        return max((self.finished[d] for d in needs), default=0.0)

    def finish(self, n: Node, time: float) -> None:
        self.finished[n.id] = time
        del self.left[n.id]
        if n.type != COMP:
            self.free = time


def play(traces: list[list[Node]], groups: dict[str, list[int]], seconds: Callable[[Node, int], float]) -> list[float]:
    """When each NPU is done: computing takes its time, a collective begins when all of its group have come to it.

    ``seconds(node, n)`` of a collective among n, or of a message (n = 1), which leaves without waiting for who receives it.
    """
    npus = [Npu(number, nodes) for number, nodes in enumerate(traces)]
    arrived: dict[tuple[int, ...], tuple[float, int]] = {}  # messages, by source, target and tag: when, and bytes
    there: dict[
        tuple[str, int], dict[int, tuple[Node, float]]
    ] = {}  # who has come to a collective of a group, and when
    while any(npu.left for npu in npus):
        before = sum(len(npu.left) for npu in npus), sum(map(len, there.values()))
        for npu in npus:
            _go_on(npu, arrived, there, seconds)
        for meeting, came in list(there.items()):
            if sorted(came) == groups[meeting[0]]:
                kinds = {(n.attributes["comm_type"], n.attributes["comm_size"], n.name) for n, _ in came.values()}
                assert len(kinds) == 1, kinds
                over = max(began for _, began in came.values()) + seconds(came[groups[meeting[0]][0]][0], len(came))
                for number, (n, _) in came.items():
                    npus[number].finish(n, over)
                del there[meeting]
        assert before != (sum(len(npu.left) for npu in npus), sum(map(len, there.values()))), "all wait for ever"
    assert not arrived, "messages that nobody received"
    return [max(npu.finished.values(), default=0.0) for npu in npus]


def _go_on(npu: Npu, arrived: dict[Any, Any], there: dict[Any, Any], seconds: Callable[[Node, int], float]) -> None:
    """As far as one can get without hearing of others."""
    busy = any(npu.number in came for came in there.values())
    for n in sorted(npu.left.values(), key=lambda n: n.id):
        began = npu.when(n)
        if began is None or (busy and n.type != COMP):
            continue
        if n.type == COMP:
            npu.finish(n, began + n.micros * 1e-6)
            continue
        began = max(began, npu.free)
        if n.type == COLL:
            group = n.attributes["pg_name"]
            npu.collectives[group] = npu.collectives.get(group, 0) + 1
            there.setdefault((group, npu.collectives[group]), {})[npu.number] = n, began
            busy = True
            continue
        ends = tuple(n.attributes[x] for x in ("comm_src", "comm_dst", "comm_tag"))
        assert npu.number == ends[n.type == RECV], n.name
        if n.type == SEND:
            over = began + seconds(n, 1)
            arrived[ends] = over, n.attributes["comm_size"]
            npu.finish(n, over)
        elif ends in arrived:
            over, size = arrived.pop(ends)
            assert size == n.attributes["comm_size"]
            npu.finish(n, max(began, over))
        else:
            busy = True
