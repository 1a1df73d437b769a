"""One process of real ``DistributedDataParallel`` runs; prints the final parameters and buffers of each as JSON.

python -m tests.support.real_ddp PROCESS PROCESSES RENDEZVOUS_FILE STEPS OPTIMIZER:MAX_NORM:PROBLEM …

The problem is ``toy``, or ``pictures``: ResNet-18 with BatchNorm.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.bench import batch, build, flat
from tests.support.buffered import flat_buffers, pictured, pictures


class Loss(nn.Module):
    """DDP wraps ``forward``: here it is the loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net.loss(x, y)  # type: ignore[no-any-return]


PROBLEMS: dict[str, tuple[Any, Any]] = {"toy": (build, batch), "pictures": (pictured, pictures)}


def run(process: int, steps: int, name: str, max_norm: float, problem: str) -> dict[str, list[float]]:
    made, batch_of = PROBLEMS[problem]
    model = DistributedDataParallel(Loss(made(None)))
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        model(*batch_of(process, t)).backward()
        if max_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    buffers = flat_buffers(model).tolist() if problem == "pictures" else []
    return {"params": flat(model).tolist(), "buffers": buffers}


def main(process: int, processes: int, rendezvous: str, steps: int, each: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=process, world_size=processes)
    cases = {case: case.split(":") for case in each}
    print(
        json.dumps({case: run(process, steps, name, float(norm), of) for case, (name, norm, of) in cases.items()}),
        flush=True,
    )
    dist.barrier()
    # Gloo's threads may still hold tensors while the interpreter is taken down, which now and then aborts a process whose
    # work is done (pytorch/pytorch#179291). What fails before this line still ends with its own exit status.
    os._exit(0)


if __name__ == "__main__":
    _, process, processes, rendezvous, steps, *each = sys.argv
    main(int(process), int(processes), rendezvous, int(steps), each)
