"""Experts: the whole dispatch against a dense MLP of the same active width, steps with ghosts, small steps against a GPT's."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.common import child, ratio
from lab.costs.ghosts import step_seconds_by_ghosts
from lab.ground.seeds import generator
from lab.models.gpt import GPT, Linear
from lab.models.moe import SIZES, MoE, MoELayer

# tokens, and the layer
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "d=256, 8 experts of 128, k=2, 4096 tokens": (4096, {"dim": 256, "num_heads": 4, "expert_dim": 128}),
    "d=128, 8 experts of 64, k=2, 2048 tokens": (2048, {"dim": 128}),
    "d=64, 8 experts of 32, k=2, 512 tokens": (512, {"dim": 64}),
}
EXPERTS_FIRST: dict[str, Any] = {  # experts are most of the work
    "dim": 128,
    "num_layers": 4,
    "num_heads": 4,
    "num_experts": 16,
    "expert_dim": 256,
    "top_k": 4,
}


def passes(module: nn.Module, tokens: int, dim: int) -> Callable[[], None]:
    """One forward and backward pass, gradients of the input included, added to those of the parameters."""
    g = generator(0, "bench")
    for p in module.parameters():
        nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=g)
        p.grad = torch.zeros_like(p)
    x = torch.randn(1, tokens, dim, generator=g).requires_grad_()
    dy = torch.randn(1, tokens, dim, generator=g)

    def once() -> None:
        y = module(x)[0] if isinstance(module, MoELayer) else module(x)
        y.backward(dy)
        x.grad = None

    return once


def dispatch(tokens: int, shape: dict[str, Any], threads: int, rounds: int) -> list[list[float]]:
    """Seconds of a pass, round by round: routed experts (from router to sum, no balance loss), dense MLP."""
    torch.set_num_threads(threads)
    c = MoE(**shape, balance=0)
    active = c.top_k * c.width
    dense = nn.Sequential(Linear(c.dim, active), nn.SiLU(), Linear(active, c.dim))
    return alternate(
        [
            passes(MoELayer(c, tuple(range(c.num_experts))), tokens, c.dim),
            passes(dense, tokens, c.dim),
        ],
        rounds,
        times=max(1, 2**19 // (tokens * c.dim)),
    )


def step(rounds: int) -> list[list[float]]:
    """Seconds of a training step of the smallest models on 512 tokens: experts, GPT of the same parameters, of the same work."""
    torch.set_num_threads(1)
    c = SIZES["moe-nano"]
    assert isinstance(c, MoE)
    ids = torch.randint(256, (8, 65), generator=generator(0, "bench"))
    steps = []
    for model in (c, GPT(), GPT(mlp_dim=c.top_k * c.width)):
        module = model.build(256, 64)
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        steps.append(lambda module=module: module.loss(ids[:, :-1], ids[:, 1:]).backward())
    return alternate(steps, rounds, times=4)


def ghosts(rounds: int) -> dict[str, float]:
    """Seconds of a step by number of ghosts."""
    torch.set_num_threads(1)
    c = MoE(**EXPERTS_FIRST, skip_token=True)
    return {str(g): s for g, s in step_seconds_by_ghosts(c, [0, 4, 8, 12, 16], rounds=rounds).items()}


def alternate(candidates: Sequence[Callable[[], Any]], rounds: int, times: int) -> list[list[float]]:
    """Candidates take turns inside one process, so that a busy moment slows all of them.

    With one thread its own seconds count, not those in which the machine served others.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seen = []
    for k in range(rounds + 3):  # three rounds to warm up
        took = [0.0] * len(candidates)
        order = range(len(candidates)) if k % 2 else reversed(range(len(candidates)))
        for i in order:
            began = clock()
            for _ in range(times):
                candidates[i]()
            took[i] = (clock() - began) / times
        seen.append(took)
    return seen[3:]


def main(rounds: int = 60) -> None:
    for label, (tokens, shape) in SHAPES.items():
        for threads in (1, 2):
            seen = child("bench.experts", what="dispatch", tokens=tokens, shape=shape, threads=threads, rounds=rounds)
            moe, dense = zip(*seen, strict=True)
            print(f"{label}; {threads} thread{'s' * (threads > 1)}; {statistics.median(moe) * 1e3:.2f} ms a pass")
            print(f"  tokens/s of routed experts / of a dense MLP of the same active width: {ratio(dense, moe)}")
    moe, gpt, thin = zip(*child("bench.experts", what="step", rounds=rounds), strict=True)
    print(f"moe-nano, 512 tokens, 1 thread: {statistics.median(moe) * 1e3:.2f} ms a step")
    print(f"  time / GPT with as many parameters: {ratio(moe, gpt)}; / GPT with as much work: {ratio(moe, thin)}")
    seconds = child("bench.experts", what="ghosts", rounds=rounds // 4)
    print("skip-token, 4 layers of 16 experts, d=128, k=4; step without ghosts / with:")
    print("  " + ", ".join(f"{g} ghosts {seconds['0'] / s:.2f}×" for g, s in seconds.items()))


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(globals()[arguments.pop("what")](**arguments)))
