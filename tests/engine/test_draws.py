"""What modules draw by themselves: from generators of their own, the numbers of their seed, whoever draws beside them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lab.ground.errors import LabError
from lab.ground.seeds.draws import Draws, same_draws

X = torch.linspace(0.1, 0.9, 48).reshape(2, 6, 4)
LSTM = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
with torch.no_grad():
    for p in LSTM.parameters():
        p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))

WAYS: dict[str, Callable[[], Tensor]] = {
    "dropout": lambda: F.dropout(X, 0.3),
    "dropout in place": lambda: F.dropout(X.clone(), 0.3, inplace=True),
    "dropout of whole channels": lambda: F.dropout1d(X, 0.3),
    "native dropout": lambda: torch.native_dropout(X, 0.3, True)[0],
    "alpha dropout": lambda: F.alpha_dropout(X, 0.3, training=True),
    "feature alpha dropout": lambda: F.feature_alpha_dropout(X, 0.3, training=True),
    "attention": lambda: F.scaled_dot_product_attention(X[:, None], X[:, None], X[:, None], dropout_p=0.4),
    "attention with a mask": lambda: F.scaled_dot_product_attention(X, X, X, X @ X.mT > 0.5, dropout_p=0.4),
    "lstm": lambda: LSTM(X)[0],
    "rrelu": lambda: F.rrelu(X - 0.5, training=True),
    "gumbel": lambda: F.gumbel_softmax(X),
    "fractional pooling": lambda: F.fractional_max_pool2d(X[None], 2, output_size=2),
    "rand": lambda: torch.rand(3, 2),
    "randn": lambda: torch.randn(3, 2, dtype=torch.float64),
    "randint": lambda: torch.randint(9, (5,)),
    "randint between": lambda: torch.randint(3, 9, (5,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X),
    "randint_like": lambda: torch.randint_like(X, 3, 9),
    "normal": lambda: torch.normal(X, 0.5),
    "normal_": lambda: torch.empty(7).normal_(2.0, 3.0),
    "uniform_": lambda: torch.empty(7).uniform_(2.0, 3.0),
    "bernoulli": lambda: torch.bernoulli(X),
    "bernoulli_": lambda: torch.empty(7).bernoulli_(0.3),
    "exponential_": lambda: torch.empty(7).exponential_(),
    "random_": lambda: torch.empty(7).random_(5),
    "geometric_": lambda: torch.empty(7).geometric_(0.3),
    "cauchy_": lambda: torch.empty(7).cauchy_(),
    "log_normal_": lambda: torch.empty(7).log_normal_(),
    "multinomial": lambda: torch.multinomial(X[0], 3),
    "poisson": lambda: torch.poisson(10 * X),
    "binomial": lambda: torch.binomial(torch.full((5,), 9.0), torch.full((5,), 0.3)),
    "gamma": lambda: torch._standard_gamma(X),
    "initial values": lambda: nn.Linear(3, 4).weight.detach(),
}


def thrice(way: Callable[[], Tensor]) -> Tensor:
    return torch.stack([way() for _ in range(3)])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_draw_has_the_numbers_of_its_seed_and_moves_nobody(way: Callable[[], Tensor]) -> None:
    """The same numbers as from the global generator with this seed, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        want = torch.stack([way() for _ in range(3)])
    before, draws = torch.get_rng_state(), Draws(5)
    with draws:
        first = way()
    with draws:  # goes on
        found = torch.stack([first, way(), way()])
    assert torch.equal(found, want)
    assert draws.forward
    assert not draws.backward
    assert torch.equal(before, torch.get_rng_state())
    with torch.inference_mode():  # where several operations arrive as one
        once, again = [], []
        for out in (once, again):
            with Draws(5):
                out += [way(), way()]
    assert torch.equal(torch.stack(once), torch.stack(again))
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_that_is_given_is_used() -> None:
    mine = torch.Generator().manual_seed(3)
    want = torch.rand(4, generator=torch.Generator().manual_seed(3))
    draws = Draws(5)
    with draws:
        assert torch.equal(torch.rand(4, generator=mine), want)
    assert not draws.forward


def test_what_drops_nothing_draws_nothing() -> None:
    """Dropout of 0, or of a model that is evaluated, attention without dropout: no reason to watch a module for ever."""
    draws = Draws(5)
    with draws:
        F.dropout(X, 0.0)
        F.dropout(X, 0.5, training=False)
        F.scaled_dot_product_attention(X, X, X)
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True, device="meta")
        torch.rand(3, device="meta")
    assert not draws.forward


class Deep(nn.Module):
    """Layers with dropout, some of them computed again in the backward pass, one within another."""

    def __init__(self, options: dict[str, Any] | None) -> None:
        super().__init__()
        self.options = options
        self.weights = nn.ParameterList(nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4)) for _ in range(4))

    def layer(self, x: Tensor, i: int) -> Tensor:
        return F.dropout(torch.tanh(x @ self.weights[i]), 0.4)

    def pair(self, x: Tensor, i: int) -> Tensor:
        return self.again(self.layer, F.dropout(self.again(self.layer, x, i), 0.1), i + 1)

    def again(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.options is None:
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, **self.options)  # type: ignore[no-any-return]

    def loss(self) -> Tensor:
        x = F.dropout(self.again(self.layer, X, 0), 0.2)
        return F.dropout(self.again(self.pair, self.again(self.layer, x, 1), 2)).square().sum()


def gradients(model: Deep, seed: int = 5) -> list[Tensor]:
    draws = Draws(seed)
    with draws:
        loss = model.loss()
        loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(w.grad for w in model.weights if w.grad is not None)]


def test_what_is_computed_again_draws_the_same() -> None:
    """Gradients of checkpointed layers with dropout are those of layers that kept everything."""
    want = gradients(Deep(None))
    before = torch.get_rng_state()
    found = gradients(Deep({"preserve_rng_state": False, "context_fn": same_draws}))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    assert not torch.equal(found[0], gradients(Deep(None), seed=6)[0])


def test_what_would_draw_others_is_refused() -> None:
    """A checkpoint that knows nothing of the draws would compute wrong gradients in silence."""
    with pytest.raises(LabError, match=r"context_fn=lab\.ground\.seeds\.draws\.same_draws"):
        gradients(Deep({}))


def test_watching_imports_no_compiler() -> None:
    """Which takes seconds, and sets environment variables and filters of warnings."""
    code = "import sys, torch; from lab.ground.seeds.draws import Draws\nwith Draws(0): torch.rand(3)\nassert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
