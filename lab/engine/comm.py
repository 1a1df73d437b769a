"""The communicator: the only place where tensors of different workers meet, and where bytes are counted.

What it writes down is *payload*: the bytes of the tensors that a worker hands over. What links then carry under a
topology, and how long that takes, is priced from the ledger afterwards (`lab.costs.network`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lab.engine.codecs import Codec
from lab.engine.fleet import Fleet
from lab.engine.ledger import Ledger
from lab.engine.stack import Block, Stack, at_least_float32
from lab.engine.world import Contribution, Named, OneProcess, World
from lab.events import Sent
from lab.ground.errors import RecipeError

Sizes = dict[tuple[int, ...], dict[str, int]]  # payload bytes of each of some workers, by group


@dataclass(frozen=True)
class Meeting:
    """What an observer is given at an average or gather, before the method uses the result."""

    state: str
    stack: Stack  # the copies
    mean: Stack | None  # with what was subtracted; None where they were gathered
    plain: bool = False  # every process has the mean, over all that are up, of the copies as they are
    handed: Named | None = None  # by `Communicator.gather`


@dataclass(frozen=True)
class _Asked:
    """A call of `Communicator.mean`."""

    stack: Stack
    state: str
    minus: Stack | None
    fallback: Stack | None
    weights_W: Sequence[float] | None
    codec: Codec | None
    to_server: bool

    @property
    def operation(self) -> str:
        """What the network does with the rows: sums them on the way, or collects them."""
        summed = self.codec is None or self.codec.reducible
        return ("reduce" if summed else "gather") if self.to_server else ("all_reduce" if summed else "all_gather")


class Communicator:
    """Means, broadcasts and gathers over the holders that are up.

    Parameters
    ----------
    fleet
        the workers; ``fleet.up`` says who takes part.
    codecs
        what travels instead of a state's tensors, by state name. Methods do not know about it.
    world
        the other processes, where the workers are spread over several. Each writes the same ledger: that of all workers.
    """

    def __init__(self, fleet: Fleet, codecs: Mapping[str, Codec] | None = None, world: World | None = None):
        self.fleet = fleet
        self.codecs = dict(codecs or {})
        self.world = world or OneProcess()
        self.ledger = Ledger()
        self.t = 0  # the local step that is being finished
        self.residuals: dict[str, Stack] = {}  # what error feedback still owes, by state
        self._observers: list[Callable[[Meeting], None]] = []

    def subscribe(self, observer: Callable[[Meeting], None]) -> None:
        """Have ``observer`` called at every average and gather, before the result is returned; in the order of subscription."""
        self._observers.append(observer)

    @torch.no_grad()
    def mean(
        self,
        stack: Stack,
        state: str,
        *,
        minus: Stack | None = None,
        fallback: Stack | None = None,
        weights_W: Sequence[float] | None = None,
        participants: Sequence[bool] | None = None,
        codec: Codec | None = None,
        to_server: bool = False,
    ) -> Stack:
        """Every up holder hands over its copy of ``stack`` (less the agreed ``minus``); all learn the mean, ``[1, P]``.

        With ``weights_W`` (one per worker) the mean is weighted; with ``participants`` only marked workers take part;
        ``codec`` is the method's own. A block with no holder up keeps what is known, uncounted: difference zero, its values
        in ``fallback``, or the mean of the last copies. With ``to_server`` only a server learns it, and hands it out by itself.
        """
        asked = _Asked(stack, state, minus, fallback, weights_W, codec or self.codecs.get(state), to_server)
        self._refuse(asked)
        up, sent = self.fleet.up if participants is None else participants, Sizes()
        agreed, partial, known = list[Tensor](), list[Contribution](), list[Contribution]()
        for i, (block, copies) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            workers = block.taking_part(up)
            if not workers:
                agreed.append(_known(asked, i, known))
                continue
            own = None if stack.dry else self._contribution(asked, i, workers)
            count(sent, workers, block.group, _payload(asked.codec, block, copies, own))
            agreed.append(copies[:1] if own is None else own.partial_sum)  # in a dry run the shape of one row is enough
            if own is not None and (to_server or not set(workers) <= set(block.holders)):
                partial.append(own)
        self.world.reduce_(partial, asked.codec, to_server)
        self.world.reduce_(known, None, to_server)  # as it is: nobody sends it
        mean = Stack(stack.layout, agreed)
        self._write(asked.operation, state, sent)
        if not stack.dry:
            plain = asked.codec is None and weights_W is None and participants is None and not to_server
            self._notify(lambda: Meeting(state, stack, mean if minus is None else mean + minus, plain))
        return mean

    def _refuse(self, asked: _Asked) -> None:
        """Raise RecipeError for a sparse codec on whole parameters or states: it may be used on differences only."""
        codec, state = asked.codec, asked.state
        if codec is not None and codec.sparse and asked.minus is None and state != "grads":
            raise RecipeError(
                f"codecs.{state} = a topk codec sends only part of a tensor, but this method averages whole {state}: "
                "use bfloat16 or int8, or a method that sends differences (ddp, diloco)"
            )
        if codec is not None and codec.error_feedback and asked.stack.layout is not self.fleet.layout:
            raise RecipeError(
                f"codecs.{state} remembers what it did not send, but this method sends {state} in parts: "
                "use topk:…:forget, e3m0, int8 or bfloat16"
            )

    def _contribution(self, asked: _Asked, i: int, workers: Sequence[int]) -> Contribution:
        """Return what this process's rows contribute to the mean of the ``i``-th block over ``workers``."""
        block, copies = asked.stack.layout.blocks[i], asked.stack.blocks[i]
        weights = _normalised(asked.weights_W, workers)
        base = None if asked.minus is None else asked.minus.blocks[i]
        rows = [(row, w) for row, w in enumerate(block.holders) if w in weights]
        dtype = at_least_float32(copies.dtype)
        part = copies.new_zeros(1 if asked.to_server else min(1, len(copies)), block.numel, dtype=dtype)
        encoded: dict[int, tuple[Tensor, ...]] = {}
        if asked.codec is not None:
            for row, w in rows:
                x = copies[row] if base is None else copies[row] - base[0]
                encoded[w], decoded = self._through(asked.codec, x, asked, i, row)
                part[0].add_(decoded, alpha=weights[w])
        elif rows:
            some = copies if len(rows) == len(copies) else copies[[row for row, _ in rows]]
            weights_H = some.new_tensor([weights[w] for _, w in rows], dtype=dtype)
            all_here = len(rows) == len(workers)
            plain = all_here and asked.weights_W is None
            part = some.mean(0, keepdim=True, dtype=dtype) if plain else weights_H[None] @ some.to(dtype)
            if base is not None:
                part = part - (base if all_here else base * weights_H.sum())
        return Contribution(weights, encoded, part.to(copies.dtype))

    def mean_(self, stack: Stack, state: str, *, weights_W: Sequence[float] | None = None) -> None:
        """In place: every holder that is up ends with the mean over the holders that are up."""
        stack.copy_(self.mean(stack, state, weights_W=weights_W), self.fleet.up)

    @torch.no_grad()
    def broadcast_(
        self, agreed: Stack, stack: Stack, state: str, to: Sequence[int], known_by: Sequence[bool] | None = None
    ) -> None:
        """The workers ``to`` receive an agreed state, one payload each, and copy it into ``stack``.

        ``stack is agreed`` is a shared state: a process keeps it once, but each of them has to receive it. ``known_by``
        marks the workers that have it already (default: all others).
        """
        receives = [w in to for w in range(self.fleet.num_workers)]
        sent: Sizes = {}
        moves: list[tuple[Sequence[int], Sequence[int], Tensor]] = []
        for block, x in zip(stack.layout.blocks, agreed.blocks, strict=True):
            workers = block.taking_part(receives)
            owners = [w for w in block.everywhere if (not receives[w] if known_by is None else known_by[w])]
            if workers:
                count(sent, workers, block.group, block.numel * x.itemsize)
                moves.append((owners or self.world.owners(block), workers, x))
        self.world.broadcast_newest_(moves)
        if stack is not agreed:
            stack.copy_(agreed, receives)
        self._write("broadcast", state, sent)

    @torch.no_grad()
    def send_(self, agreed: Stack, stack: Stack, state: str, cells: Sequence[tuple[int, int]]) -> None:
        """Single copies (block, place among its holders) of ``stack`` receive their agreed values: what comes to a worker.

        A worker that is down receives nothing now; it gets all that it missed when it is back.
        """
        sent: Sizes = {}
        for i, k in cells:
            block, mine = stack.layout.blocks[i], stack.blocks[i]
            worker = block.everywhere[k]
            if worker in block.holders and not mine.is_meta:
                row = block.holders.index(worker)
                mine[row] = agreed.blocks[i][0]
                if state in self.residuals:
                    self.residuals[state].blocks[i][row] = 0.0  # what its former holder owed
            if self.fleet.up[worker]:
                count(sent, (worker,), block.group, block.numel * mine.itemsize)
        self._write("broadcast", state, sent)

    @torch.no_grad()
    def gather(self, stack: Stack, state: str) -> Named:
        """The copies of all holders that are up, by worker and name, at a server: for aggregations that are not means.

        The server is the first process; at the others these are shapes without numbers (``is_meta``).
        """
        out: dict[int, dict[str, Tensor]] = {w: {} for w, up in enumerate(self.fleet.up) if up}
        sent: Sizes = {}
        for block, copies in zip(stack.layout.blocks, stack.blocks, strict=True):
            workers = block.taking_part(self.fleet.up)
            if workers:
                count(sent, workers, block.group, block.numel * copies.itemsize)
            for name, w in product(block.names, workers):
                out[w][name] = stack.cell_or_shape(name, w)
        self._write("gather", state, sent)
        handed = self.world.gather_to_server(out)
        self._notify(lambda: Meeting(state, stack, None, handed=handed))
        return handed

    def collect(self, tensors: Named, state: str, of: Stack, level: int = 0) -> Named:
        """Workers hand in tensors of their own making, by worker and name: parts of what they hold in ``of``.

        Those of workers elsewhere are given by their shape. What comes back is as of `gather`. With a ``level`` above 0 they are
        tensors of nodes of a tree, each under one of its workers: the server keeps all nodes, so they are counted and do not travel.
        """
        if level == 0:
            self._notify(lambda: Meeting(state, of, None))
        self._write_each("gather", tensors, state, level)
        return tensors if level else self.world.gather_to_server(tensors)

    def hand_out(self, tensors: Named, state: str, level: int = 0) -> Named:
        """A server hands tensors of its own making to workers, by worker and name: what those here (at the server: all) got.

        ``level`` as in `collect`: to nodes.
        """
        self._write_each("broadcast", tensors, state, level)
        return tensors if level else self.world.scatter_from_server(tensors)

    def agreed(self, stack: Stack, participants: Sequence[bool] | None = None, fallback: Stack | None = None) -> Stack:
        """The mean over the holders that are up (or marked in ``participants``): for looking at it. Nothing is sent or counted.

        Where there are none: the values in ``fallback``, or the mean of the last copies.
        """
        blocks: list[Tensor] = []
        partial: list[Contribution] = []
        for i, (block, copies) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            workers = [w for w in block.everywhere if (self.fleet.up if participants is None else participants)[w]]
            if not workers and fallback is not None:
                blocks.append(fallback.blocks[i])
                continue
            held_by = workers or block.everywhere
            rows = [row for row, w in enumerate(block.holders) if w in held_by]
            blocks.append(_mean(copies, rows, held_by, partial))
        self.world.reduce_(partial, None)
        return Stack(stack.layout, blocks)

    def _notify(self, meeting: Callable[[], Meeting]) -> None:
        if self._observers:
            seen = meeting()
            for observer in self._observers:
                observer(seen)

    def _through(self, codec: Codec, x: Tensor, asked: _Asked, i: int, row: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Encode and decode one row of the ``i``-th block, with error feedback where the codec has it."""
        if codec.error_feedback:
            if asked.state not in self.residuals:
                self.residuals[asked.state] = asked.stack.zeros_like()
            owed = self.residuals[asked.state].blocks[i][row]
            x = x + owed
        encoded = codec.encode(x)
        decoded = codec.decode(encoded, x)
        if codec.error_feedback:
            owed.copy_(x - decoded)
        return encoded, decoded

    def _write_each(self, op: str, tensors: Named, state: str, level: int = 0) -> None:
        """Write ledger records for these workers; workers with equal sizes share one record."""
        alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for worker, named in tensors.items():
            groups: dict[str, int] = {}
            for name, x in named.items():
                place = self.fleet.layout.place.get(name)
                group = self.fleet.layout.blocks[place[0]].group if place is not None else "stack"
                groups[group] = groups.get(group, 0) + x.nbytes
            alike.setdefault(tuple(groups.items()), []).append(worker)
        self._write(op, state, {tuple(sorted(who)): dict(groups) for groups, who in alike.items()}, level)

    def _write(self, op: str, state: str, sent: Sizes, level: int = 0) -> None:
        for workers, groups in sent.items():
            self.ledger.records.append(Sent(self.t, op, state, workers, groups, level))


def count(sent: Sizes, workers: tuple[int, ...], group: str, payload: int) -> None:
    """Add the payload of one block to ``sent``; blocks with the same workers and group share one record."""
    groups = sent.setdefault(tuple(sorted(workers)), {})
    groups[group] = groups.get(group, 0) + payload


def _payload(codec: Codec | None, block: Block, like: Tensor, own: Contribution | None = None) -> int:
    """Return the bytes of one row, or of its encoding. All rows have the same size, so any row will do."""
    if codec is None:
        return block.numel * like.itemsize
    rows = [*own.encoded.values()] if own is not None else []
    sizes = {sum(x.nbytes for x in row) for row in rows or [codec.encode(like.new_zeros(block.numel))]}
    if len(sizes) > 1:
        raise AssertionError(f"codec {codec!r} sent rows of unequal size")
    return sizes.pop()


def _known(asked: _Asked, i: int, partial: list[Contribution]) -> Tensor:
    """Return the agreed value of a block that no participant holds: zero for differences, the fallback, or the mean of the last copies."""
    if asked.minus is not None:
        return torch.zeros_like(asked.minus.blocks[i])
    if asked.fallback is not None:
        return asked.fallback.blocks[i]
    copies = asked.stack.blocks[i]
    if asked.stack.layout.blocks[i].personal:  # of which nobody else learns anything
        return copies[:1] if len(copies) else copies.new_zeros(1, copies.shape[1])
    return _mean(copies, range(len(copies)), asked.stack.layout.blocks[i].everywhere, partial)


def _mean(copies: Tensor, rows: Sequence[int], workers: Sequence[int], partial: list[Contribution]) -> Tensor:
    """Return the plain mean over the copies of ``workers``; ``rows`` are those in this process."""
    if copies.is_meta:  # a dry run: the shape of one row is enough
        return copies[:1]
    some = copies[rows] if len(rows) < len(copies) else copies
    if len(rows) == len(workers):
        return some.mean(0, keepdim=True)
    dtype = at_least_float32(copies.dtype)
    part = (some.sum(0, keepdim=True, dtype=dtype)[: len(copies)] / len(workers)).to(copies.dtype)
    partial.append(Contribution(dict.fromkeys(workers, 1 / len(workers)), {}, part))
    return part


def _normalised(weights_W: Sequence[float] | None, workers: Sequence[int]) -> dict[int, float]:
    """Return the weight of each of ``workers`` in a mean; the weights sum to 1 in float64, whatever is averaged."""
    if weights_W is None:
        return dict.fromkeys(workers, 1 / len(workers))
    weights = torch.tensor([weights_W[w] for w in workers], dtype=torch.float64, device="cpu")
    return dict(zip(workers, (weights / weights.sum()).tolist(), strict=True))
