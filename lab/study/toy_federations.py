"""Nine workers in three federations, small enough to try everything: each learns a map y = V·tanh(U·x) from few examples.

U is common to all. V has a part that is common to the workers of a federation and one of a worker's own, so there is something to
share at every level, and something to keep. The methods are the lab's own, the loop is that of a run without text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.state import State
from lab.ground.seeds import generator
from lab.methods import Method
from lab.methods.registry import round_steps
from lab.study.bench import Bench

NUM, EACH = 9, 3  # workers, and those of one federation
IN, HIDDEN, OUT = 10, 32, 4
TREE = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
SWAPPED = [[3, 1, 2], [0, 4, 5], [6, 7, 8]]  # 0 and 3 in each other's federation


class TwoLayers(nn.Module):
    """``first`` is to be common, ``second`` a key layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self(x), y)


@dataclass(frozen=True)
class Worlds:
    """What the workers see: ``x`` and ``y`` to learn from and to be tested on, by worker. Of the noise-free targets the mean square is 1."""

    train: list[tuple[Tensor, Tensor]]
    test: list[tuple[Tensor, Tensor]]


def worlds(examples: int, seed: int, *, own: float = 0.5, noise: float = 0.3) -> Worlds:
    """``own``: how much of a worker's V is its own, beside 1 of its federation's."""
    g = generator(seed, "worlds")

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    U = randn(HIDDEN // 2, IN) / IN**0.5 * 1.5
    of_federation = [randn(OUT, HIDDEN // 2) for _ in range(NUM // EACH)]
    train, test = [], []
    for w in range(NUM):
        V = of_federation[w // EACH] + own * randn(OUT, HIDDEN // 2)

        def draw(num: int, V: Tensor = V) -> tuple[Tensor, Tensor]:
            x = randn(num, IN)
            y = torch.tanh(x @ U.T) @ V.T
            return x, y / y.square().mean().sqrt()

        x, y = draw(examples)
        train.append((x, y + noise * randn(*y.shape)))
        test.append(draw(400))
    return Worlds(train, test)


def federations(
    method: Method, examples: int = 40, *, rounds: int = 40, seed: int = 0, personal: Sequence[str] = ()
) -> list[float]:
    """Mean square error of each worker on examples of its own that it has not seen, with what it begins a round with after so many rounds.

    ``personal``: layers that never leave their worker, whatever the method (FedPer).
    """
    data = worlds(examples, seed)

    def build(worker: int | None) -> nn.Module:
        with torch.device("meta"):
            module = TwoLayers()
        if worker is None:
            module.to_empty(device="cpu")
            g = generator(seed, "first values")
            for p in module.parameters():
                p.data.copy_(
                    torch.randn(p.shape, generator=g, dtype=torch.float64) / p.shape[-1] ** 0.5 * (p.dim() > 1)
                )
        return module

    fleet = Fleet(build, NUM, dtype=torch.float64, threads=1, personal=lambda n: n.split(".")[0] in personal)
    steps = rounds * round_steps(method)
    state = State.of(fleet, lambda t: float(t <= steps), samples_W=[examples] * NUM)
    bench = Bench(method, state, batch=lambda w, t: data.train[w]).run(
        steps + 1
    )  # in the last step nobody moves: it only fetches
    bench.close()
    with torch.no_grad():
        return [float(fleet.modules[w].loss(*data.test[w])) for w in range(NUM)]  # type: ignore[operator]
