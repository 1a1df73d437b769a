"""Rounds with a server (`lab.methods.rounds`) whose clients train adapters: every client fetches its part, and hands it in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import Optimizer, reset_
from lab.engine.stack import Layout, Stack
from lab.engine.state import State, numeric
from lab.engine.world import Named
from lab.ground.errors import RecipeError
from lab.methods.lora_factors import Adapters, Pair
from lab.methods.registry import METHODS, Method, declared, name_of
from lab.methods.rounds import InnerStates, Weight, beginning, fetching, hand_in_


def open_(
    s: State, inner: Optimizer, inner_states: InnerStates, train: str = "both", products: bool = False
) -> Adapters:
    """Make the server's state, and the clients' optimizers. Raises RecipeError where the model's adapters do not fit.

    ``products``: for a server that works with B·A, and so needs both factors of a map, or none.
    """
    adapters = adapters_of(s)
    if products and adapters.halves:
        raise RecipeError(
            f"clients.personal has one factor of {adapters.halves[0]}, and this method aggregates products of the two: name both, as "
            f"in {adapters.halves[0]}.lora_*, or use method fedit, prelort or zero_padding"
        )
    if adapters.lora.train != train:
        raise RecipeError(
            f"lora.train = {adapters.lora.train!r} does not go with this method: use {train!r}"
            + (" (A stays as it is, B is trained)" if train == "B" else ", or method ffa_lora")
        )
    if inner_states == "reset":
        inner.check_reset()
    s.optimizers["inner"] = inner.over(s.local["params"], s.grads)
    s.shared["params"] = beginning(s.fleet)
    return adapters


def adapters_of(s: State) -> Adapters:
    """Which worker holds which rank segments. Raises RecipeError where the model has no adapters."""
    if not isinstance(s.adapters, Adapters):
        raise RecipeError("this method aggregates adapters: set lora.ranks, for example lora.ranks=[4,8,16,16]")
    return s.adapters


def agreed_base(fleet: Fleet, names: Iterable[str]) -> Stack:
    """Frozen tensors as an agreed stack ``[1, P]`` of which every module has views: who changes it, changes all models here."""
    shapes = {n: fleet.constants[n].shape for n in names}
    everybody = tuple(range(fleet.num_workers))
    layout = Layout.of(dict.fromkeys(shapes, everybody), shapes, lambda name: "frozen")
    stack = Stack(layout, [torch.empty(1, b.numel, device=fleet.device, dtype=fleet.dtype) for b in layout.blocks])
    _give_views_(fleet, stack)
    return stack


@numeric
def _give_views_(fleet: Fleet, stack: Stack) -> None:
    for name in stack.names():
        stack[name].copy_(fleet.constants[name])
        fleet.constants[name] = stack[name][0]
    for w in fleet.mine:
        module = fleet.modules[w]
        buffers = dict(module.named_buffers(remove_duplicate=False))
        fleet.attach(module, partial(fleet.params.cell, worker=w), partial(fleet.grads.cell, worker=w), buffers)


@torch.no_grad()
def add_to_base_(s: State, target: str, product: torch.Tensor, scale: float) -> None:
    """W₀ ← W₀ + s·product, ``[d_out, d_in]``, in the `agreed_base`, whichever way round the map holds it."""
    adapter = s.fleet.modules[0].get_submodule(target)
    adapter.as_matrix(s.shared["base"][f"{target}.weight"][0]).add_(product, alpha=scale)  # type: ignore[operator]


def need_equal_ranks(method: Method, adapters: Adapters) -> None:
    """Raises RecipeError unless all clients have the same rank."""
    if len(set(adapters.ranks_W)) > 1:
        of_servers = {name: declared(cls) for name, cls in METHODS.items() if declared(cls).server}
        *others, last = (name for name, need in of_servers.items() if not need.equal_ranks)
        raise RecipeError(
            f"{name_of(method)} is defined for clients of one rank, but lora.ranks = {list(adapters.ranks_W)}: give one rank, or "
            f"use {', '.join(others)} or {last}"
        )


def fetch_(s: State, comm: Communicator, t: int, period: int, inner_states: InnerStates) -> None:
    """The beginning of local step ``t`` at the clients: who has to, fetches the prefix that its rank covers."""
    to = fetching(s, t, period)
    if to:
        comm.broadcast_(s.shared["params"], s.local["params"], "params", to=to)
        start_(s, to, inner_states, at_round=(t - 1) % period == 0)


def start_(s: State, clients: Sequence[int], inner_states: InnerStates, at_round: bool = True) -> None:
    """Clients take what they fetched into their own scale, with a fresh optimizer state if there is no old one to be kept."""
    rescale_(s, clients, up=False)
    if inner_states == "reset" and at_round:
        reset_(s.optimizers["inner"], s.local["params"], [w in clients for w in range(s.fleet.num_workers)])


@numeric
def rescale_(s: State, clients: Sequence[int], up: bool) -> None:
    """B of these clients from their own scale into the server's (``up``), or back. Nothing to do but with ``lora.alpha``."""
    adapters, params = adapters_of(s), s.local["params"]
    if adapters.lora.alpha is None:
        return
    for name in params.names():
        if ".lora_B." in name and not params.is_personal(name):
            for w in clients:
                if w in params.layout.blocks[params.layout.place[name][0]].holders:
                    factor = adapters.lora.scale_of(adapters.ranks_W[w]) / adapters.scale
                    params.cell(name, w).mul_(factor if up else 1 / factor)


def hand_in(s: State, comm: Communicator) -> Named:
    """The factors of all clients that are up, at the server, in the server's scale: for aggregations that are no means."""
    rescale_(s, [w for w, u in enumerate(s.fleet.up) if u], up=True)
    return comm.gather(s.local["params"], "params")


def pairs_of(s: State, handed: Named, target: str) -> dict[int, Pair]:
    """A and B of one map, by client."""
    adapters = adapters_of(s)
    return {w: adapters.pair(named.__getitem__, target, adapters.ranks_W[w]) for w, named in handed.items()}


def mean_of_holders(s: State, comm: Communicator, weight: Weight) -> None:
    """The server's state becomes, segment by segment, the mean over the clients that hold it and are up.

    What nobody who is up holds keeps its value.
    """
    rescale_(s, [w for w, u in enumerate(s.fleet.up) if u], up=True)
    hand_in_(s, comm, weight)


def coverage(s: State, weight: Weight) -> list[float]:
    """Of every block: N_j / N, the sample mass of those that hold it over that of all who are up (0 where nobody is)."""
    n_W = list(s.samples_W) if weight == "samples" and s.samples_W else [1] * s.fleet.num_workers
    up = [w for w, u in enumerate(s.fleet.up) if u]
    total = sum(n_W[w] for w in up)
    return [sum(n_W[w] for w in b.everywhere if w in up) / total if total else 0.0 for b in s.fleet.layout.blocks]
