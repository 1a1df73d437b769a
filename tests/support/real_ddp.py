"""One process of real ``DistributedDataParallel`` runs on the toy problem; prints the final parameters of each as JSON.

python -m tests.support.real_ddp PROCESS PROCESSES RENDEZVOUS_FILE STEPS OPTIMIZER:MAX_NORM …
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.bench import batch, build, flat


class Loss(nn.Module):
    """DDP wraps ``forward``: here it is the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build(None)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net.loss(x, y)


def run(process: int, steps: int, name: str, max_norm: float) -> list[float]:
    model = DistributedDataParallel(Loss())
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        model(*batch(process, t)).backward()
        if max_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return flat(model).tolist()


def main(process: int, processes: int, rendezvous: str, steps: int, each: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=process, world_size=processes)
    cases = {case: case.split(":") for case in each}
    print(
        json.dumps({case: run(process, steps, name, float(norm)) for case, (name, norm) in cases.items()}), flush=True
    )
    dist.barrier()
    # Gloo's threads may still hold tensors while the interpreter is taken down, which now and then aborts a process whose
    # work is done (pytorch/pytorch#179291). What fails before this line still ends with its own exit status.
    os._exit(0)


if __name__ == "__main__":
    _, process, processes, rendezvous, steps, *each = sys.argv
    main(int(process), int(processes), rendezvous, int(steps), each)
