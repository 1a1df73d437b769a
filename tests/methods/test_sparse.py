"""SparsyFed, Top-K, ZeroFL and FLASH: gradients and bytes by formula, a federation written out, masks that agree and those that do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lab.engine.codecs import NonZeros
from lab.engine.optim import Optimizer
from lab.events import Event, Masked, Seated, Sent
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.methods import METHODS, Method
from lab.methods.fedprox import FedProx
from lab.methods.flash import FLASH
from lab.methods.sparse_rounds import keep_largest_, num_kept, prunable
from lab.methods.sparsyfed import SparsyFed
from lab.methods.top_k import TopK
from lab.methods.zerofl import ZeroFL
from lab.models.reparametrised import layers, plain_
from lab.models.shape import Shape
from lab.probes.masks import pairwise
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.export import export_run, trained
from lab.runs.folder import RunFolder
from lab.runs.plan import plan
from lab.runs.trainer import Trainer, dry_run, train
from tests.support.listed import SGDM
from tests.support.recipes import recipe
from tests.support.stop_and_go import stop_and_go

F64 = torch.float64
FAST, SLOW = Optimizer("SGD", 0.5), Optimizer("SGD", 0.1)
SPARSE = ("sparsyfed", "top_k", "zerofl", "flash")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "drawn"), dtype=F64)


# --- bytes ------------------------------------------------------------------------------------------------------------

# Of n elements k that are not zero, in float32: 4 bytes a value, with n bits (a last byte for those that are left over) or k
# indices of 2 bytes (4 above 32,768 elements), or all n values as they are.
BYTES = [
    (35, 0, 0 + 0),  # nothing at all: no indices take no bytes
    (35, 2, 8 + 4),  # two indices, 4 bytes; 35 bits would be 5
    (35, 3, 12 + 5),  # 35 bits; three indices would be 6
    (35, 33, 132 + 5),
    (35, 34, 140),  # 34 values and 5 bytes of bits are 141: all 35 take 140
    (35, 35, 140),
    (1, 1, 4),
    (7, 6, 24 + 1),
    (32_768, 2_047, 4 * 2_047 + 2 * 2_047),  # 2,047 indices are 4,094 bytes, bits 4,096
    (32_768, 2_048, 4 * 2_048 + 4_096),
    (32_769, 1_024, 4 * 1_024 + 4 * 1_024),  # one element more: indices have 4 bytes, bits are 4,097
    (32_769, 1_025, 4 * 1_025 + 4_097),
]


@pytest.mark.parametrize(("n", "k", "num_bytes"), BYTES)
def test_bytes_are_those_of_the_smaller_coding(n: int, k: int, num_bytes: int) -> None:
    codec, x = NonZeros(), torch.zeros(n)
    x[torch.randperm(n, generator=generator(n, "places"))[:k]] = torch.arange(1.0, k + 1)
    sent = codec.encode(x)
    assert sum(part.nbytes for part in sent) == num_bytes
    assert [(p.shape, p.dtype) for p in sent] == [(p.shape, p.dtype) for p in codec.shapes(n, k, x.dtype)]
    assert torch.equal(codec.decode(sent, x), x)


def test_at_94_8_percent_values_are_19_times_fewer_and_with_their_mask_12_times() -> None:
    """What the paper calls 19.29 times less is 1 / (1 − 0.948) of the values alone; the bits of the mask cost a 32nd of the whole."""
    n, k = 1_000_000, 51_840  # a realised sparsity of 94.816 %
    values, mask = NonZeros().shapes(n, k, torch.float32)
    assert 4 * n / values.nbytes == n / k == pytest.approx(19.29, abs=0.005)
    whole = values.nbytes + mask.nbytes
    assert 4 * n / whole == pytest.approx(1 / (0.05184 + 1 / 32))
    assert 4 * n / whole == pytest.approx(12.035, abs=0.001)


@pytest.mark.parametrize("beta", [1.0, 1.25])
def test_a_run_counts_what_it_has_sent(beta: float) -> None:
    """Up and down, tensor by tensor, from the numbers that clients have: shapes 13 × 64, 13, 10 × 13 and 10."""
    trainer = Trainer(digits(SparsyFed(3, 0.9, beta, inner=FAST), hidden=13, steps=6))
    rows: list[list[Tensor]] = []
    trainer.comm.subscribe(lambda m: rows.append([x.clone() for x in m.stack.blocks]) if m.state == "params" else None)
    sent: list[Sent] = []
    for event in trainer.events():
        if isinstance(event, Sent):
            sent.append(event)
            if len(rows) == 1 and event.step == 4 and event.op == "broadcast" and event.state == "params":
                server = [trainer.state.shared["params"][n] for n in trainer.fleet.params.names()]
    ups = {w: sum(r.bytes_each for r in sent if r.step == 3 and r.op == "gather" and w in r.workers) for w in range(4)}
    for w, num_bytes in ups.items():
        assert num_bytes == sum(coded(x[w]) for x in split(trainer, rows[0])), w
    down = {
        w: sum(r.bytes_each for r in sent if r.step == 4 and r.op == "broadcast" and w in r.workers) for w in range(4)
    }
    assert {*down.values()} == {down[0]}
    assert (
        down[0]
        < 4 * (13 * 64 + 13 + 130 + 10)
        == sum(r.bytes_each for r in sent if r.step == 1 and r.op == "broadcast")
    )
    assert server


def split(trainer: Trainer, blocks: list[Tensor]) -> list[Tensor]:
    """The tensors ``[H, elements]`` of a stack."""
    layout = trainer.fleet.layout
    return [
        x[:, start : start + shape.numel()]
        for block, x in zip(layout.blocks, blocks, strict=True)
        for start, shape in zip(block.offsets, block.shapes, strict=True)
    ]


def coded(x: Tensor) -> int:
    """Bytes of a tensor by the rule, in plain numbers."""
    n, k = len(x), int((x != 0).sum())
    return min(4 * n, 4 * k + min((n + 7) // 8, 2 * k))


# --- gradients --------------------------------------------------------------------------------------------------------


def few(a: Tensor, theta: Tensor) -> Tensor:
    """The inputs of which a weight's gradient is made, by numpy: the (1 − s)·n largest, where s of θ is zero."""
    k = max(1, round(float((theta != 0).double().mean()) * a.numel()))
    least = np.sort(np.abs(a.numpy().ravel()))[-k]
    return torch.from_numpy(np.where(np.abs(a.numpy()) >= least, a.numpy(), 0.0))


@pytest.fixture(autouse=True)
def _torch_s_own_layers_draw() -> Any:
    """What torch's layers give themselves is thrown away here."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def sparsy(part: nn.Module, method: SparsyFed, zeros: float = 0.6) -> nn.Module:
    part.to(F64)
    with torch.no_grad():
        for i, p in enumerate(part.parameters()):
            p.copy_(drawn(*p.shape, seed=i + 1))
        part.weight.view(-1)[: int(zeros * part.weight.numel())] = 0.0  # type: ignore[operator, union-attr]
    method.prepare_(part, False)
    return part


@pytest.mark.parametrize("beta", [1.0, 1.25, 2.0])
def test_the_gradient_of_a_linear_map_is_the_dense_formula(beta: float) -> None:
    """∂L/∂u = β·|u|^(β − 1)·(gᵀ·ã), ∂L/∂a = g·θ, ∂L/∂b = Σ g; for inputs with one axis more as well."""
    layer: Any = sparsy(nn.Linear(7, 5), SparsyFed(beta=beta))
    for shape in ((4, 7), (3, 2, 7)):
        layer.zero_grad()
        a = drawn(*shape, seed=9).requires_grad_()
        g = drawn(*shape[:-1], 5, seed=10)
        y = layer(a)
        y.backward(g)
        u = layer.weight.detach()
        theta = u.sign() * u.abs() ** beta
        torch.testing.assert_close(y, a @ theta.T + layer.bias, rtol=1e-14, atol=1e-14)
        seen, back = few(a.detach(), theta).reshape(-1, 7), g.reshape(-1, 5)
        slope = torch.ones_like(u) if beta == 1 else beta * u.abs() ** (beta - 1)
        torch.testing.assert_close(layer.weight.grad, slope * (back.T @ seen), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(a.grad, (back @ theta).view(shape), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(layer.bias.grad, back.sum(0), rtol=1e-13, atol=1e-14)
        assert not torch.equal(seen, a.detach().reshape(-1, 7))
        assert bool((layer.weight.grad[u == 0] == 0).all()) == (beta > 1)


CONVOLUTIONS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), groups=2, bias=False),
    nn.Conv2d(3, 2, 3, padding="same", padding_mode="circular"),
    nn.Conv1d(3, 4, 3, padding=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=lambda c: c.extra_repr())
def test_the_gradient_of_a_convolution_is_the_dense_formula(layer: Any) -> None:
    """By sums over all places of the kernel, from inputs that are padded and cut into patches by hand."""
    kind = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv1d
    layer = sparsy(layer, SparsyFed())
    size = (2, layer.in_channels, *([6] * (layer.weight.dim() - 2)))
    a = drawn(*size, seed=5).requires_grad_()
    u = layer.weight.detach()
    theta = u.sign() * u.abs() ** 1.25
    layer(a).square().sum().backward()
    same = isinstance(layer.padding, str)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), "circular") if same else x
        return kind(x, w, layer.bias, layer.stride, 0 if same else layer.padding, layer.dilation, layer.groups)

    b, w = a.detach().requires_grad_(), theta.clone().requires_grad_()
    y = plain(b, w)
    (dense,) = torch.autograd.grad(y.square().sum(), b)
    torch.testing.assert_close(a.grad, dense, rtol=1e-12, atol=1e-13)
    (of_few,) = torch.autograd.grad(plain(few(a.detach(), theta), w), w, 2 * y.detach())
    torch.testing.assert_close(layer.weight.grad, 1.25 * u.abs() ** 0.25 * of_few, rtol=1e-12, atol=1e-13)
    assert not layer.weight.grad[u == 0].any()


def test_zerofl_computes_with_the_largest_weights_and_moves_all() -> None:
    """y = a·wₛᵀ, ∂L/∂a = g·wₛ and ∂L/∂w = gᵀ·ã for every weight, with the largest half of 35 weights (18) and of 28 inputs (14)."""
    layer: Any = sparsy(nn.Linear(7, 5), ZeroFL(sparsity=0.5), zeros=0.0)  # type: ignore[arg-type]
    a, g = drawn(4, 7, seed=9).requires_grad_(), drawn(4, 5, seed=10)
    y = layer(a)
    y.backward(g)
    w = layer.weight.detach()
    largest = torch.where(w.abs() >= w.abs().flatten().topk(18).values[-1], w, 0.0)
    seen = torch.where(a.abs() >= a.abs().flatten().topk(14).values[-1], a, 0.0).detach()
    torch.testing.assert_close(y, a @ largest.T + layer.bias)
    torch.testing.assert_close(a.grad, g @ largest)
    torch.testing.assert_close(layer.weight.grad, g.T @ seen)
    assert layer.weight.grad[largest == 0].any()


def test_a_convolution_keeps_its_threshold_and_no_input_is_pruned_in_evaluation() -> None:
    layer: Any = sparsy(nn.Conv1d(2, 3, 3), SparsyFed())
    first, second = drawn(2, 2, 9, seed=1), 0.01 * drawn(2, 2, 9, seed=2)
    layer(first)
    kept = layer.threshold
    layer.zero_grad()
    layer(second).sum().backward()
    assert layer.threshold == kept > float(second.abs().max())
    assert not layer.weight.grad.any()  # all of the second batch is below
    layer.eval()
    layer(second).sum().backward()
    assert layer.weight.grad.any()


@pytest.mark.parametrize(
    "method", [SparsyFed(beta="spectral"), SparsyFed(), ZeroFL(sparsity=0.5)], ids=lambda m: type(m).__name__
)
def test_all_workers_in_one_pass_are_each_by_itself(method: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)
    method.prepare_(net, True)
    names = [n for n, _ in net.named_parameters()]
    values = {
        n: torch.stack([drawn(*p.shape, seed=w).masked_fill(drawn(*p.shape, seed=9 + w) < 0, 0.0) for w in range(3)])
        for n, p in net.named_parameters()
    }
    x = drawn(3, 4, 6, seed=5)
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    vmap(lambda p, one: functional_call(net, p, one))(leaves, x).square().sum().backward()
    for w in range(3):
        own = {n: values[n][w].clone().requires_grad_() for n in names}
        functional_call(net, own, x[w]).square().sum().backward()
        for n in names:
            torch.testing.assert_close(leaves[n].grad[w], own[n].grad, rtol=1e-12, atol=1e-13)


def test_the_spectral_exponent() -> None:
    """1 + mean(|u|) / σ(|u|), with σ of a decomposition; a weight of zero has no gradient, and β none either."""
    layer: Any = sparsy(nn.Linear(7, 5), SparsyFed(beta="spectral"), zeros=0.3)
    u = layer.weight.detach()
    beta = 1 + float(u.abs().mean() / torch.linalg.svdvals(u.abs())[0])
    assert 1.05 < beta < 1.3
    a = drawn(4, 7, seed=9)
    layer.eval()
    y = layer(a)
    torch.testing.assert_close(y, a @ (u.sign() * u.abs() ** beta).T + layer.bias, rtol=1e-6, atol=1e-6)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, beta * u.abs() ** (beta - 1) * a.sum(0), rtol=1e-5, atol=1e-6)
    assert not layer.weight.grad[u == 0].any()


def test_which_layers_are_meant() -> None:
    """Linear maps and convolutions; no norm, no head that is tied to an embedding, nothing inside torch's own attention."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.words.weight
            self.attention = nn.MultiheadAttention(4, 2)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.body = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Linear(4, 4))

    assert [*layers(Net())] == ["body.0", "body.2"]


# --- whole federations ------------------------------------------------------------------------------------------------


def digits(method: Method | str, hidden: int = 32, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [hidden]},
        "data": "digits",
        "split": "dirichlet:0.3",
        "num_workers": 4,
        "clients": {"num": 12},
        "batch_size": 10,
        "steps": 24,
        "eval_every": 0,
        "eval_windows": 40,
        "checkpoint_every": 0,
    }
    return Recipe.of(fields | changes | {"method": method})


@dataclasses.dataclass
class Seen:
    """Of a federation, round by round: masks that clients hand in ``[W, n]``, the server's before, and what grows at a client."""

    clients: list[Tensor] = dataclasses.field(default_factory=list)
    server: list[Tensor] = dataclasses.field(default_factory=list)
    regrown: list[int] = dataclasses.field(default_factory=list)
    events: list[Event] = dataclasses.field(default_factory=list)


def followed(r: Recipe, begins_with: float = 0.0) -> tuple[Seen, Trainer]:
    trainer, seen = Trainer(r), Seen()
    names = prunable(trainer.fleet)
    keep_largest_([trainer.state.shared["params"][n] for n in names], begins_with)

    def look(meeting: Any) -> None:
        if meeting.state == "params":
            flat = [
                torch.cat([s[n].flatten(1) for n in names], 1) != 0
                for s in (meeting.stack, trainer.state.local["params"], trainer.state.shared["params"])
            ]
            seen.clients.append(flat[0])
            seen.server.append(flat[2][0])
            seen.regrown.append(int((flat[1] & ~flat[2]).sum()))

    trainer.comm.subscribe(look)
    seen.events = list(trainer.events())
    return seen, trainer


def iou(masks: Tensor) -> list[float]:
    return [int((a & b).sum()) / int((a | b).sum()) for i, a in enumerate(masks) for b in masks[:i]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("inner", [SLOW, FAST], ids=["slow", "fast"])
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_with_beta_above_one_nothing_regrows_and_masks_become_one(sparsity: float, inner: Optimizer, seed: int) -> None:
    """Nothing ever regrows. Clients prune a dense model once, each its own way; from the next time on they agree but for a few
    weights at the border, which become fewer; with small steps they are gone within five rounds. When the server has exactly the
     target, all have one mask, and it stays.
    """
    seen, _ = followed(digits(SparsyFed(3, sparsity, inner=inner), steps=45, seed=seed))
    n, full = seen.server[0].numel(), num_kept(seen.server[0].numel(), sparsity)
    assert n == 32 * 64 + 10 * 32
    assert seen.regrown == [0] * 15
    assert all(int(m.sum()) == full for masks in seen.clients for m in masks)
    too_many = [int(server.sum()) - full for server in seen.server]
    assert too_many == sorted(too_many, reverse=True)
    assert too_many[-1] < 0.03 * full
    assert inner is FAST or not any(too_many[6:])
    for masks, more in zip(seen.clients, too_many, strict=True):
        assert (min(iou(masks)) == 1.0) if more == 0 else min(iou(masks)) >= (full - more) / (full + more)


@pytest.mark.parametrize("rate", [0.1, 2.0])
@pytest.mark.parametrize("sparsity", [0.8, 0.95])
def test_after_a_round_that_is_pruned_to_the_target_masks_are_equal_for_good(sparsity: float, rate: float) -> None:
    """From a server that has one mask, in every round: IoU 1.0 for clients and server, no regrowth, sparsity as it should be."""
    seen, _ = followed(digits(SparsyFed(3, sparsity, inner=Optimizer("SGD", rate))), begins_with=sparsity)
    mask = seen.server[0]
    assert int(mask.sum()) == num_kept(mask.numel(), sparsity)
    assert seen.regrown == [0] * 8
    assert all(torch.equal(m, mask) for masks in seen.clients for m in masks)
    assert all(torch.equal(server, mask) for server in seen.server)


@pytest.mark.parametrize("method", [TopK(3, 0.9, FAST), SparsyFed(3, 0.9, 1.0, inner=FAST)], ids=["top_k", "beta 1"])
def test_with_beta_one_masks_differ_weights_come_back_and_the_target_is_missed(method: Method) -> None:
    seen, _ = followed(digits(method))
    n = seen.server[0].numel()
    for masks, server, regrown in zip(seen.clients[1:], seen.server[2:], seen.regrown[1:], strict=False):
        assert np.mean(iou(masks)) < 0.99
        assert regrown > 0
        assert int(server.sum()) > num_kept(n, 0.9)
    assert all(torch.equal(server, masks.any(0)) for masks, server in zip(seen.clients, seen.server[1:], strict=False))


@pytest.mark.parametrize("inner", [FAST, SGDM], ids=lambda i: i.name)
def test_flash_has_one_mask_from_the_second_round_on(inner: Optimizer) -> None:
    """All weights in the first; then so many, for good, also where a momentum of the first round would move others."""
    seen, _ = followed(digits(FLASH(3, 0.9, inner, "kept")))
    n = seen.server[0].numel()
    assert all(bool(m.all()) for m in seen.clients[0])
    assert int(seen.server[1].sum()) == num_kept(n, 0.9)
    for masks in seen.clients[1:]:
        assert all(torch.equal(m, seen.server[1]) for m in masks)
    assert seen.regrown == [0] * 8


@pytest.mark.parametrize("weight", ["samples", "uniform"])
@pytest.mark.parametrize("method", [TopK, ZeroFL, FLASH, SparsyFed])
def test_with_nothing_pruned_it_is_fedavg(method: Any, weight: Any) -> None:
    """Bit for bit; SparsyFed too, where β = 1 and no inputs are pruned. What travels is as much."""
    own = {"beta": 1.0, "activations": False} if method is SparsyFed else {}
    one = Trainer(digits(method(3, 0.0, inner=FAST, weight=weight, **own), steps=9, split="size:1"))
    two = Trainer(digits(FedProx(3, 0.0, FAST, weight=weight), steps=9, split="size:1"))
    sent = [[(r.step, r.workers, r.payload_bytes) for r in t.events() if isinstance(r, Sent)] for t in (one, two)]
    assert sent[0] == sent[1]
    for a, b in zip(one.state.shared["params"].blocks, two.state.shared["params"].blocks, strict=True):
        assert torch.equal(a, b)


class ByPlainTorch:
    """SparsyFed as its paper's box has it, on a perceptron with one hidden layer: numpy-like steps, no modules, no fleet."""

    def __init__(self, trainer: Trainer, seats: list[list[int]]):
        self.trainer, self.seats = trainer, seats
        self.m: SparsyFed = trainer.recipe.method  # type: ignore[assignment]
        self.u = {n: trainer.state.shared["params"][n][0].clone() for n in trainer.fleet.params.names()}
        self.weights = [n for n in self.u if n.endswith("weight")]

    def gradient(self, u: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        β = self.m.beta
        (w1, b1), (w2, b2) = ((f"{n}.weight", f"{n}.bias") for n in ("hidden.0", "head"))
        θ = {n: u[n].sign() * u[n].abs() ** β for n in self.weights}
        x = x.flatten(1).double()
        z = x @ θ[w1].T + u[b1]
        h = z.clamp_min(0.0)
        p = (h @ θ[w2].T + u[b2]).softmax(1)
        g2 = (p - F.one_hot(y, p.shape[1])) / len(y)
        g1 = (g2 @ θ[w2]) * (z > 0)
        slope = {n: β * u[n].abs() ** (β - 1) for n in self.weights}
        return {
            w1: slope[w1] * (g1.T @ few(x, θ[w1])),
            b1: g1.sum(0),
            w2: slope[w2] * (g2.T @ few(h, θ[w2])),
            b2: g2.sum(0),
        }

    def run(self) -> dict[str, Tensor]:
        m, data = self.m, self.trainer.setup.data
        for number, clients in enumerate(self.seats):
            handed = []
            for c in clients:
                u = {n: x.clone() for n, x in self.u.items()}
                for t in range(number * m.sync_every + 1, (number + 1) * m.sync_every + 1):
                    g = self.gradient(u, *data.batches.get(c, t))
                    u = {n: x - m.inner.lr * (g[n] + 0.01 * x) for n, x in u.items()}
                every = torch.cat([u[n].abs().flatten() for n in self.weights])
                R = m.sparsity_ramp_rounds
                target = m.sparsity * (1 - (1 - (number + 1) / R) ** 3) if number + 1 < R else m.sparsity
                least = every.sort(descending=True).values[round((1 - target) * len(every)) - 1]
                handed.append(
                    {n: torch.where(x.abs() >= least, x, 0.0) if n in self.weights else x for n, x in u.items()}
                )
            n_c = [data.samples_W[c] for c in clients]
            self.u = {n: sum(k / sum(n_c) * h[n] for k, h in zip(n_c, handed, strict=True)) for n in self.u}
        return self.u


@pytest.mark.parametrize("ramp", [0, 3])
def test_a_federation_in_plain_torch(ramp: int) -> None:
    """Twelve clients of different size, four a round, six rounds of two steps, with weight decay; all that the server knows."""
    inner = Optimizer("SGD", 0.5, {"weight_decay": 0.01})
    method = SparsyFed(2, 0.9, 1.25, sparsity_ramp_rounds=ramp, inner=inner)
    r = digits(method, hidden=8, steps=12, split="size:1", dtype="float64")
    trainer = Trainer(r)
    plain = ByPlainTorch(trainer, [])
    plain.seats = [e.clients for e in trainer.events() if isinstance(e, Seated)]
    assert len(plain.seats) == 6
    for n, x in plain.run().items():
        torch.testing.assert_close(trainer.state.shared["params"][n][0], x, rtol=1e-10, atol=1e-12)


# --- what others see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.25, 3.0])
def test_a_run_begins_as_its_model_begins_and_is_scored_with_what_it_computes_with(beta: float) -> None:
    """θ at the start are the first values of the dense model; after some rounds the scored model is the plain one with θ."""
    dense, sparse = (
        Trainer(digits(FedProx(3, 0.0, FAST), dtype="float64")),
        Trainer(digits(SparsyFed(3, 0.8, beta, inner=FAST), dtype="float64")),
    )
    x = drawn(5, 64)
    torch.testing.assert_close(
        sparse.fleet.whole_model(sparse.agreed())(x), dense.fleet.whole_model(dense.agreed())(x), rtol=1e-5, atol=1e-6
    )
    for _ in sparse.events():
        pass
    u = {n: sparse.state.shared["params"][n][0] for n in sparse.fleet.params.names()}
    theta = {n: v.sign() * v.abs() ** beta if n.endswith("weight") else v for n, v in u.items()}
    plain: Any = Trainer(digits(FedProx(3, 0.0, FAST), dtype="float64")).fleet.whole_model(dense.agreed())
    plain.load_state_dict(theta)
    scored = sparse.fleet.whole_model(sparse.agreed())
    torch.testing.assert_close(scored(x), plain(x))
    exported = plain_(scored)
    assert {n: torch.equal(p, theta[n]) for n, p in exported.named_parameters()} == dict.fromkeys(theta, True)
    torch.testing.assert_close(exported(x), plain(x))


def test_what_is_exported_is_what_it_computes_with(tmp_path: Path) -> None:
    """θ under the names of the plain model, so that it runs wherever that does."""
    r = digits(SparsyFed(3, 0.8, inner=FAST), steps=6, checkpoint_every=6)
    train(r, tmp_path / r.id)
    folder = RunFolder(tmp_path / r.id)
    export_run(folder, tmp_path / "out", whole=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    plain: Any = digits(FedProx(3)).model.module(Shape(input=(64,), outputs=10), 0)
    plain.load_state_dict(written)
    x = drawn(5, 64).float()
    torch.testing.assert_close(plain(x), trained(folder)(x))
    assert float((written["hidden.0.weight"] == 0).float().mean()) > 0.5


IMAGES: dict[str, Any] = {
    "data": {"name": "digits", "seed": 3},
    "model": {"name": "cnn", "channels": [2, 2], "hidden": 8},
    "dtype": "float64",
}


@pytest.mark.parametrize("method", [SparsyFed(3, 0.5), ZeroFL(3, 0.5)], ids=lambda m: type(m).__name__)
def test_thresholds_of_convolutions_are_found_in_each_round_and_survive_a_stop(method: Method, tmp_path: Path) -> None:
    r = recipe(method, clients={"num": 7}, num_workers=4, steps=6, split="iid", **IMAGES)
    trainer, found = Trainer(r), list[Any]()
    for event in trainer.events():
        if event.kind == "stepped":
            found.append({w: dict(of) for w, of in trainer.state.facts["thresholds"].items()})
    assert found[0] == found[1] == found[2] != found[3] == found[4] == found[5]
    assert {len(of) for of in found[0].values()} == {2}
    assert len(found[0]) == 4
    stop_and_go(r, tmp_path)


# --- what a run says of its masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [SparsyFed(3, 0.9, inner=FAST), TopK(3, 0.9, FAST), FLASH(3, 0.9, FAST)], ids=lambda m: type(m).__name__
)
def test_a_run_says_whose_masks_agree(method: Method) -> None:
    """By hand, from the tensors themselves."""
    seen, trainer = followed(digits(method))
    told = [e for e in seen.events if isinstance(e, Masked)]
    assert [e.step for e in told] == list(range(3, 25, 3))
    after = [
        *seen.server[1:],
        torch.cat([trainer.state.shared["params"][n].flatten() for n in prunable(trainer.fleet)]) != 0,
    ]
    for e, masks, before, server, regrown in zip(told, seen.clients, seen.server, after, seen.regrown, strict=True):
        assert (e.num_weights, e.clients, e.regrown) == (2368, 4, regrown)
        assert e.kept == float(masks.sum(1).double().mean())
        assert (e.server_before, e.server_kept) == (int(before.sum()), int(server.sum()))
        assert e.between == {"mean": pytest.approx(np.mean(iou(masks))), "least": min(iou(masks))}
        with_server = [iou(torch.stack([m, server]))[0] for m in masks]
        assert e.with_server == {"mean": pytest.approx(np.mean(with_server)), "least": min(with_server)}
        assert e.with_before == iou(torch.stack([before, server]))[0]
        assert e.sparsity == 1 - int(server.sum()) / 2368
        assert f"{regrown:,} weights had grown back" in e.words()


def test_of_many_clients_some_are_compared() -> None:
    """Forty in a round: the event is as small, and all count in what is a sum."""
    r = digits(TopK(2, 0.8, FAST), num_workers=40, clients={"num": 50}, steps=2, hidden=4, split="iid", batch_size=4)
    seen, _ = followed(r)
    (told,) = (e for e in seen.events if isinstance(e, Masked))
    some = seen.clients[0][[i * 40 // 32 for i in range(32)]]
    assert told.clients == 40
    assert told.between["mean"] == pytest.approx(np.mean(iou(some)))
    assert told.kept == float(seen.clients[0].sum(1).double().mean())


def test_pairs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [drawn(3, n, seed=n) > 0.5 for n in (7, 12)]
    whole = pairwise(masks)
    assert whole[0, 1] == pytest.approx(iou(torch.cat(masks, 1)[:2])[0])
    monkeypatch.setattr("lab.probes.masks.AT_ONCE", 5)
    assert torch.equal(pairwise(masks), whole)
    assert float(pairwise([torch.zeros(2, 3, dtype=torch.bool)])[0, 1]) == 1.0


# --- what goes with what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPARSE)
def test_what_it_does_not_go_with_is_said_in_one_line(name: str) -> None:
    with pytest.raises(RecipeError, match=r"prunes the weights of a model, and with lora.ranks adapters are trained"):
        recipe(name, lora={"ranks": [2]})
    with pytest.raises(RecipeError, match=r"sparsity = 1\.0 is not allowed"):
        METHODS[name](sparsity=1.0)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="inner_states = 'reset' is not available"):
        METHODS[name](inner=Optimizer("ADOPT", 1e-2))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "method", [SparsyFed(3, 0.9, inner=SLOW), TopK(3, 0.9), ZeroFL(3, 0.9), FLASH(3, 0.9)], ids=SPARSE
)
def test_what_a_plan_says_of_a_run(method: Method) -> None:
    """As many values go up, in as many bytes at most. Down it is the most that can be; of SparsyFed as many when clients agree."""
    r = digits(method, steps=24)
    sent, planned = [e for e in Trainer(r).events() if isinstance(e, Sent)], dry_run(r)

    def total(records: list[Sent], op: str, state: str, first: int = 1) -> int:
        return sum(e.bytes_all for e in records if (e.op, e.state) == (op, state) and e.step >= first)

    up = total(sent, "gather", "params"), total(planned, "gather", "params")
    assert up[1] - 4 * 2 * 4 * 8 <= up[0] <= up[1]  # two tensors, rounded up, of four clients in eight rounds
    assert total(sent, "gather", "mask") <= total(planned, "gather", "mask")
    down = total(sent, "broadcast", "params", 13), total(planned, "broadcast", "params", 13)
    together = isinstance(method, SparsyFed | FLASH)
    assert (down[1] - 4 * 2 * 4 * 4 <= down[0] <= down[1]) if together else (0.2 * down[1] < down[0] < 0.9 * down[1])


def test_notes_and_plans() -> None:
    r = digits(SparsyFed(3, 0.9, 1.0))
    assert [x for x in notes(r) if "method.beta = 1" in x]
    assert not [x for x in notes(digits(SparsyFed(3, 0.9))) if "method.beta" in x]
    r = digits(SparsyFed(3, 0.9), steps=9)
    n, rest = 32 * 64 + 320, 32 + 10
    values = [(x.step, x.op, sum(x.payload_bytes.values())) for x in dry_run(r) if x.state == "params"]
    assert values[0] == (1, "broadcast", 4 * (n + rest))
    assert {v for _, op, v in values[1:]} == {4 * (205 + 32 + rest)}  # a tenth of 2,048 and of 320, rounded up
    assert "mask" in plan(r).to_text()
