"""Supervised only: the server trains on what it has labels for, and clients stand by. What federated learning without labels has to beat."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.state import Grad, State, has_numbers
from lab.ground.config import Period, config
from lab.methods.registry import method
from lab.methods.rounds import fetch_
from lab.methods.server_labels import ServerTraining, begin_, of_task, train_


@method("supervised_only", server=True, unlabelled=True)
@config
class SupervisedOnly:
    """The server takes as many steps on its labelled examples as the server of other methods does, in the same rounds.

    Clients fetch the model when a round begins, to use it, and hand in nothing: their data have no part in anything. The loss that is
    reported for each of them is the server's last one.

    Sends: ``params``, down at the beginning of a round. State: the server's model in ``shared``.

    sync_every
        local steps of a round, in which clients do nothing.
    server
        how the server trains.
    """

    sync_every: Period = 16
    server: ServerTraining = Field(default_factory=ServerTraining)

    @property
    def inner(self) -> Optimizer:
        return self.server.optimizer

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def exceptions(self) -> dict[str, str]:
        return {"hearing": "no client is heard", "losses": "no client has a loss"}

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        begin_(s)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        if t == 1:
            train_(s, comm, t, self.server, self.server.first, of_task)
        fetch_(s, comm, t, self.sync_every, "kept")
        if t % self.sync_every == 0 and any(s.fleet.up):
            train_(s, comm, t, self.server, self.server.steps, of_task)
        return losses(s)


def losses(s: State) -> Tensor:
    """The server's loss, for everybody who is up here, ``[N]``."""
    loss_W = torch.full((s.fleet.num_workers,), float("nan"), dtype=torch.float64)
    for w in s.fleet.mine:
        if s.fleet.up[w] and has_numbers(s):
            loss_W[w] = s.facts["server_loss"]
    return loss_W
