"""Muon: torch's own, AdamW for what is no hidden matrix, rows that are workers, and DiLoCo and DES-LOC on top of it (MuLoCo)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.engine.optim import Nesterov, Optimizer
from lab.methods.ddp import DDP
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.methods.local_sgd import LocalSGD
from lab.methods.mt_dao import MTDAO, Warm
from lab.optimizers.muon import COEFFICIENTS, Muon, orthogonalised
from tests.support.bench import F64, Bench, Net, batch, close, drawn, fill_, flat

MUON: dict[str, Any] = {"momentum": 0.9, "betas": [0.8, 0.95], "weight_decay": 0.05}


def test_five_steps_bring_singular_values_near_one() -> None:
    for shape in ((6, 4), (4, 6), (3, 5, 5)):
        x = drawn(*shape, purpose=("orthogonal", *shape))
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        a, b, c = COEFFICIENTS
        s = s / torch.linalg.matrix_norm(x, keepdim=True)[..., 0]
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        assert close(orthogonalised(x), u @ torch.diag_embed(s) @ vh, 1e-10)
        assert float(s.min()) > 0.3
        assert float(s.max()) < 1.25


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_of_one_matrix_it_is_torchs(adjust: str, nesterov: bool) -> None:
    """Up to torch's bfloat16, of which a step has 8 bits."""
    mine, theirs = (nn.Parameter(drawn(6, 4, purpose="start").float()) for _ in range(2))
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    ours, torchs = Muon([mine], 0.02, **options), torch.optim.Muon([theirs], 0.02, **options)
    for t in range(5):
        mine.grad = drawn(6, 4, purpose=("grad", t)).float()
        theirs.grad = mine.grad.clone()
        ours.step()
        torchs.step()
    moved = (theirs.detach() - drawn(6, 4, purpose="start").float()).norm()
    assert float((mine - theirs).detach().norm() / moved) < 0.02
    assert torch.allclose(ours.state[mine]["exp_avg"], torchs.state[theirs]["momentum_buffer"])


def by_hand(steps: int, worker: int = 0) -> nn.Module:
    """A net whose hidden matrix is moved by Muon and whose bias and head are moved by torch's AdamW."""
    net = Net()
    fill_(net)
    muon = Muon([net.hidden], 0.03, 0.9, weight_decay=0.05)
    adam = torch.optim.AdamW([net.bias, net.out], 0.03, (0.8, 0.95), weight_decay=0.05)
    for t in range(1, steps + 1):
        net.zero_grad()
        net.loss(*batch(worker, t)).backward()
        muon.step()
        adam.step()
    return net


def test_a_worker_is_a_row() -> None:
    """Bias and hidden matrix lie in one block, the head in one that AdamW moves though it is a matrix."""
    bench = Bench(LocalSGD(99, Optimizer("Muon", 0.03, MUON), max_norm=None)).run(6)
    for w in range(3):
        assert close(bench.of(w), flat(by_hand(6, w)))


def test_rows_that_were_down_go_on_where_they_were() -> None:
    """Rows with other counts move by themselves; each ends like a run of its own steps alone."""
    bench = Bench(LocalSGD(99, Optimizer("Muon", 0.03, MUON), max_norm=None)).run(2)
    bench.fleet.up[1] = False
    bench.run(2)
    assert close(bench.of(0), flat(by_hand(4, 0)))
    assert close(bench.of(1), flat(by_hand(2, 1)))


def test_muloco_is_diloco_over_muon() -> None:
    """Rounds of two steps, Nesterov on the mean of what the workers moved by."""
    inner = Optimizer("Muon", 0.03, MUON)
    bench = Bench(DiLoCo(2, inner, Nesterov(0.7, 0.9), max_norm=None), 2).run(2)
    start = Bench(DDP(), 1).of(0)
    moved = sum((start - flat(by_hand(2, w)) for w in range(2)), torch.zeros_like(start)) / 2
    assert close(bench.of(0), start - 0.7 * (moved + 0.9 * moved))


def test_momenta_are_averaged_on_their_own_period() -> None:
    method = DESLOC({"params": 2, "exp_avg": 3, "exp_avg_sq": 6}, Optimizer("Muon", 0.03, MUON))
    bench = Bench(method).run(3)
    assert close(bench.of(0, "exp_avg"), bench.of(2, "exp_avg"))
    assert not close(bench.of(0), bench.of(2), 1e-6)
    assert {r.state for r in bench.records} == {"params", "exp_avg"}


def test_a_weight_mixes_the_fresh_gradient_in() -> None:
    """ω = μ is Nesterov's form, ω = 1 the momentum alone, ω = 0 the gradient alone; between them what is orthogonalised is mixed."""

    def moved(**options: Any) -> Tensor:
        x = nn.Parameter(drawn(6, 4, purpose="start"))
        muon = Muon([x], 0.02, 0.9, weight_decay=0.0, **options)
        for t in range(3):
            x.grad = drawn(6, 4, purpose=("grad", t))
            muon.step()
        return x.detach() - drawn(6, 4, purpose="start")

    assert torch.equal(moved(weight=0.9), moved())
    assert torch.equal(moved(weight=1.0), moved(nesterov=False))
    assert close(moved(weight=0.0), moved_along_gradients(), 1e-12)
    assert not close(moved(weight=0.5), moved(), 1e-4)
    with pytest.raises(ValueError, match="needs nesterov"):
        moved(weight=0.5, nesterov=False)


def moved_along_gradients() -> Tensor:
    steps = [orthogonalised(drawn(6, 4, purpose=("grad", t))) for t in range(3)]
    return -0.02 * 0.2 * math.sqrt(6) * sum(steps, torch.zeros(6, 4, dtype=F64))


def test_mt_dao_switches_muon_to_a_slow_momentum() -> None:
    """Two steps with μ = 0.8, then every momentum is zero and μ = 0.99 with ω = 0.9; bias and head by torch's AdamW."""
    options: dict[str, Any] = {"betas": [0.8, 0.95], "weight_decay": 0.05}
    fast = Optimizer("Muon", 0.03, options | {"momentum": 0.8})
    slow = Optimizer("Muon", 0.01, options | {"momentum": 0.99, "weight": 0.9})
    bench = Bench(MTDAO({"params": 99}, slow, Warm(2, fast), max_norm=None)).run(5)
    net = Net()
    fill_(net)
    muon = Muon([net.hidden], 0.03, 0.8, weight_decay=0.05)
    adam = torch.optim.AdamW([net.bias, net.out], 0.03, (0.8, 0.95), weight_decay=0.05)
    for t in range(1, 6):
        net.zero_grad()
        net.loss(*batch(1, t)).backward()
        muon.step()
        adam.step()
        if t == 2:
            for x in (net.hidden, net.bias, net.out):
                (muon if x is net.hidden else adam).state[x]["exp_avg"].zero_()
            muon.param_groups[0].update(lr=0.01, momentum=0.99, weight=0.9)
            adam.param_groups[0].update(lr=0.01)
    assert close(bench.of(1), flat(net))


def test_steps_are_as_large_as_those_of_adamw() -> None:
    """With ``match_rms_adamw`` the root mean square of a step is about 0.2 lr, whatever the shape."""
    for shape in ((8, 8), (4, 64), (64, 4)):
        x = nn.Parameter(torch.zeros(shape, dtype=F64))
        x.grad = drawn(*shape, purpose=("step", *shape))
        Muon([x], 1.0, weight_decay=0.0).step()
        assert 0.12 < float(x.square().mean().sqrt()) < 0.25


def test_a_kernel_is_a_matrix_of_its_outputs() -> None:
    kernel, matrix = nn.Parameter(torch.zeros(4, 3, 2, dtype=F64)), nn.Parameter(torch.zeros(4, 6, dtype=F64))
    g: Tensor = drawn(4, 6, purpose="kernel")
    kernel.grad, matrix.grad = g.view(4, 3, 2), g
    for x in (kernel, matrix):
        Muon([x], 0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert math.isfinite(float(matrix.sum()))
