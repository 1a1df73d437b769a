"""What the processes of a run exchange, by `torch.distributed`, and how they meet."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from lab.engine.codecs import Codec
from lab.engine.stack import Block, Stack, at_least_float32
from lab.engine.world import Contribution, K, Named, OneProcess, World
from lab.ground.errors import LabError, RecipeError
from lab.processes import mailbox, mesh
from lab.processes.environment import MAILBOX, STORE, Launched, launched
from lab.processes.invitation import Invitation, secret
from lab.processes.messages import Seal
from lab.processes.places import place
from lab.processes.post import Post
from lab.processes.rendezvous import file_of_first
from lab.recipes.compute import only_cpus

TIMEOUT_SECONDS = 600.0  # after which a process that does not answer counts as lost
SLOT_BYTES = 256  # small values travel in one collective if they fit into this


class PeerLost(LabError):
    """Another process of the run ended, or did not answer in time."""

    exit_code = 75  # sysexits.h: try again


class ManyProcesses:
    """Several processes; `lab.engine.world.World` says what each method is for.

    Parameters
    ----------
    num_workers
        N, a multiple of the number of processes.

    Raises
    ------
    RecipeError
        if the workers cannot be shared out evenly.
    PeerLost
        from every method, if a process ended or did not answer within ``timeout_seconds`` (of `join`).
    """

    def __init__(
        self,
        num_workers: int,
        timeout_seconds: float = TIMEOUT_SECONDS,
        device: str | torch.device = "cpu",
        post: Post | None = None,
    ):
        self.post = post  # how they talk where they leave messages for each other
        self.device = torch.device(device)  # where tensors of workers lie
        self.index, self.num, self.timeout_seconds = dist.get_rank(), dist.get_world_size(), timeout_seconds
        self.each = share_out(num_workers, self.num)
        self.mine = self.workers_of(self.index)
        self.first = self.index == 0
        self.meets_every_step = False
        self.served = False  # the first process is a server, which keeps the model
        self.alone = False  # as if this process were the only one: nobody is asked
        self._known: dict[str | tuple[int, ...], Sequence[int]] = {}
        self._groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}

    @property
    def here(self) -> Sequence[int]:
        """The processes that are there: all, but for sites that did not come in time (`lab.processes.deadline`)."""
        deadline = None if self.post is None else self.post.deadline
        return range(self.num) if deadline is None else deadline.here

    def workers_of(self, process: int) -> range:
        return range(process * self.each, (process + 1) * self.each)

    def process_of(self, worker: int) -> int:
        return worker // self.each

    def processes_of(self, workers: Iterator[int] | Sequence[int] | Mapping[int, Any]) -> tuple[int, ...]:
        return tuple(sorted({w // self.each for w in workers}))

    def begin_(self, served: bool) -> None:
        self._known.clear()
        self.served = served

    def owners(self, block: Block) -> Sequence[int]:
        """Return the holders that were up the last time that any holder was; under a server, worker 0."""
        if self.alone:
            return self.mine
        return (0,) if self.served else self._known.get(block.unit or block.everywhere, block.everywhere)

    def note_up(self, block: Block, up: Sequence[bool], all_know: bool = False) -> None:
        here = [w for w in block.everywhere if up[w]]
        if here or all_know:
            self._known[block.unit or block.everywhere] = here or block.everywhere

    # means

    def reduce_(self, means: Sequence[Contribution], codec: Codec | None, to_server: bool = False) -> None:
        if codec is not None and not codec.reducible:
            (self._rows_to_server_ if to_server else self._rows_to_all_)(means, codec)
        elif to_server:
            self._sums_to_server_(means, codec)
        else:
            self._sum_(means, codec)

    def _rows_to_all_(self, means: Sequence[Contribution], codec: Codec) -> None:
        """All-gather the encoded rows among the processes of each mean, and sum them there."""
        for mean, received in zip(means, self.all_gather_rows(means), strict=True):
            total = torch.zeros_like(mean.partial_sum, dtype=at_least_float32(mean.partial_sum.dtype))
            for worker, row in received.items():  # in the same order everywhere, so that all have the same sum
                total[0].add_(codec.decode(row, mean.partial_sum[0]), alpha=mean.weights[worker])
            mean.partial_sum.copy_(total)

    def _rows_to_server_(self, means: Sequence[Contribution], codec: Codec) -> None:
        """Gather the encoded rows at the first process, and sum them there."""
        rows: dict[int, dict[tuple[int, int], Tensor]] = {}  # by worker, mean, and place in what the codec makes
        for k, mean in enumerate(means):
            like = [x.to("meta") for x in codec.encode(mean.partial_sum.new_zeros(mean.partial_sum.shape[1]))]
            for w in mean.weights:
                rows.setdefault(w, {}).update({(k, j): x for j, x in enumerate(mean.encoded.get(w, like))})
        received = self.gather_to_server(rows)
        for k, mean in enumerate(means) if self.first else ():
            total = torch.zeros_like(mean.partial_sum[0], dtype=at_least_float32(mean.partial_sum.dtype))
            for w in received:
                if w in mean.weights:
                    row = tuple(x for (of, _), x in received[w].items() if of == k)
                    total.add_(codec.decode(row, mean.partial_sum[0]), alpha=mean.weights[w])
            mean.partial_sum[0] = total

    def _sums_to_server_(self, means: Sequence[Contribution], codec: Codec | None) -> None:
        """Gather each process's sum at the first process, and add them there."""
        sums: dict[int, dict[int, Tensor]] = {}  # by the first worker of a process, and by mean
        for k, mean in enumerate(means):
            row = (
                mean.partial_sum[0] if len(mean.partial_sum) else mean.partial_sum.new_empty(mean.partial_sum.shape[1])
            )
            sent = row if codec is None else codec.encode(row)[0]
            for p in self.processes_of(mean.weights):
                sums.setdefault(p * self.each, {})[k] = sent if p == self.index else sent.to("meta")
        received = self.gather_to_server(sums)
        for k, mean in enumerate(means) if self.first else ():
            total = torch.zeros_like(mean.partial_sum[0], dtype=at_least_float32(mean.partial_sum.dtype))
            for of_p in received.values():
                if k in of_p:
                    total.add_(of_p[k] if codec is None else codec.decode((of_p[k],), mean.partial_sum[0]))
            mean.partial_sum[0] = total

    def gather_to_server(self, tensors: Mapping[int, Mapping[K, Tensor]]) -> Mapping[int, Mapping[K, Tensor]]:
        out = {w: dict(named) for w, named in tensors.items()}
        with listening(self.timeout_seconds):
            for p in self.here[1:]:
                of_p = {(w, n): x for w in out if self.process_of(w) == p for n, x in out[w].items()}
                if self.index == p:
                    self._send_flat(list(of_p.values()), 0)
                elif self.first:
                    for (w, n), x in zip(of_p, self._receive_flat(list(of_p.values()), p), strict=True):
                        out[w][n] = x
        return out if self.first else {w: {n: x.to("meta") for n, x in named.items()} for w, named in out.items()}

    @contextlib.contextmanager
    def as_alone(self) -> Iterator[None]:
        """Inside, this process has all that it has for itself, as the first and only one."""
        alone, first, self.alone, self.first = self.alone, self.first, True, True
        try:
            yield
        finally:
            self.alone, self.first = alone, first

    def scatter_from_server(self, tensors: Named) -> Named:
        if self.alone:
            return tensors
        out = {w: named for w, named in tensors.items() if self.first or w in self.mine}
        once = {id(named): named for named in tensors.values()}  # who gets the same gets it together
        to = {key: self.processes_of([w for w in tensors if id(tensors[w]) == key]) for key in once}
        parcels: list[tuple[tuple[int, ...], list[int]]]
        parcels = [((p,), [key for key in once if p in to[key]]) for p in self.here[1:]]
        if self.post is not None:
            parcels = [(tuple(p for p in to[key] if p), [key]) for key in once]
        new: dict[int, dict[str, Tensor]] = {}
        with listening(self.timeout_seconds):
            for receivers, keys in parcels:
                flat = [x for key in keys for x in once[key].values()]
                if self.first and receivers:
                    self._send_flat(flat, *receivers)
                elif self.index in receivers:
                    got = iter(self._receive_flat(flat, 0, receivers))
                    new |= {key: {n: next(got) for n in once[key]} for key in keys}
        return out | {w: new[id(tensors[w])] for w in out if not self.first}

    def all_gather_by_worker(self, values: Mapping[int, Any]) -> dict[int, Any]:
        return dict(sorted((w, x) for part in self.all_gather_json(list(values.items())) for w, x in part))

    def _send_flat(self, tensors: Sequence[Tensor], *to: int) -> None:
        if tensors:
            self._pass_(torch.cat([_bytes(x) for x in tensors]), self.index, to)
            self._check_finite(self.index, tensors)

    def _receive_flat(self, like: Sequence[Tensor], origin: int, to: Sequence[int] = ()) -> list[Tensor]:
        data = torch.empty(sum(x.nbytes for x in like), dtype=torch.uint8, device=self.device)
        if len(data):
            self._pass_(data, origin, to or (self.index,))
        parts = data.split([x.nbytes for x in like]) if like else ()
        found = [part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, like, strict=True)]
        self._check_finite(origin, found)
        return found

    def _check_finite(self, sender: int, tensors: Sequence[Tensor]) -> None:
        """Of what has travelled as bytes: where sites leave messages, those with other numbers than finite ones are refused."""
        if self.post is not None:
            for x in tensors:
                mailbox.check_finite(self.post, self.post.latest, sender, x)

    def _sum_(self, means: Sequence[Contribution], codec: Codec | None) -> None:
        """All-reduce the partial sums of each mean, in place."""
        together: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}
        for mean in means:
            processes = self.processes_of(mean.weights)
            if len(processes) > 1:
                together.setdefault((processes, mean.partial_sum.dtype), []).append(mean.partial_sum)
        with listening(self.timeout_seconds):
            under_way = []
            for (processes, _), tensors in together.items():
                group = self._group(processes)
                if self.index not in processes:
                    continue
                flat = torch.cat([x.flatten() for x in tensors])
                sent = (flat,) if codec is None else codec.encode(flat)
                under_way.append((dist.all_reduce(sent[0], group=group, async_op=True), tensors, flat, sent))
            for work, tensors, flat, sent in under_way:
                work.wait()
                total = flat if codec is None else codec.decode(sent, flat)
                for x, values in zip(tensors, total.split([x.numel() for x in tensors]), strict=True):
                    x.copy_(values.view_as(x))

    def all_gather_rows(self, means: Sequence[Contribution]) -> list[dict[int, tuple[Tensor, ...]]]:
        """Return, per mean, the encoded rows of all its workers in order; empty where this process takes no part."""
        received: list[dict[int, tuple[Tensor, ...]]] = [{} for _ in means]
        together: dict[tuple[int, ...], list[int]] = {}
        for k, mean in enumerate(means):
            together.setdefault(self.processes_of(mean.weights), []).append(k)
        with listening(self.timeout_seconds):
            for processes, items in together.items():
                group = self._group(processes) if len(processes) > 1 else None
                if self.index not in processes or len(processes) == 1:
                    continue
                shapes = {k: next(iter(means[k].encoded.values())) for k in items}  # the same for all rows of a block
                order = {
                    p: [(k, w) for k in items for w in means[k].weights if self.process_of(w) == p] for p in processes
                }
                each = {k: sum(x.nbytes for x in shapes[k]) for k in items}
                sizes = [sum(each[k] for k, _ in order[p]) for p in processes]
                mine = torch.cat([_bytes(x) for k, w in order[self.index] for x in means[k].encoded[w]])
                for p, data in zip(processes, self._all_gather(mine, sizes, processes, group), strict=True):
                    for k, w in order[p]:
                        row = []
                        for like in shapes[k]:
                            row.append(data[: like.nbytes].clone().view(like.dtype).view(like.shape))
                            data = data[like.nbytes :]
                        received[k][w] = tuple(row)
                        self._check_finite(p, row)
        return [{w: h[w] for w in mean.weights if w in h} for mean, h in zip(means, received, strict=True)]

    def broadcast_newest_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        self.copy_between_(
            [((0,) if self.served else self.processes_of(k), self.processes_of(to), x) for k, to, x in moves]
        )

    def sync_server_state(self, agreed: Stack) -> Stack:
        self.broadcast_newest_(
            [((), b.everywhere, x) for b, x in zip(agreed.layout.blocks, agreed.blocks, strict=True)]
        )
        return agreed

    def gather_blocks(self, agreed: Stack, known_by: Sequence[bool]) -> Stack:
        if self.served:
            return agreed
        moves, blocks = [], []
        for block, x in zip(agreed.layout.blocks, agreed.blocks, strict=True):
            owners = self.processes_of([w for w in block.everywhere if known_by[w]] or self.owners(block))
            blocks.append(x if self.index or 0 in owners else x.new_empty(1, block.numel))
            moves.append((owners, (0,), blocks[-1]))
        self.copy_between_(moves)
        return Stack(agreed.layout, blocks)

    def gather_copies(self, stack: Stack) -> Stack:
        blocks = [replace(b, holders=b.everywhere) for b in stack.layout.blocks]
        rows = [
            [[k for k, w in enumerate(b.everywhere) if self.process_of(w) == p] for b in blocks]
            for p in range(self.num)
        ]
        out = [x.new_empty(len(b.everywhere), b.numel) for b, x in zip(blocks, stack.blocks, strict=True)]
        with listening(self.timeout_seconds):
            for p in self.here:
                theirs = stack.blocks
                if self.index == p != 0:
                    self._send_flat(theirs, 0)
                elif self.first and p:
                    shapes = [x.new_empty(len(k), x.shape[1], device="meta") for x, k in zip(out, rows[p], strict=True)]
                    theirs = self._receive_flat(shapes, p)
                for x, k, mine in zip(out, rows[p], theirs, strict=True) if self.first else ():
                    x[k] = mine
        return Stack(replace(stack.layout, blocks=blocks, mine=None), out) if self.first else stack

    def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
        if self.alone:
            return [value] * self.num
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        slot_bytes = max(SLOT_BYTES, 8 + about_bytes)
        slot = torch.zeros(slot_bytes, dtype=torch.uint8)
        slot[:8] = _bytes(torch.tensor([len(data)]))
        slot[8 : 8 + len(data)] = data[: slot_bytes - 8]
        here = tuple(self.here)
        with listening(self.timeout_seconds):
            group, mine = self._group(here), here.index(self.index)
            slots = self._all_gather(slot, [slot_bytes] * len(here), here, group)
            sizes = [int(s[:8].view(torch.int64)) for s in slots]
            if len(data) != sizes[mine]:  # a site that is back said something else before, which counts
                data = data.new_zeros(sizes[mine])
            if max(sizes) > slot_bytes - 8:
                slots = self._all_gather(data, sizes, here, group)
            else:
                slots = [s[8 : 8 + size] for s, size in zip(slots, sizes, strict=True)]
        return [json.loads(s.numpy().tobytes()) for s in slots]

    # how it travels

    def _pass_(self, x: Tensor, origin: int, to: Sequence[int]) -> None:
        """Send ``x`` from one process to others, in place; several at a time hear it together."""
        if len(to) > 1:
            dist.broadcast(x, origin, group=self._group(tuple(sorted((origin, *to)))))
        elif self.index == origin:
            dist.send(x, to[0])
        else:
            dist.recv(x, origin)

    def copy_between_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        """Copy tensors from the first of the processes that know each to those that do not, one buffer for each pair.

        Where they leave messages for each other, all that receive the same read one.
        """
        if self.alone:  # whoever comes back brings its copies itself
            return
        together: dict[tuple[int, tuple[int, ...], torch.dtype], list[Tensor]] = {}
        for owners, to, x in moves:
            missing = tuple(p for p in to if p not in owners and p in self.here)
            for receivers in [(p,) for p in missing] if self.post is None else [missing] * bool(missing):
                together.setdefault((owners[0], receivers, x.dtype), []).append(x)
        for (origin, receivers, _), tensors in together.items():
            if self.index != origin and self.index not in receivers:
                continue
            flat = torch.cat([x.flatten() for x in tensors])
            with listening(self.timeout_seconds):
                self._pass_(flat, origin, receivers)
            if self.index != origin:
                for x, values in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
                    x.copy_(values.view_as(x))

    def _all_gather(
        self, mine: Tensor, sizes: Sequence[int], processes: Sequence[int], group: dist.ProcessGroup | None
    ) -> list[Tensor]:
        """Return the bytes of all these processes; ``sizes`` are their lengths."""
        out = [mine if p == self.index else mine.new_empty(n) for p, n in zip(processes, sizes, strict=True)]
        if len(set(sizes)) == 1:
            out = [torch.empty_like(mine) for _ in processes]
            dist.all_gather(out, mine, group=group)
        else:
            for p, x in zip(processes, out, strict=True):
                if len(x):
                    dist.broadcast(x, p, group=group)
        return out

    def _group(self, processes: tuple[int, ...]) -> dist.ProcessGroup | None:
        """One group per set of processes. All processes make all groups, in the same order."""
        if len(processes) == self.num:
            return None
        if processes not in self._groups:
            self._groups[processes] = dist.new_group(list(processes))
        return self._groups[processes]


@contextlib.contextmanager
def listening(timeout_seconds: float) -> Iterator[None]:
    """Gloo's errors (a connection that closed, a timeout) become `PeerLost`."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            f"another process of this run ended, or did not answer within {timeout_seconds:g} s "
            f"({str(error).splitlines()[0][:160]})"
        ) from error


def share_out(num_workers: int, num: int) -> int:
    """Workers of each of ``num`` processes. Raises RecipeError where they cannot be shared out evenly."""
    if num < 1 or num_workers % num:
        fitting = ", ".join(str(p) for p in range(1, num_workers + 1) if num_workers % p == 0)
        raise RecipeError(
            f"{num_workers} workers cannot be shared out evenly over {num} processes: use {fitting} processes, or change "
            "num_workers"
        )
    return num_workers // num


def check_timeout(seconds: float) -> None:
    """Raise RecipeError unless ``seconds`` is a usable timeout."""
    if not 1 <= seconds <= 1e6:
        raise RecipeError(f"a timeout of {seconds:g} seconds is not allowed: give a number from 1 to 1000000")


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def resolve(address: str, patience_seconds: float = 10.0) -> None:
    """Wait until a host name resolves: a cluster may take a moment to publish its names.

    Raises
    ------
    RecipeError
        if it does not within the timeout.
    """
    until = time.monotonic() + patience_seconds
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until:
                raise RecipeError(
                    f"MASTER_ADDR={address}: no machine of that name is known here ({error}): give the first machine's address "
                    "(--master-addr of torchrun, --main_process_ip of accelerate launch)"
                ) from None
            time.sleep(0.5)


def network_to(address: str) -> str | None:
    """The network interface by which this machine reaches another one; None where that is this machine, or unknown."""
    import psutil

    with contextlib.suppress(OSError):
        family, kind, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as s:
            s.connect(place)  # sends nothing
            mine = s.getsockname()[0]
        if not ipaddress.ip_address(mine).is_loopback:
            return next(
                (n for n, found in psutil.net_if_addrs().items() if any(a.address == mine for a in found)), None
            )
    return None


def _by_mpi() -> Launched | None:
    """As `launched`, for ``mpirun`` and its like, which have names of their own for all this; Accelerate knows them."""
    from accelerate.utils import get_cpu_distributed_information

    cluster = get_cpu_distributed_information()
    if cluster.world_size > 1:
        os.environ |= {"WORLD_SIZE": str(cluster.world_size), "RANK": str(cluster.rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(cluster.local_world_size), "LOCAL_RANK": str(cluster.local_rank)}
        os.environ.setdefault("MASTER_PORT", "29500")
        if cluster.local_world_size == cluster.world_size:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    return launched()


def _choose_network(here: Launched) -> None:
    """Name the network that tensors travel by: on one machine the loopback; else, unless the user has named one, that to the first.

    (Unasked, gloo takes what this machine's name stands for: 127.0.0.1 on many, nothing on some.)
    """
    import psutil

    if here.one_machine:
        name = next(
            (n for n, found in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in found)), "lo"
        )
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
        return
    if not os.environ.get("GLOO_SOCKET_IFNAME"):
        resolve(here.address)
        network = network_to(here.address)
        if network is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = network
    there = psutil.net_if_addrs()
    for name in filter(None, os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in there:
            raise RecipeError(
                f"GLOO_SOCKET_IFNAME={name}: this machine has no network of that name: use one of {', '.join(there)}, or unset it"
            )


def _meet(here: Launched, timeout_seconds: float) -> Store:
    """Return the store by which processes exchange addresses: a file on one machine, a port of the first machine on several."""
    timeout = timedelta(seconds=timeout_seconds)
    if here.one_machine:
        own = os.environ.get(STORE)
        path = Path(own) if own else file_of_first(here.port, here.index, timeout_seconds)
        store = FileStore(str(path), here.num)
        store.set_timeout(timeout)
        return store
    open_one = partial(TCPStore, here.address, here.port, here.num, timeout=timeout)
    if here.index or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # the launcher has it
        return open_one(is_master=False)
    family, kind, _, _, place = socket.getaddrinfo(here.address, here.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(place)  # one network; by itself the store would listen to all
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:  # others know this machine by an address that it has not itself
                return open_one(is_master=True)
            raise RecipeError(
                f"{here.address}:{here.port} cannot be the address of the first process ({error}): give a port that is free"
            ) from None
        server.listen()
        return open_one(is_master=True, master_listen_fd=os.dup(server.fileno()))


def join(num_workers: int, timeout_seconds: float = TIMEOUT_SECONDS, device: str = "cpu") -> ManyProcesses:
    """Meet the other processes that a launcher (`launch`, ``accelerate launch``, ``notebook_launcher``) has started.

    Parameters
    ----------
    device
        of `lab.recipes.compute.Compute`. With GPUs, tensors on them travel by NCCL, and all else by gloo (not tried on GPUs).

    Raises
    ------
    RecipeError
        if this machine has fewer GPUs than processes: NCCL wants one for each.
    """
    from accelerate import PartialState

    check_timeout(timeout_seconds)
    here = launched() or _by_mpi()
    if here is None:
        raise RecipeError(
            "this process is alone: start it with `lab run --processes`, `lab.start(processes=…)` or a launcher"
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)  # before anything else: a forked process whose parent has used more would hang
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and not only_cpus() else 0
    near = here.local_num or 1
    if 0 < gpus < near:
        raise RecipeError(
            f"{near} processes on this machine and {gpus} GPUs: use {gpus} processes (several workers of a process share its GPU), "
            "or compute.device=cpu"
        )
    backend: dict[str, Any] = {"backend": "cuda:nccl,cpu:gloo"} if gpus else {}
    post: Post | None = None
    if MAILBOX in os.environ:
        post = _enter(os.environ[MAILBOX], here, timeout_seconds)
        backend = {}
    else:
        _choose_network(here)
    with listening(timeout_seconds):
        if post is not None:
            mailbox.begin(post)
        elif not dist.is_initialized():
            store = _meet(here, timeout_seconds)
            if here.one_machine and not gpus:
                mesh.begin(store, here.index, here.num, timeout_seconds)
            else:
                backend |= {"store": store, "rank": here.index, "world_size": here.num}
        state = PartialState(cpu=not gpus, timeout=timedelta(seconds=timeout_seconds), **backend)
    return ManyProcesses(num_workers, timeout_seconds, state.device, post)


def _enter(text: str, here: Launched, timeout_seconds: float) -> Post:
    """Find out which run is in a place, and begin to exchange messages in it."""
    there, signed = place(text), secret()
    invitation = Invitation.awaited(there, signed, timeout_seconds)
    if invitation.processes != here.num:
        raise RecipeError(
            f"the run in mailbox {there} has {invitation.processes} sites, and this is one of {here.num}: use "
            f"--processes {invitation.processes}, or another place"
        )
    with listening(timeout_seconds):
        seal, seconds = Seal(invitation.run, signed), invitation.deadline_seconds
        return Post(there, seal, here.index, here.num, timeout_seconds, deadline_seconds=seconds)


def present(workers_each: int, timeout_seconds: float = TIMEOUT_SECONDS, device: str = "cpu") -> World:
    """The world of a loop that somebody else has started, with so many workers in each process.

    That is the default process group where there is one (of Accelerate, say), else the processes that a launcher has started
    (`join`; this one keeps its threads), else this process alone. ``device`` is where its workers are, such as ``cuda:1``.

    Raises
    ------
    RecipeError
        for a process group that carries no tensors on the CPU, where small values travel.
    """
    check_timeout(timeout_seconds)
    if not dist.is_initialized():
        by_mpi = any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
        here = launched() or (_by_mpi() if by_mpi else None)
        if here is None:
            return OneProcess()
        threads = torch.get_num_threads()
        try:
            return join(workers_each * here.num, timeout_seconds, torch.device(device).type)
        finally:
            torch.set_num_threads(threads)
    if dist.get_world_size() == 1:
        return OneProcess()
    carried = dist.get_backend_config()
    if "cpu:" not in carried:
        raise RecipeError(
            f"the process group carries tensors of {carried} alone, and small values travel on the CPU: make it with "
            'backend="cpu:gloo,cuda:nccl" (in Accelerate: InitProcessGroupKwargs)'
        )
    return ManyProcesses(workers_each * dist.get_world_size(), timeout_seconds, device)
