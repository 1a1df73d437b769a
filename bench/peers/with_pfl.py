"""Apple's pfl: its simulated backend, federated averaging, one process. ``python with_pfl.py CLIENTS ROUNDS``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from task import BATCH, LR, ROWS, STEPS, Clock, examples, net


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x)

    def loss(self, x, y, is_eval=False):
        self.eval() if is_eval else self.train()
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x, y, is_eval=True):
        return {}


class Watch(TrainingProcessCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.clock.note()
        return False, Metrics()


def main(clients: int, rounds: int) -> None:
    torch.set_num_threads(1)
    inputs, targets, own = examples(clients)
    # As many rounds of 10 examples as 5 steps: pfl goes through what a user has, so each user's 20 examples are given two and a half times.
    repeated = np.concatenate([own, own, own[:, : BATCH * STEPS - 2 * own.shape[1]]], axis=1)

    def user(name):
        at = torch.from_numpy(repeated[int(name)])
        return Dataset(
            [inputs[at], targets[at]], user_id=name, train_kwargs={"is_eval": False}, eval_kwargs={"is_eval": True}
        )

    sampler = get_user_sampler("random", [str(c) for c in range(clients)])
    data = FederatedDataset(user, sampler)
    module, clock = Module(), Clock()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    params = NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=10 * rounds, train_cohort_size=ROWS, val_cohort_size=0
    )
    local = NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LR)
    backend = SimulatedBackend(training_data=data, val_data=data)
    FederatedAveraging().run(params, backend, model, local, callbacks=[Watch(clock)], send_metrics_to_platform=False)
    print(clock.report())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
