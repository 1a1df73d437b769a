"""Rounds with a server: it keeps the model, clients fetch it when a round begins, and hand in what became of it.

Who is up at the beginning of a round takes part in it; who comes back in its midst fetches the server's state then. What is handed in
is counted as such (``reduce`` or ``gather`` in the ledger), and what is fetched as ``broadcast``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import reset_
from lab.engine.stack import Block, Stack
from lab.engine.state import State, number, numeric
from lab.engine.world import Named
from lab.methods.private import add_noise_, clipped

Weight = Literal["samples", "uniform"]
InnerStates = Literal["reset", "kept"]


def beginning(fleet: Fleet) -> Stack:
    """The server's state when a run begins, of all tensors: also of those that no worker of this process holds."""
    stack = fleet.params.first()
    missing = [i for i, x in enumerate(stack.blocks) if not len(x)]
    for i in missing:
        stack.blocks[i] = stack.blocks[i].new_zeros(1, stack.layout.blocks[i].numel)
    values = dict(fleet.build(None).named_parameters()) if missing and 0 in fleet.mine else {}
    for name in [n for i in missing for n in stack.layout.blocks[i].names if n in values]:
        stack[name].copy_(values[name].detach())
    return stack


def fetching(s: State, t: int, period: int) -> list[int]:
    """Who fetches the server's state before local step ``t``. Clients that are late in a round fetch it too, and are not up."""
    up = [w for w, u in enumerate(s.fleet.up) if u]
    return sorted({*up, *s.returned}) if (t - 1) % period == 0 else [w for w in up if w in s.returned]


def fetch_(s: State, comm: Communicator, t: int, period: int, inner_states: InnerStates) -> list[int]:
    """Who has to, fetches the server's model before local step ``t``, and with ``reset`` begins with a fresh optimizer; returns who has."""
    to = fetching(s, t, period)
    if to:
        comm.broadcast_(s.shared["params"], s.local["params"], "params", to=to)
        if inner_states == "reset":
            reset_(s.optimizers["inner"], s.local["params"], [w in to for w in range(s.fleet.num_workers)])
    return to


def fetched(s: State) -> Mapping[str, Tensor]:
    """What clients have fetched of the model, by name: views."""
    agreed = s.shared["params"]
    return {name: agreed[name][0] for name in agreed.names() if not agreed.is_personal(name)}


def weights_of(s: State, weight: Weight) -> list[float] | None:
    """What each worker counts in a mean, ``[N]``: its examples, or (None) as much as any other."""
    return [float(n) for n in s.samples_W] if weight == "samples" and s.samples_W else None


def share_of_all(s: State, weight: Weight, block: Block) -> float:
    """|S| / N: what the holders of a block that are up count, over what all count that there are, clients that sit nowhere included."""
    n_W = weights_of(s, weight) or [1.0] * s.fleet.num_workers
    everybody: float = s.num_samples if weight == "samples" else s.num_clients
    everybody = everybody or sum(n_W[w] for w in block.everywhere)  # where all clients are workers
    return sum(n_W[w] for w in block.everywhere if s.fleet.up[w]) / everybody


@numeric
def note_(s: State, comm: Communicator, name: str, values: Mapping[int, float]) -> None:
    """What workers of this process know of themselves, into ``s.facts[name]``, a list by worker that a checkpoint has.

    All processes learn of it, as each can be the one that writes a checkpoint. Only the worker itself may use it: what it tells its
    server is sent by the method.
    """
    for w, value in comm.world.all_gather_by_worker(dict(values)).items():
        s.facts[name][w] = value


def losses_there(s: State, to: Sequence[int], loss_W: Tensor) -> dict[int, float]:
    """F_k of clients of this process that have just fetched the server's state: their loss there, on their first batch of the round."""
    here = {w: float(loss_W[w]) for w in to if w in s.fleet.mine and s.fleet.up[w]}
    return {w: x if math.isfinite(x) else 0.0 for w, x in here.items()}  # of what is no number the run itself says so


def hand_in_(s: State, comm: Communicator, weight: Weight) -> None:
    """Clients that are up hand in their models; the server's becomes the mean over those that hold a tensor.

    What nobody who is up holds keeps its value. Where the recipe asks for privacy, what clients hand in is clipped before, and the server
    adds noise after.
    """
    known = s.shared["params"]
    (handed,) = clipped(s, (s.local["params"], known))
    mean = comm.mean(handed, "params", weights_W=weights_of(s, weight), fallback=known, to_server=True)
    add_noise_(s, comm, params=mean)
    s.shared["params"] = mean


def hand_in_weighted_(s: State, comm: Communicator, ways: Stack, weights: Mapping[int, float], state: str) -> Named:
    """Clients that are up hand in their ways ``[H, P]``, weighted by themselves, and a number each; the server's model moves by Σ ways / Σ numbers.

    ``weights``: the numbers, of clients in this process. They travel as ``state``; returns what the server was handed of them.
    """
    up = [w for w, u in enumerate(s.fleet.up) if u]
    handed = comm.collect({w: {state: number(weights.get(w))} for w in up}, state, of=s.local["params"])
    nothing = s.shared["params"].zeros_like()
    _move_(s, comm.mean(ways, "params", fallback=nothing, to_server=True), handed, state)
    return handed


@numeric
def _move_(s: State, mean: Stack, handed: Named, state: str) -> None:
    """At the server; ``mean`` is that of the ways over the clients that hold a tensor and are up."""
    w = s.shared["params"]
    for x, way, block in zip(w.blocks, mean.blocks, w.layout.blocks, strict=True):
        there = [k for k in block.everywhere if k in handed]
        if there and not block.personal:
            x.add_(way, alpha=len(there) / sum(float(handed[k][state]) for k in there))
