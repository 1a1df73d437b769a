"""What does a method cost in a loop of one's own? The attached loop against the same loop with the same torch optimizer; nothing is sent."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import lab
from bench.common import child, ratio
from lab.models.gpt import SIZES

SHAPES = {
    "d=64, 2 layers, context 64, batch 8": {"model": "nano", "context": 64, "batch_size": 8},
    "d=128, 4 layers, context 128, batch 16": {"model": "micro", "context": 128, "batch_size": 16},
    "d=256, 6 layers, context 128, batch 8": {"model": "mini", "context": 128, "batch_size": 8},
}


def steps(shape: dict[str, Any], attached: bool, max_norm: float | None) -> Iterator[None]:
    """Forward, backward, clipping where there is any, the step, gradients to zero."""
    model = SIZES[shape["model"]].build(256, shape["context"])
    ids = torch.randint(0, 256, (shape["batch_size"], shape["context"] + 1), generator=torch.Generator().manual_seed(0))
    optimizer: Any = (
        lab.attach(model, "local_sgd", sync_every=10**9, inner={"name": "AdamW", "lr": 1e-3}, max_norm=max_norm)
        if attached
        else torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    )
    while True:
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        if attached:
            optimizer.step(loss)
        else:
            loss.item()  # a loop that keeps its losses reads them
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        optimizer.zero_grad()
        yield


def measure(shape: dict[str, Any], max_norm: float | None, seconds: float, rounds: int) -> list[list[float]]:
    """Seconds of a step, bare and attached, that take turns step by step on one core; the median of each round."""
    torch.set_num_threads(1)
    loops = [steps(shape, attached, max_norm) for attached in (False, True)]
    for loop in loops * 5:
        next(loop)
    found = []
    for _ in range(rounds):
        times: list[list[float]] = [[], []]
        until = time.perf_counter() + seconds
        while len(times[0]) < 8 or time.perf_counter() < until:
            for i in (0, 1) if len(times[0]) % 2 else (1, 0):
                began = time.perf_counter()
                next(loops[i])
                times[i].append(time.perf_counter() - began)
        found.append([statistics.median(x) for x in times])
    return found


def main(rounds: int = 9, seconds: float = 4.0) -> None:
    for label, shape in SHAPES.items():
        for max_norm in (None, 1.0):
            found = child("bench.attach", shape=shape, max_norm=max_norm, seconds=seconds, rounds=rounds)
            bare, own = zip(*found, strict=True)
            clipped = "clipped" if max_norm else "not clipped"
            print(
                f"{label}, {clipped}: a step attached / bare: {ratio(own, bare)}; bare {1e3 * statistics.median(bare):.1f} ms"
            )


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
