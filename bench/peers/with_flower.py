"""Flower's simulation: Ray on all cores, federated averaging. ``python with_flower.py CLIENTS ROUNDS``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import torch
import torch.nn.functional as F
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from task import BATCH, LR, ROWS, STEPS, Clock, examples, net

DATA: dict = {}


def data(clients: int):
    if clients not in DATA:
        DATA[clients] = examples(clients)
    return DATA[clients]


class Client(NumPyClient):
    def __init__(self, number: int, clients: int):
        self.number, self.clients = number, clients

    def fit(self, parameters, config):
        torch.set_num_threads(1)
        inputs, targets, own = data(self.clients)
        module, at = net(), torch.from_numpy(own[self.number])
        with torch.no_grad():
            for p, value in zip(module.parameters(), parameters, strict=True):
                p.copy_(torch.from_numpy(value))
        optimizer = torch.optim.SGD(module.parameters(), lr=LR)
        for k in range(STEPS):
            batch = at[k % 2 * BATCH : (k % 2 + 1) * BATCH]
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        return [p.detach().numpy() for p in module.parameters()], len(at), {}


class Watched(FedAvg):
    def __init__(self, clock: Clock, **options):
        super().__init__(**options)
        self.clock = clock

    def aggregate_fit(self, server_round, results, failures):
        found = super().aggregate_fit(server_round, results, failures)
        self.clock.note()
        return found


def main(clients: int, rounds: int) -> None:
    logging.disable(logging.WARNING)
    clock = Clock()

    def client(context):
        return Client(int(context.node_config["partition-id"]), clients).to_client()

    def server(context):
        start = ndarrays_to_parameters([p.detach().numpy() for p in net().parameters()])
        strategy = Watched(
            clock,
            fraction_fit=ROWS / clients,
            min_fit_clients=ROWS,
            fraction_evaluate=0.0,
            min_available_clients=ROWS,
            initial_parameters=start,
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(ServerApp(server_fn=server), ClientApp(client_fn=client), clients, backend_config=resources)
    print(clock.report())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
