"""Clients that each have something to forget, and one model: every client fits the one matrix, and a server joins what they fitted.

Three ways, by what a client hands in:

    average     its W, d·p numbers; the server takes their mean. What one client redirects is thinned by all who do not
    sum         its Wₖ − W0, d·p numbers as well, which the server adds up: not thinned, and each client's ridge and retained rows are counted alone
    exact       X Xᵀ and X·residual of its rows, p² + d·p numbers, which are sums over rows: the server solves for the W that somebody would have
                fitted who had all the rows. It sees second moments of what clients' prompts are inside of the model

Each client shifts its own rows by its own unlearning vector, from its own prompts; nothing else is told.

Legend: N clients, d width, p width of the down-projection's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.ledger import Ledger
from lab.ground.errors import RecipeError
from lab.systems.unlearning.lunar import Lunar, Request, edit_, gram, solved, training_rows, unlearning_vectors
from lab.systems.unlearning.places import Places

Way = Literal["average", "sum", "exact"]
NAME = "matrix"


class Matrix(nn.Module):
    """The one matrix as a model by itself: what workers of a fleet hold."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.matrix = nn.Parameter(value.clone())

    @staticmethod
    def tensor_group(name: str) -> str:
        """What it is, for reading a ledger."""
        return "down-projection"


def federation(matrix: Tensor, num_clients: int) -> Communicator:
    """A communicator of clients that all hold this matrix ``[d, p]``."""
    return Communicator(Fleet(lambda worker: Matrix(matrix), num_clients, dtype=matrix.dtype, device=matrix.device))


def unlearn_together_(
    places: Places, requests: Sequence[Request], how: Lunar, layer: int, way: Way = "average", rounds: int = 1
) -> Ledger:
    """Carry out the requests of several clients on one block, in place; returns what was sent for it.

    All clients have the model when it begins. A round ends with the new matrix at all of them.

    Raises
    ------
    RecipeError
        for no clients, no rounds, and a way that does not go with the fit.
    """
    if not requests or rounds < 1:
        raise RecipeError("requests of clients, and rounds: give at least one of each")
    if way == "exact" and how.fit != "closed":
        raise RecipeError(
            f"way = 'exact' adds up what the closed form needs, and fit is {how.fit!r}: use fit=closed, or another way"
        )
    comm = federation(places.matrix(layer), len(requests))
    join = _solved if way == "exact" else partial(_mean, way == "sum")
    for comm.t in range(1, rounds + 1):
        before = places.matrix(layer).clone()
        places.matrix(layer).copy_(join(comm, places, requests, how, layer, before))
        agreed = comm.fleet.params.first()
        agreed[NAME][0].copy_(places.matrix(layer))
        comm.broadcast_(agreed, comm.fleet.params, "params", to=range(len(requests)))
    comm.fleet.close()
    return comm.ledger


def _mean(
    added: bool, comm: Communicator, places: Places, requests: Sequence[Request], how: Lunar, layer: int, before: Tensor
) -> Tensor:
    """Each client fits by itself; ``added``: what it adds to W counts as a whole."""
    for client, request in enumerate(requests):
        edit_(places, request, how, layer)
        comm.fleet.params[NAME][client].copy_(places.matrix(layer))
        places.matrix(layer).copy_(before)
    mean = comm.mean(comm.fleet.params, "params", to_server=True)[NAME][0]
    return before + len(requests) * (mean - before) if added else mean


def _solved(
    comm: Communicator, places: Places, requests: Sequence[Request], how: Lunar, layer: int, before: Tensor
) -> Tensor:
    """Clients hand in sums over their rows, in float64."""
    sums = {}
    for client, request in enumerate(requests):
        vector = how.coefficient * unlearning_vectors(places, request.forget, request.reference)[layer]
        x, residual, _ = training_rows(places, request, how, layer, vector)
        sums[client] = dict(zip(("products", "cross"), gram(x, residual), strict=True))
    handed = comm.collect(sums, "sums", of=comm.fleet.params).values()
    products, cross = (torch.stack([h[name] for h in handed]).sum(0) for name in ("products", "cross"))
    return before.double() + solved(products, cross, how.ridge).to(before.device)
