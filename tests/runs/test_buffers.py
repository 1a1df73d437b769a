"""Buffers as a state: what workers send of them and what they then have, against plain modules; and what is counted."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.engine.optim import Optimizer
from lab.engine.state import State
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.methods.ddp import DDP
from lab.methods.local_sgd import LocalSGD
from lab.recipes.buffers import Buffers
from lab.runs.buffers import STATE, BufferSync
from lab.testing.subject import Heard
from tests.support.bench import F64, batch, close, fill_, other
from tests.support.buffered import Synced, normed

SGD = Optimizer("SGD", 0.1)


class Plain:
    """Workers as modules and optimizers of torch's own."""

    def __init__(self, num_workers: int = 3):
        self.nets = [normed() for _ in range(num_workers)]
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]

    def step(self, t: int, up: list[bool]) -> None:
        for w, (net, optimizer) in enumerate(zip(self.nets, self.optimizers, strict=True)):
            if up[w]:
                optimizer.zero_grad()
                net.loss(*batch(w, t)).backward()
                optimizer.step()

    def mean_(self, up: list[bool], buffers: bool) -> None:
        """Parameters, or floating buffers, become their mean over those that are up."""
        here = [
            dict(n.named_buffers() if buffers else n.named_parameters())
            for n, u in zip(self.nets, up, strict=True)
            if u
        ]
        with torch.no_grad():
            for name, x in here[0].items() if here else ():
                mean = torch.stack([of[name] for of in here]).mean(0) if x.is_floating_point() else None
                for of in here if mean is not None else ():
                    of[name].copy_(mean)

    def is_as(self, bench: Synced) -> bool:
        for w, net in enumerate(self.nets):
            for name, p in net.named_parameters():
                if not close(bench.fleet.params.cell(name, w), p.detach()):
                    return False
            if not all(close(x, bench.buffers(w)[name]) for name, x in net.named_buffers()):
                return False
        return True


COMING_AND_GOING = [
    (True,) * 3,
    (True, False, True),
    (False, True, True),
    (False,) * 3,
    (False, True, False),
    (True,) * 3,
]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_averaged_is_the_mean_of_plain_modules(every: int) -> None:
    """Parameters every three steps, floating buffers every so many; counts of batches stay each worker's own."""
    bench, plain = Synced(LocalSGD(3, SGD, max_norm=None), Buffers("averaged", every)), Plain()
    for t, up in enumerate(map(list, COMING_AND_GOING), 1):
        bench.fleet.set_up(up)
        bench.run(1)
        plain.step(t, up)
        if t % 3 == 0:
            plain.mean_(up, buffers=False)
        if t % every == 0:
            plain.mean_(up, buffers=True)
        assert plain.is_as(bench), t
    assert [int(bench.buffers(w)["norm.num_batches_tracked"]) for w in range(3)] == [3, 4, 4]
    assert [int((bench.buffers(w)["norm.running_mean"] != 0).sum()) for w in range(3)] == [4] * 3


def test_averaged_with_the_rounds_of_the_method() -> None:
    by_itself, said = (Synced(LocalSGD(2, SGD), Buffers("averaged", every)).run(5) for every in (None, 2))
    assert {r.step for r in by_itself.sent} == {2, 4}
    assert by_itself.records == said.records
    assert {r.step for r in Synced(DDP(SGD), Buffers("averaged")).run(3).sent} == {1, 2, 3}


def test_first_is_those_of_the_first_before_every_pass() -> None:
    """As ``DistributedDataParallel`` has it, of all dtypes; where worker 0 is down, the next one leads."""
    bench, plain = Synced(LocalSGD(3, SGD, max_norm=None), Buffers("first")), Plain()
    for t, up in enumerate(map(list, COMING_AND_GOING), 1):
        bench.fleet.set_up(up)
        bench.run(1)
        leader = up.index(True) if any(up) else 0
        for w in range(3):
            if up[w] and w != leader:
                for mine, theirs in zip(plain.nets[w].buffers(), plain.nets[leader].buffers(), strict=True):
                    mine.copy_(theirs)
        plain.step(t, up)
        if t % 3 == 0:
            plain.mean_(up, buffers=False)
        assert plain.is_as(bench), t
    assert [int(bench.buffers(w)["norm.num_batches_tracked"]) for w in range(3)] == [3, 3, 3]


def test_frozen_is_evaluation_mode() -> None:
    """The layer computes with its first statistics, which nothing moves; all other layers train."""
    bench, plain = Synced(LocalSGD(3, SGD, max_norm=None), Buffers("frozen")), Plain()
    for net in plain.nets:
        net.norm.eval()
    for t in range(1, 5):
        bench.run(1)
        plain.step(t, [True] * 3)
        if t == 3:
            plain.mean_([True] * 3, buffers=False)
        assert plain.is_as(bench), t
    assert bench.buffers(1)["norm.num_batches_tracked"] == 0
    assert all(m.training and not m.norm.training for m in bench.fleet.modules)
    assert not bench.sent
    assert not close(bench.fleet.params.cell("norm.weight", 0), normed().norm.weight.detach())


class Counting(nn.Module):
    """Moves a buffer in whatever mode, and puts a new tensor in the place of another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, dtype=F64))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3, dtype=F64))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen = self.seen + x.detach().sum(0)
        return (x * self.weight).square().mean()


def counting(worker: int | None) -> nn.Module:
    return fill_(Counting())


def test_what_moves_in_evaluation_mode_cannot_be_frozen() -> None:
    with pytest.raises(
        RecipeError, match=r"buffers.kind = 'frozen' .* and seen was moved there as well: use local"
    ) as info:
        Synced(LocalSGD(3, SGD), Buffers("frozen"), build=counting).run(1)
    assert "\n" not in str(info.value)


def test_a_buffer_that_is_replaced_is_averaged_as_well() -> None:
    bench = Synced(LocalSGD(3, SGD), Buffers("averaged", 2), 2, build=counting).run(2)
    want = sum(batch(w, t)[0].sum(0) for w in range(2) for t in (1, 2)) / 2
    assert close(bench.buffers(0)["seen"], want)
    assert close(bench.buffers(1)["seen"], want)
    bench.run(1)
    assert close(bench.buffers(1)["seen"], want + batch(1, 3)[0].sum(0))


@pytest.mark.parametrize("kind", ["local", "averaged"])
def test_who_alone_is_heard_is_alone(kind: Any) -> None:
    """Other data at one worker changes its own buffers, and none of a worker that does not hear it."""
    mine, changed = (
        Synced(LocalSGD(2, SGD), Buffers(kind, 2), communicator=partial(Heard, 0), batch=b).run(5)
        for b in (batch, other({1: 77}))
    )
    for w, name in itertools.product(range(2), ("norm.running_mean", "norm.running_var")):
        assert torch.equal(mine.buffers(w)[name], changed.buffers(w)[name]) == (w != 1)


@pytest.mark.parametrize("kind", ["local", "averaged"])
def test_relabelling_workers_relabels_their_buffers(kind: Any) -> None:
    deal = {0: 2, 1: 0, 2: 1}
    plain, dealt = (Synced(LocalSGD(3, SGD), Buffers(kind, 2), batch=b).run(5) for b in (batch, other(deal)))
    for w, name in itertools.product(range(3), plain.buffers(0)):
        assert close(plain.buffers(deal[w])[name], dealt.buffers(w)[name])
    assert plain.records == dealt.records


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_bytes_by_hand() -> None:
    """Four channels have a mean and a variance: 8 numbers of 8 bytes, and a count of 8 bytes which only ``first`` sends."""
    for kind in ("local", "frozen"):
        assert not Synced(DDP(SGD), Buffers(kind)).run(3).sent  # type: ignore[arg-type]
    averaged = Synced(DDP(SGD), Buffers("averaged", 2)).run(4).sent
    assert averaged == [Sent(t, "all_reduce", STATE, (0, 1, 2), {"norm": 64}) for t in (2, 4)]
    first = Synced(DDP(SGD), Buffers("first")).run(2).sent
    assert first == [Sent(t, "broadcast", STATE, (1, 2), {"norm": n}) for t in (1, 2) for n in (64, 8)]
    alone = Synced(DDP(SGD), Buffers("first"), 1).run(2)
    assert not alone.sent


@pytest.mark.parametrize("kind", ["local", "averaged", "first", "frozen"])
def test_dry_is_the_run(kind: Any) -> None:
    real, dry = (Synced(LocalSGD(2, SGD), Buffers(kind, 3), device=d) for d in ("cpu", "meta"))
    for up in COMING_AND_GOING:
        real.fleet.set_up(list(up))
        dry.fleet.set_up(list(up))
        real.run(1)
        dry.run(1)
    assert real.records == dry.records
    assert bool(real.sent) == (kind in ("averaged", "first"))


def test_who_is_back_receives_what_it_missed() -> None:
    """The mean of those that were up, counted once; under ``first`` it is served like all others, and under ``local`` not at all."""
    for kind, num in (("averaged", 1), ("first", 0), ("local", 0)):
        bench = Synced(LocalSGD(9, SGD), Buffers(kind, 9)).run(1)  # type: ignore[arg-type]
        bench.fleet.set_up([True, False, True])
        bench.run(2)
        before, counted = [bench.buffers(w) for w in range(3)], len(bench.sent)
        bench.sync.catch_up_([1], [True, False, True])
        assert bench.sent[counted:] == [Sent(3, "broadcast", STATE, (1,), {"norm": 64})] * num
        for name, x in bench.buffers(1).items():
            mean = (before[0][name] + before[2][name]) / 2
            assert close(x, mean if num and x.is_floating_point() else before[1][name]), (kind, name)
        for w, name in itertools.product((0, 2), before[0]):
            assert torch.equal(bench.buffers(w)[name], before[w][name])


def test_with_a_server_they_are_handed_in_and_fetched() -> None:
    """In rounds of two steps: all fetch at their beginning, who comes back in the midst then, and the server has the mean."""
    bench = Synced(LocalSGD(9, SGD, max_norm=None), Buffers("averaged", 2))
    served: State = bench.state
    served.served = True
    bench.sync = BufferSync(Buffers("averaged", 2), served, bench.comm, lambda: 9)
    plain, up = Plain(), [True, True, False]
    agreed = {n: x.clone() for n, x in plain.nets[0].named_buffers() if "running" in n}
    for t, now in enumerate((up, [True] * 3, [False, True, True], [False, True, True]), 1):
        served.returned = [2] if t == 2 else []
        bench.fleet.set_up(list(now))
        bench.run(1)
        for w in [w for w in range(3) if now[w] and (t in (1, 3) or w in served.returned)]:
            for name, x in agreed.items():
                dict(plain.nets[w].named_buffers())[name].copy_(x)
        plain.step(t, list(now))
        assert plain.is_as(bench), t
        if t % 2 == 0:
            for name in agreed:
                values = [dict(net.named_buffers())[name] for w, net in enumerate(plain.nets) if now[w]]
                agreed[name] = torch.stack(values).mean(0)
                assert close(served.shared[STATE][name][0], agreed[name])
    norm = {"norm": 64}
    assert bench.sent == [
        Sent(1, "broadcast", STATE, (0, 1), norm),
        Sent(2, "broadcast", STATE, (2,), norm),
        Sent(2, "reduce", STATE, (0, 1, 2), norm),
        Sent(3, "broadcast", STATE, (1, 2), norm),
        Sent(4, "reduce", STATE, (1, 2), norm),
    ]
    with pytest.raises(RecipeError, match="'first' is for workers that all hold the whole model, and here a server"):
        BufferSync(Buffers("first"), served, bench.comm, lambda: 9)


def test_constant_buffers_are_neither_sent_nor_copied() -> None:
    """A model without buffers in its state has no stacks for them, and says that the option changes nothing."""

    def build(worker: int | None) -> nn.Module:
        module = normed()
        module.norm = nn.Identity()
        return module

    bench = Synced(DDP(SGD), Buffers("averaged"), build=build).run(2)
    assert bench.sync.layouts == {}
    assert not bench.sent
    assert "table" in bench.buffers(0)
    (line,) = bench.sync.notes()
    assert "buffers.kind = 'averaged' makes no difference" in line
    assert not [*Synced(DDP(SGD), Buffers("averaged")).sync.notes()]


def test_buffers_have_the_dtype_of_the_fleet() -> None:
    """As with ``module.to(dtype)``, but for those that no ``state_dict`` has."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("angles", torch.ones(2), persistent=False)

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(x).square().mean()

    bench = Synced(DDP(SGD), Buffers("averaged"), build=lambda w: Narrow()).run(1)
    dtypes = {n: x.dtype for n, x in bench.buffers(0).items()}
    assert dtypes == {
        "norm.running_mean": F64,
        "norm.running_var": F64,
        "norm.num_batches_tracked": torch.int64,
        "angles": torch.float32,
    }


def test_whose_buffers_are_the_models() -> None:
    up = [False, True, True]
    assert Buffers("first").of_model(up) == [False, True, False]
    assert Buffers("averaged").of_model(up) == up == Buffers().of_model(up)
