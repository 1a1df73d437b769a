"""What clients hand in, cut to a norm, and noise at the server: DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963), for rounds of any method.

A method whose clients hand in differences, and nothing else, has them `clipped` before the communicator takes their mean, and calls
`add_noise_` on what came of it; it says so with ``bounded`` (`lab.methods.registry.Declared`). Where the recipe asks for no privacy both
leave everything as it is, to the bit; so do they with a norm that nobody reaches and no noise.

Of the paper's two estimators this is the one with fixed denominator, and weights of 1: the sum over the m clients of a round by m. Its
other one divides by the weights of those who came, and needs twice the noise. Weights by examples, cut at a bound, would need a sum of them
over all clients that is no secret (McMahan et al., algorithm 1), so they are refused.

Noise is drawn from the seed of the run, so that a run can be repeated: whoever knows the seed can take it away again. It measures what
privacy costs; a federation of real people would draw it from the system's generator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.stack import Stack, at_least_float32
from lab.engine.state import State, has_numbers, numeric
from lab.ground.seeds import generator


@dataclass
class Private:
    """What a recipe asks for, and what was seen of the last round.

    clip, noise
        S and z (`lab.recipes.privacy.Privacy`).
    norms
        of what clients of this process have handed in, before it was cut, by worker.
    """

    clip: float
    noise: float
    seed: int
    norms: dict[int, float] = field(default_factory=dict)


def private_of(s: State) -> Private | None:
    """What is asked for; None: nothing."""
    return s.private if isinstance(s.private, Private) else None


@torch.no_grad()
def clipped(s: State, *handed: tuple[Stack, Stack | None]) -> list[Stack]:
    """What clients that are up hand in, of each Δ ← Δ·min(1, S / ‖Δ‖) over all tensors of all stacks together.

    Parameters
    ----------
    handed
        copies ``[H, P]``, each with what is known at the server and they are to be different from, ``[1, P]``; None: they are differences.

    Returns
    -------
    as many stacks; the given ones, where nobody is above S. What is personal is not handed in, and does not count.
    """
    private, stacks = private_of(s), [copies for copies, _ in handed]
    if private is None or not has_numbers(s):
        return stacks
    ways = [[x - y for x, y in zip(a.blocks, b.blocks, strict=True)] if b is not None else a.blocks for a, b in handed]
    norm_W = _norms(s.fleet.num_workers, stacks, ways)
    private.norms = {w: float(norm_W[w]) for w in s.fleet.mine if s.fleet.up[w]}
    above = [s.fleet.up[w] and bool(norm > private.clip) for w, norm in enumerate(norm_W.tolist())]
    if not any(above):
        return stacks
    scale_W, out = private.clip / norm_W, []
    for (copies, known), of_stack in zip(handed, ways, strict=True):
        cut = copies.clone()
        for i, (block, way) in enumerate(zip(copies.layout.blocks, of_stack, strict=True)):
            rows = [] if block.personal else copies.rows(i, above)
            if rows:
                scale = scale_W[block.index[rows]].to(way)[:, None]
                cut.blocks[i][rows] = way[rows] * scale + (0.0 if known is None else known.blocks[i])
        out.append(cut)
    return out


def _norms(num_workers: int, stacks: list[Stack], ways: list[list[Tensor]]) -> Tensor:
    """‖Δ‖ of each worker here over all that it hands in, float64 ``[N]`` on the CPU."""
    square_W = torch.zeros(num_workers, dtype=torch.float64)
    for stack, of_stack in zip(stacks, ways, strict=True):
        for block, way in zip(stack.layout.blocks, of_stack, strict=True):
            if not block.personal:
                square = torch.linalg.vector_norm(way, dim=1, dtype=at_least_float32(way.dtype)).cpu().double().square()
                square_W.index_add_(0, block.index, square)
    return square_W.sqrt()


@numeric
def add_noise_(s: State, comm: Communicator, **means: Stack) -> None:
    """At the server: normal noise of standard deviation z·S/m on each number of these means, by state, of which m clients have handed in."""
    private = private_of(s)
    if private is None or not private.noise or not comm.world.first:
        return
    for state, mean in means.items():
        for i, block in enumerate(mean.layout.blocks):
            num = sum(s.fleet.up[w] for w in block.everywhere)
            if num and not block.personal:
                draw = torch.randn(
                    block.numel, generator=generator(private.seed, "privacy", state, i, comm.t), dtype=torch.float64
                )
                mean.blocks[i] = mean.blocks[i] + (draw * (private.noise * private.clip / num)).to(mean.blocks[i])
