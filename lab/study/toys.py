"""Problems small enough to see what a method does: no text, no network, seconds to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.state import Loss, State
from lab.ground.seeds import generator
from lab.methods.registry import parse_method, round_steps
from lab.probes.metrics import Alignment, Averages, basis_similarity, numerical_rank, spectrum
from lab.study.bench import Bench


class _Point(nn.Module):
    def __init__(self, start: Any):
        super().__init__()
        self.x = nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())


def _points(num_workers: int, start: Any) -> State:
    """Workers at the same point, as nobody has moved or sent anything yet."""
    return State.of(Fleet(lambda worker: _Point(start), num_workers, dtype=torch.float64))


def rosenbrock(
    spec: Any,
    *,
    num_workers: int = 128,
    steps: int = 7680,
    noise: float = 1.5,
    start: tuple[float, float] = (-1.2, 1.0),
    seed: int = 0,
    every: int = 16,
) -> tuple[list[int], list[float]]:
    """DES-LOC's toy (its figure 1): f = (1 − x₁)² + 100·(x₂ − x₁²)² with Gaussian noise on every worker's gradient.

    The optimum is (1, 1). The paper gives the function, 256 workers and σ = 1.5; learning rate, β and start are not given.

    Parameters
    ----------
    spec
        a method, as in a recipe.
    noise
        standard deviation of each gradient coordinate, drawn afresh for every worker and step.

    Returns
    -------
    steps, and the distance of the workers' mean from the optimum at those steps.
    """
    s = _points(num_workers, start)
    g = generator(seed, "rosenbrock")

    def grad(s: State, loss: Loss | None = None) -> Tensor:
        x, y = s.local["params"]["x"].unbind(1)  # each [W]
        s.grads["x"][:, 0] = -2 * (1 - x) - 400 * x * (y - x * x)
        s.grads["x"][:, 1] = 200 * (y - x * x)
        s.grads["x"].add_(torch.randn(num_workers, 2, generator=g, dtype=torch.float64), alpha=noise)
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    at, distance, bench = [], [], Bench(parse_method(spec), s, grad)
    for t, _ in bench.steps(steps):
        if t % every == 0:
            at.append(t)
            distance.append(float((s.local["params"]["x"].mean(0) - 1).norm()))
    bench.close()
    return at, distance


def quadratic(
    spec: Any,
    *,
    num_workers: int = 4,
    dim: int = 200,
    steps: int = 2560,
    noise: float = 1.0,
    momentum: str = "exp_avg",
    seed: int = 0,
) -> tuple[list[float], list[Alignment]]:
    """How well workers agree on where to go: f = ½ Σ c_i·x_i² with curvatures from 0.01 to 1 and noisy gradients.

    Start at x_i = 1. MT-DAO's diagnosis: with slow momenta the workers' pseudo-gradients point the same way.

    Parameters
    ----------
    noise
        standard deviation of each gradient coordinate, drawn afresh for every worker and step.
    momentum
        the local state whose mean counts as the global momentum.

    Returns
    -------
    the workers' mean loss at every average of the parameters, and the cosines there.
    """
    s = _points(num_workers, [1.0] * dim)
    g = generator(seed, "quadratic")
    curvature = torch.logspace(-2, 0, dim, dtype=torch.float64)

    def grad(s: State, loss: Loss | None = None) -> Tensor:
        x = s.local["params"]["x"]
        s.grads["x"].copy_(curvature * x)
        s.grads["x"].add_(torch.randn(num_workers, dim, generator=g, dtype=torch.float64), alpha=noise)
        return 0.5 * (curvature * x * x).sum(1)

    bench = Bench(parse_method(spec), s, grad)
    losses, watch = [], Averages(s, bench.comm, momentum)
    bench.comm.subscribe(watch.before_average)
    for _, loss_W in bench.steps(steps):
        if watch.after():
            losses.append(float(loss_W.mean()))
    bench.close()
    return losses, watch.seen


@dataclass(frozen=True)
class Basis:
    """After one round of `matrix_regression`."""

    error: float  # ‖θ − θ*‖ / ‖θ*‖
    rank: int  # numerical rank of the round's pseudo-gradient
    similarity: float  # of the bases before and after the round: 1 if they span the same space


def matrix_regression(
    spec: Any,
    *,
    num_workers: int = 4,
    shape: tuple[int, int] = (48, 32),
    rounds: int = 60,
    batch_size: int = 8,
    seed: int = 0,
) -> list[Basis]:
    """LoRDO on one matrix: find θ* (drawn at random, so of full rank) from y = x·θ* on small batches, from θ = 0.

    Without a full-rank term the pseudo-gradient never leaves the span of the first basis.
    """
    s = _points(num_workers, torch.zeros(shape))
    g = generator(seed, "matrix")
    target = torch.randn(shape, generator=g, dtype=torch.float64)

    def grad(s: State, loss: Loss | None = None) -> Tensor:
        x = torch.randn(num_workers, batch_size, shape[0], generator=g, dtype=torch.float64)
        missed = x @ (s.local["params"]["x"] - target)  # [W, batch, shape[1]]
        s.grads["x"].copy_(x.mT @ missed / batch_size)
        return 0.5 * missed.square().sum(2).mean(1)

    seen: list[Basis] = []
    m = parse_method(spec)
    bench = Bench(m, s, grad)
    for _ in range(rounds):
        theta, basis = s.local["params"]["x"].mean(0), s.local["projector"]["x"][0].clone()
        bench.run(round_steps(m))
        now = s.local["params"]["x"].mean(0)
        rank = numerical_rank(spectrum(now - theta))
        similarity = basis_similarity(s.local["projector"]["x"][0], basis)
        seen.append(Basis(float((now - target).norm() / target.norm()), rank, similarity))
    bench.close()
    return seen


def gossip(
    *,
    pull: float = 0.7,
    lr: float = 0.0,
    num_workers: int = 16,
    dim: int = 100,
    rounds: int = 60,
    sync_every: int = 10,
    noise: float = 1.0,
    seed: int = 0,
) -> list[float]:
    """Do workers that talk in random pairs agree? NoLoCo on f = ½·‖x‖² with noisy gradients, from a random point each.

    Parameters
    ----------
    pull
        NoLoCo's γ; its η = 0.7 and μ = 0.5 stay.
    lr
        of the inner SGD; 0 shows gossip alone.

    Returns
    -------
    mean square distance of the workers' slow weights from their mean, at the start and after every round.
    """
    spec = {"name": "noloco", "sync_every": sync_every, "pull": pull, "max_norm": None, "pair_seed": seed}
    spec["inner"] = {"name": "SGD", "lr": lr or 1e-300}  # a rate must be positive
    g = generator(seed, "gossip")
    starts = torch.randn(num_workers, dim, generator=g, dtype=torch.float64)
    s = _points(num_workers, starts[0])
    s.local["params"]["x"].copy_(starts)

    def grad(s: State, loss: Loss | None = None) -> Tensor:
        x = s.local["params"]["x"]
        s.grads["x"].copy_(x).add_(torch.randn(num_workers, dim, generator=g, dtype=torch.float64), alpha=noise)
        return 0.5 * x.square().sum(1)

    def distance() -> float:
        x = s.local["slow"]["x"]
        return float((x - x.mean(0)).square().mean())

    bench = Bench(parse_method(spec), s, grad)
    seen = [distance()]
    for _ in range(rounds):
        bench.run(sync_every)
        seen.append(distance())
    bench.close()
    return seen
