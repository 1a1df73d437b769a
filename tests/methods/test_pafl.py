"""PaFL: steps by hand, the paper's terms written out without autograd, corners in which it is FedAvg, what is looked at and left alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.engine.optim import Optimizer
from lab.events import Evaluated
from lab.ground.errors import RecipeError
from lab.methods.fedprox import FedProx
from lab.methods.holding_on import Hold, _distilled
from lab.methods.pafl import PaFL
from lab.methods.rounds import fetched
from lab.models.distillation import loss_and_predictions
from lab.recipes.clients import Clients
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from lab.runs.trainer import Trainer
from tests.support.bench import F64, Bench, Net, close, drawn
from tests.support.listed import SGD, SGDM
from tests.support.recipes import corpus, normed, recipe
from tests.support.stop_and_go import stop_and_go

RATE = 0.1
PLAIN = Optimizer("SGD", RATE)
EWC, KD = {1: "ewc"}, {1: "kd"}


class Softmax(nn.Module):
    """Which of three classes, by a linear map of two numbers: 6 parameters, whose gradients one can write down."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.empty(3, 2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.map.T

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y)


def softmax(worker: int | None) -> nn.Module:
    module = Softmax()
    if worker is None:
        module.map.data.copy_(START)
    return module


def seen(worker: int, t: int) -> tuple[Tensor, Tensor]:
    x = drawn(4, 2, purpose=("x", worker, t))
    return x, (x[:, 0] + worker > 0.5).long() + (x[:, 1] > 0).long()


def gradients(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross entropy of each example: (p − e_y)·xᵀ, ``[B, 3, 2]``."""
    return ((x @ w.T).softmax(1) - F.one_hot(y, 3))[:, :, None] * x[:, None, :]


START = drawn(3, 2, purpose=("start",))


# --- steps by hand ----------------------------------------------------------------------------------------------------


def test_a_round_with_ewc_in_numbers() -> None:
    """Two classes alike at w = 0, and x = (1): p = ½. The gradient is ∓½ for both rows, and its square, the Fisher information, ¼.

    After a step of 0.1 the rows are ±0.05. With λ = 2 the next has −σ(−0.1) from the loss and 2·¼·0.05 from the pull.
    """

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, 1, dtype=F64))

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(x @ self.w.T, y)

    batch = torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=torch.long)
    bench = Bench(PaFL(2, EWC, 2.0, inner=PLAIN), 1, build=lambda worker: Two(), batch=lambda worker, t: batch)
    assert bench.run(1).of(0).tolist() == pytest.approx([0.05, -0.05], rel=1e-15)
    assert bench.of(0, "fisher").tolist() == pytest.approx([0.25, 0.25], rel=1e-15)
    g = -1 / (1 + math.exp(0.1)) + 2 * 0.25 * 0.05
    assert bench.run(1).of(0).tolist() == pytest.approx([0.05 - 0.1 * g, -0.05 + 0.1 * g], rel=1e-14)


@pytest.mark.parametrize("weight", ["uniform", "samples"])
def test_rounds_written_out_without_autograd(weight: Any) -> None:
    """Six rounds of two steps with each loss twice, client 1 away in the last step of the second, and in the first of the third."""
    method = PaFL(2, {1: "ewc", 2: "kd", 3: "ewc", 4: "plain", 5: "kd"}, 3.0, 2.0, 0.3, PLAIN, weight=weight)
    bench = Bench(method, 2, build=softmax, batch=seen)
    bench.state.samples_W = [3, 1]
    p, server = [0.75, 0.25] if weight == "samples" else [0.5, 0.5], START
    w_k, fisher, was = [START] * 2, [torch.zeros_like(START)] * 2, [True] * 2
    for t in range(1, 13):
        up, loss = [True, t not in (4, 5)], ["ewc", "kd", "ewc", "plain", "kd", "kd"][(t - 1) // 2]
        for k in range(2):
            x, y = seen(k, t)
            if up[k] and (t % 2 == 1 or not was[k]):
                w_k[k], fisher[k] = server, gradients(server, x, y).square().mean(0)
            g = gradients(w_k[k], x, y).mean(0)
            if loss == "ewc":
                g = g + 3.0 * fisher[k] * (w_k[k] - server)
            elif loss == "kd":
                apart = (x @ w_k[k].T / 2).softmax(1) - (x @ server.T / 2).softmax(1)
                g = 0.3 * 2.0**2 * g + 0.7 * (apart[:, :, None] * x[:, None, :]).mean(0) / 2
            w_k[k] = w_k[k] - RATE * g if up[k] else w_k[k]
        if t % 2 == 0:
            there = [k for k in range(2) if up[k]]
            server = sum(p[k] * w_k[k] for k in there) / sum(p[k] for k in there)
        bench.fleet.up, bench.state.returned = up, [k for k in range(2) if up[k] and not was[k]]
        bench.run(1)
        was = up
        for k in range(2):
            assert close(bench.of(k), w_k[k].flatten()), (t, k)
            assert not up[k] or loss != "ewc" or close(bench.of(k, "fisher"), fisher[k].flatten()), (t, k)
        assert close(bench.shared("params"), server.flatten()), t


def test_of_numbers_the_teacher_is_a_normal_distribution() -> None:
    """(1 − α)·(θᴳ(x) − θ(x))² / 2K², the mean over all numbers: its gradient by torch, from a loss that is written out."""
    bench, by_hand = Bench(PaFL(3, KD, temperature=2.0, share=0.25, inner=PLAIN), 1), Net()
    bench.run(1)
    by_hand.load_state_dict({n: bench.fleet.params.cell(n, 0) for n in bench.fleet.params.names()})
    teacher = Net()
    teacher.load_state_dict({n: bench.state.shared["params"][n][0] for n in bench.fleet.params.names()})
    x, y = bench.batch(0, 2)  # type: ignore[misc]
    whole = 0.25 * 4 * by_hand.loss(x, y) + 0.75 * (by_hand(x) - teacher(x).detach()).square().mean() / 8
    whole.backward()
    bench.run(1)
    for n, q in by_hand.named_parameters():
        assert close(bench.fleet.grads.cell(n, 0), q.grad)


def test_of_text_every_token_that_counts_is_a_prediction() -> None:
    """The second step of two clients with text, against torch's own KL divergence over their tokens."""
    trainer = Trainer(recipe(PaFL(4, KD, temperature=1.5, share=0.4, inner=PLAIN), steps=2), corpus=corpus())
    start = trainer.fleet.params.first().clone()
    stepped = list(trainer.events())
    assert stepped
    setup = trainer.setup
    assert setup.data is not None
    student, teacher = setup.fleet.build(None).double(), setup.fleet.build(None).double()
    for module in (student, teacher):
        module.load_state_dict({n: start[n][0] for n in start.names()}, strict=False)
    for t in (1, 2):
        ids, targets = setup.data.batches.get(1, t)
        logits, others = student(ids), teacher(ids).detach()
        kl = F.kl_div((logits / 1.5).log_softmax(-1), (others / 1.5).softmax(-1), reduction="none").sum(-1).mean()
        whole = 0.4 * 1.5**2 * F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + 0.6 * kl
        student.zero_grad()
        whole.backward()
        with torch.no_grad():
            for q in student.parameters():
                q -= RATE * q.grad  # type: ignore[operator]
    for n, q in student.named_parameters():
        assert close(setup.fleet.params.cell(n, 1), q.detach(), 1e-10), n


def test_what_does_not_count_teaches_nothing() -> None:
    """Targets of −100 are in neither mean; where none counts, all that is learnt is nothing."""
    x, y = seen(0, 1)
    some = torch.where(torch.arange(4) < 2, y, -100)

    def after(targets: Tensor, rows: slice) -> Tensor:
        method = PaFL(9, KD, share=0.5, inner=PLAIN)
        bench = Bench(method, 1, build=softmax, batch=lambda worker, t: (x[rows], targets[rows]))
        return bench.run(3).of(0)

    assert close(after(some, slice(None)), after(some, slice(2)))
    module = softmax(None)
    module.loss = lambda x, y: F.cross_entropy(module(x), y, reduction="sum")  # type: ignore[assignment]
    given = fetched(Bench(PaFL(2, KD), 1, build=softmax, batch=seen).state)
    loss = _distilled(Hold("kd"), given, module, 0, x, torch.full((4,), -100))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not module.map.grad.any()  # type: ignore[union-attr]


def test_rows_without_a_target_have_no_part_in_the_fisher_information() -> None:
    x, y = seen(0, 1)
    some = torch.where(torch.arange(4) == 1, -100, y)
    bench = Bench(PaFL(2, EWC, inner=PLAIN), 1, build=softmax, batch=lambda worker, t: (x, some))
    kept = [0, 2, 3]
    assert close(bench.run(1).of(0, "fisher"), gradients(START, x[kept], y[kept]).square().mean(0).flatten())


# --- corners ----------------------------------------------------------------------------------------------------------

CORNERS = {
    "λ = 0": {"losses": EWC, "strength": 0.0},
    "α = 1, K = 1": {"losses": KD, "share": 1.0, "temperature": 1.0},
    "all plain": {"losses": {}},
    "a loss that comes too late": {"losses": {9: "ewc"}},
}


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS.keys())
@pytest.mark.parametrize("weight", ["uniform", "samples"])
@pytest.mark.parametrize("inner", [SGD, SGDM], ids=lambda x: x.name)
def test_in_a_corner_it_is_fedavg_bit_for_bit(corner: dict[str, Any], weight: Any, inner: Optimizer) -> None:
    one = Bench(PaFL(2, inner=inner, weight=weight, **corner), 3)
    other = Bench(FedProx(2, 0.0, inner, weight=weight), 3)
    one.state.samples_W = other.state.samples_W = [5, 1, 2]
    for _ in range(6):
        assert torch.equal(one.step(), other.step())
        assert torch.equal(one.shared("params"), other.shared("params"))
        assert all(torch.equal(one.of(w), other.of(w)) for w in range(3))


FEDERATION: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [8]},
    "data": "digits",
    "split": "dirichlet:0.3",
    "num_workers": 9,
    "clients": {"num": 20},
    "batch_size": 5,
    "steps": 6,
    "dtype": "float64",
    "eval_every": 0,
    "eval_windows": 20,
    "checkpoint_every": 0,
}


def after(method: Any, **changes: Any) -> tuple[Trainer, Tensor]:
    trainer = Trainer(Recipe.of(FEDERATION | {"method": {"name": "pafl"}}).but(**changes | {"method": method}))
    list(trainer.events())
    agreed = trainer.agreed()
    return trainer, torch.cat([agreed[n].flatten() for n in agreed.names()])


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS.keys())
def test_in_a_corner_it_is_fedavg_where_all_clients_are_one_pass(corner: dict[str, Any]) -> None:
    """To rounding: what has a loss of its own is computed one client after another; the next step is one pass again."""
    trainer, found = after(PaFL(2, inner=SGD, **corner))
    plain, expected = after(FedProx(2, 0.0, SGD))
    for run in (trainer, plain):
        assert run.built.grad.vectorised is not None
        assert run.built.grad.vectorised.works
    assert close(found, expected, 1e-12)
    one_by_one, again = after(PaFL(2, inner=SGD, **corner), compute={"vectorised": False})
    assert torch.equal(after(FedProx(2, 0.0, SGD), compute={"vectorised": False})[1], again)
    assert one_by_one.built.grad.vectorised is None


@pytest.mark.parametrize("losses", [EWC, KD], ids=["ewc", "kd"])
def test_a_batch_in_parts_is_the_batch(losses: Any) -> None:
    method = PaFL(2, losses, 20.0, 1.5, 0.5, SGD)
    whole, parts = (after(method, compute={"accumulate": n, "vectorised": False})[1] for n in (1, 2))
    assert close(whole, parts, 1e-11)


def test_the_terms_hold_on_to_what_was_fetched() -> None:
    """The stronger, the nearer clients stay to θᴳ while they train; and what is reported is the loss of the data."""

    def way(**options: Any) -> float:
        bench = Bench(PaFL(9, inner=PLAIN, **options), 2, build=softmax, batch=seen).run(8)
        before, (x, y) = bench.of(0), seen(0, 9)
        step = bench.step()
        assert float(step[0]) == pytest.approx(float(F.cross_entropy(x @ before.view(3, 2).T, y)))
        return float((before - START.flatten()).norm())

    plain = way(losses={})
    ewc = [way(losses=EWC, strength=x) for x in (1.0, 10.0)]
    kd = [way(losses=KD, share=x) for x in (0.9, 0.1)]
    assert plain > ewc[0] > ewc[1]
    assert plain > kd[0] > kd[1]


# --- what is left alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [EWC, KD], ids=["ewc", "kd"])
def test_buffers_move_once_in_a_step(losses: Any) -> None:
    """Looking at examples one by one, and a teacher, leave the running means of a BatchNorm alone, and the module in training."""
    ran = [Trainer(normed(m, steps=1)) for m in (PaFL(4, losses, inner=SGD), FedProx(4, 0.0, SGD))]
    for trainer in ran:
        list(trainer.events())
    for module, other in zip(*(trainer.fleet.modules for trainer in ran), strict=True):
        assert module.training
        moved = dict(module.named_buffers())
        assert any(x.any() for x in moved.values())
        assert all(torch.equal(x, moved[n]) for n, x in other.named_buffers())


def test_what_is_personal_is_not_held_on_to() -> None:
    """Of two layers one is each client's own: no pull there, and a teacher that has the client's."""
    bench = Bench(PaFL(9, EWC, 50.0, inner=PLAIN), 2, personal=lambda name: name == "out").run(3)
    free = Bench(PaFL(9, {}, inner=PLAIN), 2, personal=lambda name: name == "out").run(3)
    assert bench.state.local["fisher"].cell("out", 0).any()  # known, and not used
    before = {n: bench.fleet.params.cell(n, 0).clone() for n in bench.fleet.params.names()}
    for n, x in before.items():
        free.fleet.params.cell(n, 0).copy_(x)
    bench.run(1), free.run(1)
    assert torch.equal(bench.fleet.grads.cell("out", 0), free.fleet.grads.cell("out", 0))
    assert not torch.equal(bench.fleet.grads.cell("hidden", 0), free.fleet.grads.cell("hidden", 0))

    taught = Bench(PaFL(9, KD, share=0.0, inner=PLAIN), 2, personal=lambda name: name == "out")
    taught.fleet.params.cell("out", 0).mul_(3)  # teacher and student have the same: nothing to learn
    taught.run(2)
    assert not any(taught.fleet.grads.cell(n, 0).any() for n in taught.fleet.params.names())


def test_a_loss_is_heard_where_it_is_made() -> None:
    class Two(nn.Module):
        def __init__(self, calls_itself: bool) -> None:
            super().__init__()
            self.net, self.passes, self.calls_itself = Net(), 0, calls_itself

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            return self.net(x)  # type: ignore[no-any-return]

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return ((self(x) if self.calls_itself else self.forward(x)) - y).square().mean()

    x, y = drawn(5, 3, purpose=("x",)), drawn(5, 2, purpose=("y",))
    for calls_itself, passes in ((True, 1), (False, 2)):
        module = Two(calls_itself)
        loss, given = loss_and_predictions(module, x, y)
        assert module.passes == passes
        assert torch.equal(given, module(x))
        assert torch.equal(loss, module.loss(x, y))
        assert not module._forward_hooks


# --- runs -------------------------------------------------------------------------------------------------------------

TURNS = PaFL(2, {1: "plain", 2: "ewc", 3: "kd"}, 5.0, 1.5, 0.5, SGD)


@pytest.mark.parametrize("clients", [{}, {"num": 7}, {"num": 7, "inner_states": "kept", "personal": ["*mlp*"]}])
def test_it_is_stopped_and_resumed(clients: Any, tmp_path: Path) -> None:
    stop_and_go(recipe(TURNS, steps=7, checkpoint_every=1, clients=Clients(**clients)), tmp_path)


def test_one_pass_is_taken_again_after_a_resume(tmp_path: Path) -> None:
    """A step with a loss of its own does not end the way of one pass, so that where a run was resumed makes no difference."""
    method = PaFL(1, {1: "kd", 2: "ewc", 3: "plain"}, inner=SGD)
    stop_and_go(Recipe.of(FEDERATION | {"steps": 5, "checkpoint_every": 1}).but(method=method), tmp_path)


def test_what_a_client_holds_is_counted() -> None:
    """θ, its gradient and θᴳ, and with EWC the Fisher information; the same bytes as FedAvg."""
    for losses, copies in (({}, 3), (KD, 3), (EWC, 4), ({4: "ewc"}, 4)):
        p = plan(recipe(PaFL(2, losses)), {})  # type: ignore[arg-type]
        assert p.state_bytes_per_worker == copies * 8 * p.num_params
        assert p.ledger == plan(recipe(FedProx(2)), {}).ledger


def test_what_makes_no_difference_gets_a_note() -> None:
    assert notes(recipe(PaFL(2, {1: "ewc", 3: "kd"}, 2.0, 2.0, 0.1))) == []
    assert notes(recipe(PaFL(2, {1: "ewc", 4: "kd"}))) == [
        "method.losses has kd from round 4 on, which is after the 6 steps of the run"
    ]
    assert notes(recipe(PaFL(2, KD, strength=2.0))) == [
        "method.strength = 2.0 makes no difference without ewc among method.losses"
    ]
    assert notes(recipe(PaFL(9, temperature=2.0, inner_states="kept"))) == [
        "method.sync_every = 9 is longer than the 6 steps of the run: nothing is ever synchronised",
        "method.temperature = 2.0 makes no difference without kd among method.losses",
        "method.inner_states = 'kept' makes no difference: SGD keeps nothing",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"losses": {0: "ewc"}}, r"losses has the key 0, which is not allowed"),
        ({"losses": {1: "ewd"}}, r"losses\.1 = 'ewd' is not allowed"),
        ({"strength": -1.0}, r"strength = -1\.0 is not allowed"),
        ({"share": 1.5}, r"share = 1\.5 is not allowed"),
        ({"temperature": 0.0}, r"temperature = 0\.0 is not allowed"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as info:
        PaFL(**options)
    assert "\n" not in str(info.value)


def test_a_schedule_is_an_option_of_the_command_line() -> None:
    r = Recipe.of("pafl", ["method.losses.3=kd", "method.losses.7=plain"])
    assert r.method.losses == Recipe.of("pafl").method.losses | {3: "kd", 7: "plain"}  # type: ignore[attr-defined]
    assert [dataclasses.replace(TURNS, sync_every=1).loss_in(t) for t in range(1, 6)] == [
        "plain",
        "ewc",
        "kd",
        "kd",
        "kd",
    ]
    assert PaFL(2, {3: "kd"}).loss_in(4) == "plain"


@pytest.mark.parametrize(("name", "loss"), [("pafl", "ewc"), ("pafl_kd", "kd")])
def test_the_presets_learn(name: str, loss: str) -> None:
    """Four rounds of the shipped federations of digits, of which the last two are with their loss."""
    assert Recipe.of(name).method.losses == {26: loss}  # type: ignore[attr-defined]
    r = Recipe.of(name, ["steps=40", "eval_every=20", "checkpoint_every=0", f"method.losses.3={loss}"])
    losses = [e.loss for e in Trainer(r).events() if isinstance(e, Evaluated)]
    assert losses[-1] < losses[0] < 2.4
