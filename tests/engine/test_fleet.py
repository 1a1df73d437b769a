"""Workers as modules over stacks: what is a view of what, who owns what, and what it costs."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.methods.ddp import DDP
from lab.methods.des_loc import DESLOC
from lab.methods.local_sgd import LocalSGD
from lab.models.gpt import SIZES
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet
from lab.runs.trainer import Trainer
from tests.support.bench import F64, Bench, batch, build, close, drawn, fill_, flat
from tests.support.listed import SGD
from tests.support.recipes import corpus, recipe


def toy_fleet(num_workers: int = 3, **more: Any) -> Fleet:
    return Fleet(build, num_workers, dtype=F64, threads=1, **more)


# --- views -----------------------------------------------------------------------------------------------------------


def test_parameters_and_gradients_are_views() -> None:
    """Every parameter and gradient of a worker's module lies inside that worker's row of the stack: no copies."""
    fleet = toy_fleet()
    for w, module in enumerate(fleet.modules):
        for name, p in module.named_parameters():
            assert p.data_ptr() == fleet.params.cell(name, w).data_ptr()
            assert p.grad is not None
            assert p.grad.data_ptr() == fleet.grads.cell(name, w).data_ptr()
            assert p.shape == fleet.params.cell(name, w).shape
            assert close(p.detach(), dict(build(None).named_parameters())[name].detach())
    fleet.params.cell("out", 1).fill_(7.0)
    assert (fleet.modules[1].out == 7).all()
    assert not (fleet.modules[0].out == 7).any()


def test_views_survive_training() -> None:
    """After steps, syncs and a gradient set anew, modules still look at the stacks."""
    bench = Bench(DESLOC({"params": 2, "exp_avg": 3})).run(6)
    for w, module in enumerate(bench.fleet.modules):
        for name, p in module.named_parameters():
            assert p.data_ptr() == bench.fleet.params.cell(name, w).data_ptr()
            assert p.grad.data_ptr() == bench.fleet.grads.cell(name, w).data_ptr()


def test_gradients_are_those_of_plain_modules_and_do_not_pile_up() -> None:
    """``backward`` fills each worker's gradient from its own batch, afresh in every call, and reports its loss."""
    bench = Bench(DDP())
    for t in (1, 2):
        bench.t = t
        loss_W = bench.grad(bench.state)
        for w in range(3):
            net = build(None)
            loss = net.loss(*batch(w, t))
            loss.backward()
            assert float(loss_W[w]) == pytest.approx(float(loss.detach()), rel=1e-14)
            for name, p in net.named_parameters():
                assert close(bench.fleet.grads.cell(name, w), p.grad)


def test_blocks_hold_all_elements_once() -> None:
    """Parameters and gradients together take 2 · W · P elements, each in one storage, and nothing else is stacked."""
    fleet = toy_fleet(5)
    blocks = [*fleet.params.blocks, *fleet.grads.blocks]
    assert sum(b.untyped_storage().nbytes() for b in blocks) == 2 * 5 * 24 * 8
    assert len({b.untyped_storage().data_ptr() for b in blocks}) == len(blocks)
    stored = {p.untyped_storage().data_ptr() for m in fleet.modules for p in m.parameters()}
    assert stored == {b.untyped_storage().data_ptr() for b in fleet.params.blocks}
    assert fleet.num_params() == 24


def test_rows_do_not_overlap() -> None:
    """Writing into any one cell changes that cell alone."""
    fleet = toy_fleet()
    names = list(fleet.params.names())
    for i, (name, w) in enumerate(itertools.product(names, range(3))):
        fleet.params.cell(name, w).fill_(float(i))
    for i, (name, w) in enumerate(itertools.product(names, range(3))):
        assert (fleet.params.cell(name, w) == i).all()


# --- tied, frozen, buffers -------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Input and output share one matrix; a frozen projection; a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False, dtype=F64)
        self.frozen = nn.Parameter(torch.empty(3, 3, dtype=F64), requires_grad=False)
        self.last = nn.Linear(3, 3, bias=False, dtype=F64)
        self.last.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(1, dtype=F64))

    def loss(self, x: Tensor) -> Tensor:
        self.seen += x.sum().detach()
        return self.last(torch.tanh(self.first(x) @ self.frozen)).square().mean()


def tied(worker: int | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # torch's own layers draw their first values from the global generator
        module = Tied()
    return module if worker is not None else fill_(module)


def test_tied_parameters_stay_tied() -> None:
    """A parameter under two names is one tensor with one gradient, stacked once."""
    fleet = Fleet(tied, 2, dtype=F64, threads=1)
    assert list(fleet.params.names()) == ["first.weight"]
    for module in fleet.modules:
        assert module.first.weight is module.last.weight
    bench = Bench(LocalSGD(2, SGD, max_norm=None), 2, build=tied, batch=lambda w, t: (batch(w, t)[0],)).run(5)
    assert bench.fleet.modules[0].first.weight is bench.fleet.modules[0].last.weight
    alone = tied(None)
    optimizer = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=3e-2)
    one = Bench(LocalSGD(2, SGD, max_norm=None), 1, build=tied, batch=lambda w, t: (batch(w, t)[0],)).run(5)
    for t in range(1, 6):
        optimizer.zero_grad()
        alone.loss(batch(0, t)[0]).backward()
        optimizer.step()
    assert close(one.of(0), alone.first.weight.detach().flatten())


def test_frozen_parameters_are_shared_and_not_stacked() -> None:
    """What does not train is kept once for all workers, never moves and never travels."""
    bench = Bench(LocalSGD(1, SGD), 3, build=tied, batch=lambda w, t: (batch(w, t)[0],)).run(3)
    first, second, third = (m.frozen for m in bench.fleet.modules)
    assert first.data_ptr() == second.data_ptr() == third.data_ptr()
    assert torch.equal(first, tied(None).frozen)
    assert not first.requires_grad
    assert bench.comm.ledger.by("worker") == {(w,): 3 * 9 * 8 for w in range(3)}


def test_buffers_are_each_workers_own() -> None:
    """A buffer belongs to its worker: it sees that worker's data alone and is never averaged."""
    bench = Bench(LocalSGD(1, SGD), 3, build=tied, batch=lambda w, t: (batch(w, t)[0],)).run(4)
    for w, module in enumerate(bench.fleet.modules):
        assert float(module.seen) == pytest.approx(sum(float(batch(w, t)[0].sum()) for t in range(1, 5)), rel=1e-12)


class SharedBuffer(nn.Module):
    """One table, used by two parts, as rotary positions often are."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.ones(3, dtype=F64)
        self.left, self.right = nn.Module(), nn.Module()
        self.left.register_buffer("table", table)
        self.right.register_buffer("table", table)
        self.scale = nn.Parameter(torch.empty(3, dtype=F64))

    def loss(self, x: Tensor) -> Tensor:
        return (x * self.scale * self.left.table + self.right.table).square().mean()


def test_a_buffer_under_two_names_works() -> None:
    """A buffer that two parts of a module share is found under both names."""

    def make(worker: int | None) -> nn.Module:
        return SharedBuffer() if worker is not None else fill_(SharedBuffer())

    bench = Bench(LocalSGD(1, SGD), 2, build=make, batch=lambda w, t: (batch(w, t)[0],)).run(1)
    assert bench.loss_W.isfinite().all()


class Adapter(nn.Module):
    """A frozen matrix in the module's own type, and a trained one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(3, 3), requires_grad=False)
        self.delta = nn.Parameter(torch.empty(3, 3))

    def loss(self, x: Tensor) -> Tensor:
        return (x @ (self.base + self.delta)).square().mean()


def test_frozen_parameters_follow_the_type_of_the_fleet() -> None:
    """A fleet in float64 computes in float64 throughout, whatever type the module was written in."""

    def make(worker: int | None) -> nn.Module:
        return Adapter() if worker is not None else fill_(Adapter())

    fleet = Fleet(make, 2, dtype=F64, threads=1)
    assert {t.dtype for m in fleet.modules for t in m.parameters()} == {F64}
    fleet.backward(lambda module, w: module.loss(batch(w, 1)[0]))


def test_any_module_with_a_loss_works() -> None:
    """A stock module of torch, wrapped in nothing but a loss, trains like itself."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, dtype=F64)
            self.head = nn.Linear(4, 2, dtype=F64)

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.head(self.body(x)).flatten(0, 1), y.flatten())

    def make(worker: int | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            module = Wrapped()
        return module if worker is not None else fill_(module)

    def words(worker: int, t: int) -> tuple[Tensor, Tensor]:
        return drawn(2, 3, 4, purpose=("x", worker, t)), (drawn(2, 3, purpose=("y", worker, t)) > 0).long()

    bench = Bench(DDP(SGD, max_norm=None), 1, build=make, batch=words).run(3)
    net = make(None)
    optimizer = torch.optim.SGD(net.parameters(), lr=3e-2)
    for t in range(1, 4):
        optimizer.zero_grad()
        net.loss(*words(0, t)).backward()
        optimizer.step()
    for name, p in net.named_parameters():
        assert close(bench.fleet.params.cell(name, 0), p.detach()), name


# --- dropout, threads ------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, dtype=F64))
        self.drop = nn.Dropout(0.5)

    def loss(self, x: Tensor) -> Tensor:
        return (self.drop(x) * self.weight).square().mean()


def noisy(worker: int | None) -> nn.Module:
    return Noisy() if worker is not None else fill_(Noisy())


def noise(threads: int, seeds: int = 0, steps: int = 3) -> tuple[Fleet, list[Tensor]]:
    fleet = Fleet(noisy, 3, dtype=F64, threads=threads)
    losses = [
        fleet.backward(lambda m, w: m.loss(drawn(50, 3, purpose=("x",))), lambda w, t=t: seeds + 10 * t + w)
        for t in range(steps)
    ]
    fleet.close()
    return fleet, losses


def test_modules_that_draw_run_side_by_side_and_repeat() -> None:
    """What a module draws hangs on the worker's seed alone: on no other worker, and on nobody else who draws meanwhile."""
    fleet, losses = noise(threads=2)
    assert set(fleet.draws.values()) == {(True, False)}
    with user_draws():
        again = noise(threads=3)[1]
    alone = noise(threads=1)[1]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(losses, again, alone, strict=True))
    assert (
        len({float(x) for loss_W in losses for x in loss_W}) == 9
    )  # same data: workers and steps differ by their draws
    assert not torch.equal(losses[0], noise(threads=2, seeds=1000)[1][0])
    calm = toy_fleet()
    calm.backward(lambda m, w: m.loss(*batch(w, 1)))
    assert set(calm.draws.values()) == {(False, False)}


@contextlib.contextmanager
def user_draws() -> Iterator[None]:
    """Somebody who draws from torch's global generator all the while, and gets the numbers of their seed."""
    over, drawn = threading.Event(), list[Tensor]()

    def draw() -> None:
        while not over.is_set():
            drawn.append(torch.rand(()))

    before = torch.get_rng_state()
    torch.manual_seed(7)
    somebody = threading.Thread(target=draw)
    somebody.start()
    try:
        yield
    finally:
        over.set()
        somebody.join()
        torch.set_rng_state(before)
    assert torch.equal(torch.stack(drawn), torch.rand(len(drawn), generator=torch.Generator().manual_seed(7)))


def test_threads_do_not_change_a_bit() -> None:
    """One thread or several: gradients are per worker, so losses, parameters and states are equal bit for bit."""
    results = []
    for threads in (1, 2, 3):
        trainer = Trainer(recipe("des_loc", steps=5), corpus=corpus())
        trainer.fleet.threads = threads
        list(trainer.events())
        results.append(trainer.snapshot()[0])
    assert results[0].keys() == results[1].keys() == results[2].keys()
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
        assert torch.equal(value, results[2][key]), key


def test_a_worker_that_is_down_is_not_computed() -> None:
    """Down means no forward pass, no gradient and no loss, not a loss of zero."""
    fleet = toy_fleet()
    fleet.up = [True, False, True]
    asked: list[int] = []

    def loss_of(module: Any, worker: int) -> Tensor:
        asked.append(worker)
        return module.loss(*batch(worker, 1))  # type: ignore[no-any-return]

    loss_W = fleet.backward(loss_of)
    assert asked == [0, 2]
    assert loss_W.isnan().tolist() == [False, True, False]
    assert float(fleet.grads.cell("out", 1).abs().sum()) == 0


def test_an_error_inside_a_worker_comes_out() -> None:
    """A module that raises does so in the caller, from the first step on and from worker threads."""

    def broken(module: Any, worker: int) -> Tensor:
        raise ValueError(f"worker {worker} is broken")

    fleet = Fleet(build, 3, dtype=F64, threads=2)
    with pytest.raises(ValueError, match="worker 0 is broken"):
        fleet.backward(broken)
    fleet.backward(lambda m, w: m.loss(*batch(w, 1)))
    with pytest.raises(ValueError, match="is broken"):
        fleet.backward(broken)
    fleet.close()


# --- the whole model, dry fleets -------------------------------------------------------------------------------------


def test_the_whole_model_is_the_agreed_one() -> None:
    """``whole_model`` is an ordinary module in eval mode that looks at the agreed values."""
    bench = Bench(LocalSGD(3, SGD)).run(2)
    agreed = bench.comm.agreed(bench.fleet.params)
    model = bench.fleet.whole_model(agreed)
    assert not model.training
    assert all(m.training for m in bench.fleet.modules)
    assert close(flat(model), sum(bench.of(w) for w in range(3)) / 3)
    assert all(not p.requires_grad for p in model.parameters())
    assert {p.untyped_storage().data_ptr() for p in model.parameters()} == {
        b.untyped_storage().data_ptr() for b in agreed.blocks
    }


@pytest.mark.parametrize("name", ["nano", "1.7B", "13B"])
def test_a_dry_fleet_has_shapes_and_no_storage(name: str) -> None:
    """Any size, the 13 billion parameters of the paper included, has a fleet without numbers."""
    fleet = build_fleet(Recipe(model=name, num_workers=4), Shape(256, 64), "meta")
    shape = SIZES[name]
    mlp, vocab = shape.mlp_dim or 4 * shape.dim, shape.vocab_size or 256
    per_layer = 4 * shape.dim**2 + 2 * shape.dim * mlp + 2 * shape.dim
    assert fleet.num_params() == vocab * shape.dim + shape.num_layers * per_layer + shape.dim
    assert all(b.is_meta for b in (*fleet.params.blocks, *fleet.grads.blocks))
    assert all(p.is_meta for m in fleet.modules for p in m.parameters())
    assert fleet.backward(lambda m, w: pytest.fail("a dry fleet computes nothing")).isnan().all()
    if name == "13B":
        assert 12.5e9 < fleet.num_params() < 13.5e9


def test_workers_start_equal_and_the_global_generator_is_left_alone() -> None:
    """Every worker starts from the whole model's values; building draws nothing from torch's global generator."""
    before = torch.get_rng_state()
    trainer = Trainer(recipe(), corpus=corpus())
    assert torch.equal(before, torch.get_rng_state())
    for block in trainer.fleet.params.blocks:
        assert torch.equal(block[0], block[1])
        assert torch.equal(block[0], block[2])
    other = Trainer(recipe(seed=1), corpus=corpus())
    assert not torch.equal(trainer.fleet.params["embedding"], other.fleet.params["embedding"])
