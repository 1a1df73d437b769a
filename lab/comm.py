"""The communicator: the only place where tensors of different workers meet, and where bytes are counted.

What it writes down is *payload*: the bytes of the tensors that a worker hands over. What links then carry under a
topology, and how long that takes, is priced from the ledger afterwards (`lab.network`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lab.codecs import Codec
from lab.errors import RecipeError
from lab.events import Sent
from lab.fleet import Block, Fleet, Stack


class Ledger:
    """What was sent: `Sent` records in the order of sending."""

    def __init__(self, records: Iterable[Sent] = ()):
        self.records: list[Sent] = list(records)
        self._read = 0

    def __iter__(self) -> Iterator[Sent]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def new(self) -> list[Sent]:
        """Records since the last call."""
        fresh, self._read = self.records[self._read :], len(self.records)
        return fresh

    def by(self, *keys: str, worker: int | None = None) -> dict[tuple[object, ...], int]:
        """Payload bytes summed over workers (or of one worker), by any of ``step``, ``op``, ``state``, ``group``, ``worker``."""
        sums: dict[tuple[object, ...], int] = defaultdict(int)
        for r in self.records:
            workers = r.workers if worker is None else [w for w in r.workers if w == worker]
            for group, num_bytes in r.payload_bytes.items():
                if "worker" in keys:
                    for w in workers:
                        full = {"step": r.step, "op": r.op, "state": r.state, "group": group, "worker": w}
                        sums[tuple(full[k] for k in keys)] += num_bytes
                elif workers:
                    full = {"step": r.step, "op": r.op, "state": r.state, "group": group}
                    sums[tuple(full[k] for k in keys)] += num_bytes * len(workers)
        return dict(sums)

    def total_bytes(self, worker: int | None = None) -> int:
        """Payload bytes of all workers together, or of one."""
        return sum(self.by(worker=worker).values())


class Communicator:
    """Means, broadcasts and gathers over the holders that are up.

    Parameters
    ----------
    fleet
        the workers; ``fleet.up`` says who takes part.
    codecs
        what travels instead of a state's tensors, by state name. Methods do not know about it.
    """

    def __init__(self, fleet: Fleet, codecs: Mapping[str, Codec] | None = None):
        self.fleet = fleet
        self.codecs = dict(codecs or {})
        self.ledger = Ledger()
        self.t = 0  # the local step that is being finished
        self.residuals: dict[str, Stack] = {}  # what error feedback still owes, by state
        self.observer: Callable[[str, Stack], None] | None = None  # may look at copies before they are averaged

    @torch.no_grad()
    def mean(
        self,
        stack: Stack,
        state: str,
        *,
        minus: Stack | None = None,
        otherwise: Stack | None = None,
        weights_W: Sequence[float] | None = None,
        among: Sequence[bool] | None = None,
        codec: Codec | None = None,
        to_server: bool = False,
    ) -> Stack:
        """Every up holder hands over its copy of ``stack`` (less the agreed ``minus``); all learn the mean, ``[1, P]``.

        With ``weights_W`` (one per worker) the mean is weighted; with ``among`` only marked workers take part;
        ``codec`` is one that belongs to the method itself. A block with no holder up keeps what is known: difference zero,
        its values in ``otherwise``, or else the mean of the last copies; nothing is counted for it. With ``to_server`` only
        a server learns the mean; what it then hands out is sent, and counted, by itself.
        """
        codec = codec or self.codecs.get(state)
        if codec is not None and codec.sparse and minus is None and state != "grads":
            raise RecipeError(
                f"codecs.{state} = a topk codec sends only part of a tensor, but this method averages whole {state}: "
                "use bfloat16 or int8, or a method that sends differences (ddp, diloco)"
            )
        if codec is not None and codec.error_feedback and stack.layout is not self.fleet.layout:
            raise RecipeError(
                f"codecs.{state} remembers what it did not send, but this method sends {state} in parts: "
                "use topk:…:forget, e3m0, int8 or bfloat16"
            )
        if self.observer is not None:
            self.observer(state, stack)
        agreed: list[Tensor] = []
        sent: dict[tuple[int, ...], dict[str, int]] = {}
        for i, (block, copies) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            rows = stack.rows(i, self.fleet.up if among is None else among)
            base = None if minus is None else minus.blocks[i]
            if not rows:
                known = copies.mean(0, keepdim=True) if otherwise is None else otherwise.blocks[i]
                agreed.append(known if base is None else torch.zeros_like(base))
                continue
            weights_H = _normalised(weights_W, block, rows, copies)
            if copies.is_meta:  # a dry run: shapes are enough, and those of one row
                payload = sum(x.nbytes for x in ((copies[0],) if codec is None else codec.encode(copies[0])))
                agreed.append(copies[:1])
            elif codec is None:
                some = copies if len(rows) == len(copies) else copies[rows]
                payload = some[0].nbytes
                mean = some.mean(0, keepdim=True) if weights_H is None else weights_H[None] @ some
                agreed.append(mean if base is None else mean - base)
            else:
                mean, payload = torch.zeros_like(copies[:1]), -1
                for k, row in enumerate(rows):
                    x = copies[row] if base is None else copies[row] - base[0]
                    decoded, row_bytes = self._through(codec, x, state, stack, i, row)
                    if payload not in (-1, row_bytes):
                        raise AssertionError(f"codec {codec!r} sent rows of unequal size")
                    payload = row_bytes
                    mean[0].add_(decoded, alpha=1 / len(rows) if weights_H is None else float(weights_H[k]))
                agreed.append(mean)
            _count(sent, tuple(block.holders[r] for r in rows), block.group, payload)
        summed = codec is None or codec.reducible  # on the way
        op = ("reduce" if summed else "gather") if to_server else ("all_reduce" if summed else "all_gather")
        self._write(op, state, sent)
        return Stack(stack.layout, agreed)

    def mean_(self, stack: Stack, state: str, *, weights_W: Sequence[float] | None = None) -> None:
        """In place: every holder that is up ends with the mean over the holders that are up."""
        stack.copy_(self.mean(stack, state, weights_W=weights_W), self.fleet.up)

    @torch.no_grad()
    def broadcast_(self, agreed: Stack, stack: Stack, state: str, to: Sequence[int]) -> None:
        """The workers ``to`` receive an agreed state, one payload each, and copy it into ``stack``.

        ``stack is agreed`` is a shared state: this process keeps it once, but each of them has to receive it.
        """
        receives = [w in to for w in range(self.fleet.num_workers)]
        if stack is not agreed:
            stack.copy_(agreed, receives)
        sent: dict[tuple[int, ...], dict[str, int]] = {}
        for i, block in enumerate(stack.layout.blocks):
            workers = tuple(w for w in block.holders if receives[w])
            if workers:
                _count(sent, workers, block.group, agreed.blocks[i].nbytes)
        self._write("broadcast", state, sent)

    @torch.no_grad()
    def send_(self, agreed: Stack, stack: Stack, state: str, cells: Sequence[tuple[int, int]]) -> None:
        """Single rows (block, row) of ``stack`` receive their agreed values: what comes to a worker that did not have it.

        A worker that is down receives nothing now; it gets all that it missed when it is back.
        """
        sent: dict[tuple[int, ...], dict[str, int]] = {}
        for i, row in cells:
            block = stack.layout.blocks[i]
            if not stack.blocks[i].is_meta:
                stack.blocks[i][row] = agreed.blocks[i][0]
                if state in self.residuals:
                    self.residuals[state].blocks[i][row] = 0.0  # what its former holder owed
            if self.fleet.up[block.holders[row]]:
                _count(sent, (block.holders[row],), block.group, agreed.blocks[i].nbytes)
        self._write("broadcast", state, sent)

    @torch.no_grad()
    def gather(self, stack: Stack, state: str) -> dict[int, dict[str, Tensor]]:
        """The copies of all holders that are up, by worker and name: for aggregations that are not means."""
        if self.observer is not None:
            self.observer(state, stack)
        out: dict[int, dict[str, Tensor]] = {w: {} for w, up in enumerate(self.fleet.up) if up}
        sent: dict[tuple[int, ...], dict[str, int]] = {}
        for i, block in enumerate(stack.layout.blocks):
            rows = stack.rows(i, self.fleet.up)
            if not rows:
                continue
            _count(sent, tuple(block.holders[r] for r in rows), block.group, stack.blocks[i][0].nbytes)
            for name in block.names:
                for row in rows:
                    out[block.holders[row]][name] = stack[name][row]
        self._write("gather", state, sent)
        return out

    def collect(self, tensors: Mapping[int, Mapping[str, Tensor]], state: str, of: Stack) -> None:
        """Workers hand in tensors of their own making, by worker and name: parts of what they hold in ``of``."""
        if self.observer is not None:
            self.observer(state, of)
        self._write_each("gather", tensors, state)

    def hand_out(self, tensors: Mapping[int, Mapping[str, Tensor]], state: str) -> None:
        """A server hands tensors of its own making to workers, by worker and name."""
        self._write_each("broadcast", tensors, state)

    def agreed(self, stack: Stack, among: Sequence[bool] | None = None, otherwise: Stack | None = None) -> Stack:
        """The mean over the holders that are up (or marked in ``among``): for looking at it. Nothing is sent or counted.

        Where there are none: the values in ``otherwise``, or the mean of the last copies.
        """
        blocks = []
        for i, copies in enumerate(stack.blocks):
            rows = stack.rows(i, self.fleet.up if among is None else among)
            if not rows and otherwise is not None:
                blocks.append(otherwise.blocks[i])
                continue
            blocks.append((copies[rows] if 0 < len(rows) < len(copies) else copies).mean(0, keepdim=True))
        return Stack(stack.layout, blocks)

    def _through(self, codec: Codec, x: Tensor, state: str, stack: Stack, i: int, row: int) -> tuple[Tensor, int]:
        """Encode and decode one row, with error feedback where the codec has it; the decoded row and the bytes that travel."""
        if codec.error_feedback:
            if state not in self.residuals:
                self.residuals[state] = Stack(stack.layout, [torch.zeros_like(b) for b in stack.blocks])
            owed = self.residuals[state].blocks[i][row]
            x = x + owed
        encoded = codec.encode(x)
        decoded = codec.decode(encoded, x)
        if codec.error_feedback:
            owed.copy_(x - decoded)
        return decoded, sum(part.nbytes for part in encoded)

    def _write_each(self, op: str, tensors: Mapping[int, Mapping[str, Tensor]], state: str) -> None:
        """Workers whose tensors are equally large go into one record."""
        alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for worker, named in tensors.items():
            groups: dict[str, int] = {}
            for name, x in named.items():
                place = self.fleet.layout.place.get(name)
                group = self.fleet.layout.blocks[place[0]].group if place is not None else "stack"
                groups[group] = groups.get(group, 0) + x.nbytes
            alike.setdefault(tuple(groups.items()), []).append(worker)
        self._write(op, state, {tuple(sorted(who)): dict(groups) for groups, who in alike.items()})

    def _write(self, op: str, state: str, sent: Mapping[tuple[int, ...], dict[str, int]]) -> None:
        for workers, groups in sent.items():
            self.ledger.records.append(Sent(self.t, op, state, workers, groups))


def _count(sent: dict[tuple[int, ...], dict[str, int]], workers: tuple[int, ...], group: str, payload: int) -> None:
    """Blocks with the same workers and group go into one record."""
    groups = sent.setdefault(tuple(sorted(workers)), {})
    groups[group] = groups.get(group, 0) + payload


def _normalised(weights_W: Sequence[float] | None, block: Block, rows: list[int], like: Tensor) -> Tensor | None:
    if weights_W is None:
        return None
    weights_H = torch.tensor([weights_W[block.holders[r]] for r in rows], dtype=like.dtype, device=like.device)
    return weights_H / weights_H.sum()
