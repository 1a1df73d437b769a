"""Each law can fail: methods with one mistake each, as people make them, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

import lab
from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.state import Grad, State
from lab.ground.config import Period, config
from lab.ground.errors import RecipeError
from lab.methods import Method, method
from lab.methods.ddp import DDP
from lab.methods.diloco import DiLoCo
from lab.methods.local_sgd import LocalSGD
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from lab.testing.generators import own_generators
from lab.testing.method_laws import LAWS
from lab.testing.report import Finding, Report
from lab.testing.subject import Subject
from tests.support.recipes import NORMED


@config
class Average:
    """Local steps, and a mean of the parameters every so many: nothing is wrong with it."""

    sync_every: Period = 2
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=1e-2, betas=(0.5, 0.6)))

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        self.change_(s, loss_W, t)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            self.sync_(s, comm)
        return loss_W

    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        """Something before the inner step."""

    def sync_(self, s: State, comm: Communicator) -> None:
        comm.mean_(s.local["params"], "params")


class OptionThatGrows(Average):
    def __post_init__(self) -> None:
        object.__setattr__(self, "sync_every", self.sync_every + 1)


class MisspeltException(Average):
    def exceptions(self) -> Mapping[str, str]:
        return {"relabeling": "who cares"}


class SaysTooMuch(Average):
    @property
    def averages(self) -> tuple[str, ...]:
        return ("params", "exp_avg")


class NormOverAllRows(Average):
    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        for g in s.grads.blocks:
            g.div_(1 + g.norm())


class MeanByHand(Average):
    """All rows of a block at once, past the communicator."""

    def sync_(self, s: State, comm: Communicator) -> None:
        for x in s.local["params"].blocks:
            x.copy_(x.mean(0, keepdim=True).expand_as(x).clone())


class Sum(Average):
    def sync_(self, s: State, comm: Communicator) -> None:
        comm.mean_(s.local["params"], "params")
        for x in s.local["params"].blocks:
            x.mul_(s.fleet.num_workers)


class ForgetsTheMean(Average):
    def sync_(self, s: State, comm: Communicator) -> None:
        comm.mean(s.local["params"], "params")


class FirstIsSpecial(Average):
    def sync_(self, s: State, comm: Communicator) -> None:
        s.local["params"].copy_(comm.mean(s.local["params"], "params"), [w > 0 for w in range(s.fleet.num_workers)])


class IgnoresOptions(Average):
    def init(self, s: State) -> None:
        s.optimizers["inner"] = AdamW(self.inner.lr).over(s.local["params"], s.grads)


class StepsTwice(Average):
    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        self.inner.step_(s, t)


class SendsByValue(Average):
    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        self.inner.step_(s, t)
        if bool(loss_W.nan_to_num().sum() > 0):
            comm.mean_(s.local["params"], "params")
        return loss_W


class OneProcessSends(Average):
    def sync_(self, s: State, comm: Communicator) -> None:
        if 0 in s.fleet.mine:
            comm.mean_(s.local["params"], "params")


class Counts(Average):
    """What it counts is in its class, for all runs together."""

    seen: ClassVar[list[int]] = []

    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        self.seen.append(t)
        for g in s.grads.blocks:
            g.mul_(1 / len(self.seen))


class RemembersOnSelf(Average):
    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        object.__setattr__(self, "previous", [g.clone() for g in s.grads.blocks])


class Noise(Average):
    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        for g in s.grads.blocks:
            g.add_(torch.randn(g.shape, dtype=g.dtype) if not g.is_meta else 0.0)


class IgnoresTheSchedule(Average):
    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        for x, g in zip(s.local["params"].blocks, s.grads.blocks, strict=True):
            x.sub_(g, alpha=1e-3)


class HidesNaN(Average):
    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        for g in s.grads.blocks:
            g.nan_to_num_()
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            self.sync_(s, comm)
        return loss_W.nan_to_num()


class DecaysEverybody(Average):
    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        for x in s.local["params"].blocks:
            x.mul_(1 - 1e-3 * s.schedule(t))


class WritesToAll(Average):
    """The mean goes into all rows, whoever is up."""

    def sync_(self, s: State, comm: Communicator) -> None:
        s.local["params"].copy_(comm.mean(s.local["params"], "params"), [True] * s.fleet.num_workers)


class ServerThatWaits(Average):
    """It hands out at the beginning of rounds alone, and not to who is back."""

    def init(self, s: State) -> None:
        Average.init(self, s)
        s.shared["params"] = s.local["params"].first()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        if (t - 1) % self.sync_every == 0:
            to = [w for w, up in enumerate(s.fleet.up) if up]
            comm.broadcast_(s.shared["params"], s.local["params"], "params", to=to)
        loss_W = grad(s)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            params, agreed = s.local["params"], s.shared["params"]
            s.shared["params"] = comm.mean(params, "params", fallback=agreed, to_server=True)
        return loss_W


class NoFallback(Average):
    """With nobody up, the mean is that of the last copies, and not what was agreed on."""

    def init(self, s: State) -> None:
        Average.init(self, s)
        s.shared["slow"] = s.local["params"].first()

    def sync_(self, s: State, comm: Communicator) -> None:
        s.shared["slow"] = comm.mean(s.local["params"], "params") - s.shared["slow"]
        s.local["params"].copy_(s.shared["slow"], s.fleet.up)


class KeepsMomentumAside(Average):
    """A momentum that is neither in s.local nor in s.shared: no checkpoint has it."""

    def change_(self, s: State, loss_W: Tensor, t: int) -> None:
        aside: Any = s.fleet
        before = (
            aside.momentum if t > 1 and "momentum" in vars(aside) else [torch.zeros_like(g) for g in s.grads.blocks]
        )
        aside.momentum = [0.5 * m + g for m, g in zip(before, s.grads.blocks, strict=True)]
        for g, m in zip(s.grads.blocks, aside.momentum, strict=True):
            g.copy_(m)


def checked(cls: type[Any], **declared: Any) -> Report:
    return lab.testing.check_method(method("broken", **declared)(cls))


def found(law: str, cls: type[Any], **declared: Any) -> Finding:
    """Of one law alone."""
    subject = Subject(method("broken", **declared)(cls)())
    return next(each for each in LAWS if each.name == law).check(subject)


def test_a_method_without_mistakes_keeps_all() -> None:
    report = checked(Average)
    report.assert_all()
    assert [f.law for f in report.findings] == LAWS.names()
    assert {f.outcome for f in report.findings} == {"passed"}


@pytest.mark.parametrize(
    ("law", "cls", "says"),
    [
        ("recipe", OptionThatGrows, "sync_every = . comes back as ."),
        ("recipe", MisspeltException, "'relabeling'.*relabelling"),
        ("averages", SaysTooMuch, "'exp_avg' is in averages and never averaged"),
        ("isolation", NormOverAllRows, r"s.local\['params'\], tensor hidden.0.weight, worker 0: off by .*after step 1; .*over all rows"),
        ("isolation", MeanByHand, r"s.local\['params'\], tensor .*, worker 0: off by .*after step 2"),
        ("solitude", Sum, "tensor hidden.0.weight, worker 0: off by .*after step 2; usually a sum"),
        ("equal workers", Sum, "tensor hidden.0.weight, worker 0: off by .*after step 2; usually a sum"),
        ("hearing", ForgetsTheMean, r"worker 0 never hears of worker 1.*mean_ works in place"),
        ("relabelling", FirstIsSpecial, "tensor .*, worker 2: off by .*after step 2; a worker with a special number"),
        ("plain optimizer", IgnoresOptions, "after step 2 parameters are off by .* torch.optim's AdamW; usually options of inner"),
        ("plain optimizer", StepsTwice, "has taken 2 steps after 1 local steps"),
        ("dry run", SendsByValue, "in step 1 all_reduce of params by workers .* is in one ledger and not in the other; traffic"),
        ("processes", OneProcessSends, "process . is done while process 0 calls comm.mean|process 0 calls comm.mean while process . is done"),
        ("memory", Counts, r"self.seen has changed in a run; what a run remembers is in s.local"),
        ("memory", RemembersOnSelf, "self.previous has changed in a run"),
        ("seed", Noise, "it draws from torch's global generator; draw from lab.ground.seeds.generator"),
        ("schedule", IgnoresTheSchedule, "'params', tensor hidden.0.weight of worker 0 moves by .* in step 1 although the schedule says 0"),
        ("losses", HidesNaN, "worker 1 has no number for a loss in step 6, and the run goes on to its end"),
        ("down", DecaysEverybody, "'params', tensor hidden.0.weight of worker 1 moves by .* in step 3, in which it is down"),
        ("down", WritesToAll, "'params', tensor hidden.0.weight of worker 1 moves by .* in step 4, in which it is down"),
        ("nobody up", NoFallback, "'slow', tensor hidden.0.weight of worker 0 moves by .* in step 6, in which nobody is up; comm.mean needs fallback="),
        ("resume", KeepsMomentumAside, "stopped after step . and resumed: the loss of worker 0 in step . is .*, and would have been"),
    ],
)  # fmt: skip
def test_each_law_finds_its_mistake(law: str, cls: type[Method], says: str) -> None:
    """One line that says which tensor, worker and step, and what is usually the cause."""
    with own_generators():
        finding = found(law, cls)
    assert finding.outcome == "failed", finding
    assert re.search(says, finding.says), finding.says
    assert "\n" not in finding.says


def test_a_server_hands_out_itself() -> None:
    """To those that come back as well; what they had before would go on otherwise."""
    finding = found("back", ServerThatWaits, server=True)
    assert re.search("what a worker had before it was away still shows after step 6: .* worker 2", finding.says)


def test_the_table_of_a_method_with_a_mistake() -> None:
    """As a cell shows it, as a terminal shows it, and as a test raises it; nothing is raised by itself, and no generator moves."""
    before = torch.get_rng_state()
    report = checked(Noise)
    assert torch.equal(before, torch.get_rng_state())
    text, page = repr(report), report._repr_html_()
    assert text.startswith("method broken: ")
    assert re.search(r"^✗ seed +twice the same run.*\n +failed: it draws from torch's", text, flags=re.M)
    assert re.search(r"^✓ averages ", text, flags=re.M)
    assert "<td" in page
    assert "it draws from torch&#x27;s global generator" in page
    with pytest.raises(AssertionError, match=r"(?s)^method broken, .*\nmethod broken, seed: it draws"):
        report.assert_all()


class Unregistered(Average):
    pass


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Unregistered, "method Unregistered is not registered"),
        ("des_lok", "unknown method 'des_lok'.*did you mean 'des_loc'"),
        ("fedit", "this method aggregates adapters: set lora.ranks"),
        (3, "method = 3 is not allowed"),
    ],
)
def test_what_cannot_be_tried_says_so_in_one_line(given: Any, says: str) -> None:
    (finding,) = lab.testing.check_method(given).findings
    assert finding.outcome == "failed"
    assert re.search(says, finding.says), finding.says


def test_laws_are_tried_on_what_a_recipe_names() -> None:
    """Adapters of a rank; a model and data of one's own; long periods are shortened, and short ones stay."""
    federated = lab.testing.check_method("fedit", {"lora": {"ranks": [2], "targets": ["hidden.0"]}})
    federated.assert_all()
    assert [f.law for f in federated.findings if f.outcome != "passed"] == ["plain optimizer"]
    method("broken")(Average)
    on_images = Subject(Average(sync_every=5), {"model": NORMED, "data": "tests.support.parts:pictures"})
    assert on_images.method.sync_every == 5
    assert next(law for law in LAWS if law.name == "resume").check(on_images).outcome == "passed"
    assert Subject(Average(sync_every=500)).method.sync_every == 3


def test_a_reduction_holds_or_says_where_it_does_not() -> None:
    inner = AdamW(1e-2)
    lab.testing.check_reduction(DiLoCo(3, inner, Optimizer("SGD", 1.0)), LocalSGD(3, inner)).assert_all()
    (finding,) = lab.testing.check_reduction(DiLoCo(3, inner), LocalSGD(3, inner)).failed
    assert finding.law == "numbers"
    assert re.search(
        r"s.local\['params'\], tensor hidden.0.weight, worker 0: off by .*, after step 3; compare", finding.says
    )
    sgd = Optimizer("SGD", 1e-2)
    linear = lab.testing.check_reduction(LocalSGD(1, sgd, max_norm=None), DDP(sgd, max_norm=None))
    assert [f.outcome for f in linear.findings] == ["passed", "failed"]
    assert "in step 1 all_reduce of params by workers [0, 1, 2]" in linear.findings[1].says
    (finding,) = lab.testing.check_reduction("des_lok", "diloco").failed
    assert "did you mean 'des_loc'" in finding.says


def _scalar(self: Any, s: Any, grad: Any, comm: Any, t: int) -> Any:
    return grad(s).mean()


def _misspelt(self: Any, s: Any, grad: Any, comm: Any, t: int) -> Any:
    return s.local["parms"]


def _keeps(self: Any, s: Any, grad: Any, comm: Any, t: int) -> Any:
    self.count = t
    return grad(s)


def _no_optimizer(self: Any, s: Any, grad: Any, comm: Any, t: int) -> Any:
    return s.optimizers["inner"]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            _scalar,
            r"step of method broken returned losses of shape \[\]: one for each of the \d workers, .*: return loss_W",
        ),
        (_misspelt, r"unknown local state 'parms': use one of params.*did you mean 'params'"),
        (
            _keeps,
            r"step of method broken changes the method \(.*count.*\), which is frozen: numbers .* go into s.facts",
        ),
        (_no_optimizer, r"optimizer 'inner' is not there: make it in init\(s\)"),
    ],
)
def test_a_step_that_cannot_run_says_so_in_one_line(step: Any, says: str) -> None:
    """As a run says it, and `lab.testing` too."""
    broken = method("broken")(type("Broken", (Average,), {"step": step, "init": lambda self, s: None}))
    trainer = Trainer(
        Recipe.of({"method": config(broken)(), "data": "digits", "model": "mlp", "steps": 4, "batch_size": 2})
    )
    with pytest.raises(RecipeError, match=says):
        list(trainer.events())
