"""What holds of every module that a fleet can train: in float64, on batches of its data, two workers of it against plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lab.data.training_data import TrainingData
from lab.engine.fleet import Fleet, saved_buffers
from lab.ground.errors import RecipeError
from lab.ground.seeds.draws import Draws
from lab.models.own import one_line, with_loss
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet
from lab.runs.data import shape_of, training_data
from lab.runs.trial import try_on_one_batch
from lab.testing.generators import own_generators
from lab.testing.report import Broken, Laws, NotApplicable
from lab.testing.subject import OTHER, off

TEXT = "grammar?tokens=4000&dialects=1&symbols=8"
CLOSE = 1e-9


class Made:
    """A model, and the data that it is made for: what a recipe names by ``model`` and ``data`` (None: text of a toy grammar)."""

    def __init__(self, model: Any, data: Any = None, recipe: Mapping[str, Any] | None = None):
        fields = {"model": model, "data": data, "corpus": TEXT, "context": 8, "batch_size": 4, "eval_windows": 8}
        fields |= {"num_workers": 2, "dtype": "float64", "eval_every": 0, "steps": 2, "schedule": {}}
        self.recipe = Recipe.of(fields | dict(recipe or {}))

    @cached_property
    def data(self) -> TrainingData:
        return training_data(self.recipe)

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.recipe, self.data)

    def module(self, seed: int = 0) -> nn.Module:
        """In float64, with the loss of its data."""
        return with_loss(self.recipe.model.module(self.shape, seed).double(), self.data.loss)

    def fleet(self) -> Fleet:
        return build_fleet(self.recipe, self.shape, torch.device("cpu"), None, None, _no_file, self.data.loss)

    def batch(self, worker: int, t: int = 1) -> tuple[Tensor, Tensor]:
        return self.data.batches.get(worker, t)

    def passed(self, module: nn.Module, batch: tuple[Tensor, Tensor], seed: int = 0) -> Passed:
        """Forward and backward in plain torch, with draws as of a worker of this number."""
        module.zero_grad()
        with Draws(seed):
            loss: Tensor = module.loss(*batch)  # type: ignore[operator]
            loss.backward()  # type: ignore[no-untyped-call]
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in _trained(module).items()}
        return Passed(loss.detach(), grads, {n: b.clone() for n, b in saved_buffers(module).items()})

    def passed_by_fleet(self, fleet: Fleet, worker: int, batches: Mapping[int, tuple[Tensor, Tensor]]) -> Passed:
        """The same of one worker of a fleet, in which all have a batch."""
        loss_W = fleet.backward(lambda module, w: module.loss(*batches[w]))  # type: ignore[operator]
        grads = {n: fleet.grads.cell(n, worker).clone() for n in fleet.grads.names()}
        buffers = {n: b.clone() for n, b in saved_buffers(fleet.modules[worker]).items()}
        return Passed(loss_W[worker], grads, buffers)


@dataclass(frozen=True)
class Passed:
    """What a forward and a backward pass have left behind."""

    loss: Tensor
    grads: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def unlike(self, other: Passed, tolerance: float = CLOSE) -> str:
        """What is not the same, in words; empty if all is."""
        if far := off(self.loss.double(), other.loss.double(), tolerance):
            return f"the loss is off by {far:.1e}"
        for what, mine, theirs in (("gradient of", self.grads, other.grads), ("buffer", self.buffers, other.buffers)):
            if odd := sorted(mine.keys() ^ theirs.keys()):
                return f"the {what} {odd[0]} is there once only"
            for name, x in mine.items():
                if far := off(x.double(), theirs[name].double(), tolerance):
                    return f"the {what} {name} is off by {far:.1e}"
        return ""


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _no_file(size: str) -> Any:
    raise RecipeError(f"start = {size!r}: what is tried here starts from its seed")


LAWS: Laws[Made] = Laws()


@LAWS.law(
    "data",
    "made for the shapes of its data; forward and backward on a batch, twice",
    "a factory asks for input_shape and num_outputs (of text: vocab_size and context) by these names",
)
def goes_with_its_data(m: Made) -> None:
    try_on_one_batch(m.recipe, m.data, m.shape)


@LAWS.law(
    "names",
    "made again, and without storage: the same tensors by name, shape and dtype, and the same of them trained",
    "names and shapes follow from the options and the data, never from a counter or a random draw",
)
def names(m: Made) -> None:
    one, two = _tensors(m.module()), _tensors(m.module(1))
    with torch.device("meta"):
        without = _tensors(m.recipe.model.module(m.shape, 0).double())
    for what, other in (("made again", two), ("without storage", without)):
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                raise Broken(f"{name} is {one.get(name, 'not there')}, and {what} {other.get(name, 'not there')}")


def _tensors(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {
        n: (list(x.shape), x.dtype, x.requires_grad) for n, x in (*module.named_parameters(), *module.named_buffers())
    }


@LAWS.law(
    "seed",
    "two of one seed have the same first values, and no global generator has moved",
    "draw with torch, whose generator is set aside meanwhile; numpy's and Python's cannot be",
)
def seed(m: Made) -> None:
    with own_generators() as drawn:
        one = m.module()
        moved = drawn(reseed=True)
        two = m.module()
    if moved:
        raise Broken(f"it draws from {moved}")
    theirs = dict(two.named_parameters()) | dict(two.named_buffers())
    for name, x in (*one.named_parameters(), *one.named_buffers()):
        if far := off(x.detach().double(), theirs[name].detach().double()):
            raise Broken(f"{name} is off by {far:.1e} when it is made again of the same seed")


@LAWS.law(
    "gradient",
    "a worker of a fleet against the module by itself: the same loss, gradients and buffers, also after parameters have moved",
    "what a module computes with is its parameters and buffers, looked up in forward: no copies, lists or tables made of them in __init__",
)
def gradient(m: Made) -> None:
    fleet, alone = m.fleet(), m.module(m.recipe.seed)
    for t in (1, 2):
        batches = {w: m.batch(w, t) for w in range(2)}
        try:
            in_fleet = m.passed_by_fleet(fleet, 0, batches)
        except RuntimeError as error:
            raise Broken(f"in a fleet it ends in an error ({one_line(error)})") from error
        if odd := in_fleet.unlike(m.passed(alone, batches[0])):
            raise Broken(f"{odd} in step {t}")
        with torch.no_grad():
            for name, p in _trained(alone).items():
                step = 0.01 * torch.sign(p.grad) if p.grad is not None else torch.zeros_like(p)
                p.sub_(step)
                fleet.params.cell(name, 0).sub_(step)


@LAWS.law(
    "neighbours",
    "other data at another worker changes nothing, bit for bit",
    "modules share what is in their class or file: keep it in the module, as a buffer",
)
def neighbours(m: Made) -> None:
    found = []
    for other in (0, OTHER):
        fleet = m.fleet()
        for t in (1, 2):
            passed = m.passed_by_fleet(fleet, 0, {0: m.batch(0, t), 1: m.batch(1, t + other)})
        found.append(passed)
    if odd := found[0].unlike(found[1], 0.0):
        raise Broken(f"{odd} at worker 0 when worker 1 sees other data")


@LAWS.law(
    "twice",
    "the same batch, the same draws: the same loss and gradient",
    "what a module remembers from one batch to the next is a buffer, and is used in evaluation alone",
)
def twice(m: Made) -> None:
    module = m.module()
    first, second = m.passed(module, m.batch(0)), m.passed(module, m.batch(0))
    if odd := Passed(first.loss, first.grads, {}).unlike(Passed(second.loss, second.grads, {}), 0.0):
        raise Broken(f"{odd} the second time")


@LAWS.law(
    "evaluation",
    "in eval mode: nothing is drawn, no buffer moves, and each example has its loss whatever else is in the batch",
    "eval() has to turn off what draws and what looks at a whole batch: layers of torch do, code of one's own asks self.training",
)
@torch.no_grad()
def evaluation(m: Made) -> None:
    module = m.module().eval()
    x, y = m.batch(0)
    before = {n: b.clone() for n, b in saved_buffers(module).items()}
    with Draws(0):
        whole = module.loss(x, y)  # type: ignore[operator]
        each = [(m.data.num_targets(y[i : i + 1]), module.loss(x[i : i + 1], y[i : i + 1])) for i in range(len(x))]  # type: ignore[operator]
    with Draws(1):
        again = module.loss(x, y)  # type: ignore[operator]
    for name, b in saved_buffers(module).items():
        if off(b.double(), before[name].double()):
            raise Broken(f"buffer {name} moves")
    if far := off(whole, again):
        raise Broken(f"the loss of a batch is off by {far:.1e} the second time")
    total = sum(n for n, _ in each)
    mean = sum(n * float(loss) for n, loss in each) / total if total else float(whole)
    if abs(mean - float(whole)) > CLOSE * max(1.0, abs(mean)):
        raise Broken(f"the loss of a batch is {float(whole):.9g}, and the mean over its examples {mean:.9g}")


@LAWS.law(
    "second derivatives",
    "the gradient of ‖gradient‖²: for methods that differentiate through a gradient",
    "usually the square root or norm of something that is zero",
)
def second_derivatives(m: Made) -> None:
    module = m.module()
    params = _trained(module)
    with Draws(0):
        loss = module.loss(*m.batch(0))  # type: ignore[operator]
        try:
            grads = torch.autograd.grad(loss, [*params.values()], create_graph=True, allow_unused=True)
            square = torch.stack([g.square().sum() for g in grads if g is not None]).sum()
            if not square.requires_grad:
                raise NotApplicable("the gradient does not depend on the parameters")
            found = torch.autograd.grad(square, [*params.values()], allow_unused=True)
        except RuntimeError as error:
            raise NotApplicable(
                f"no method of the lab needs them, and torch says: {str(error).splitlines()[0]}"
            ) from None
    for name, g in zip(params, found, strict=True):
        if g is not None and not torch.isfinite(g).all():
            raise Broken(f"that of {name} is not finite")
