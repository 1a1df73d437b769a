"""What holds of every task that a fleet can train on: its examples, how they are dealt, its loss and its scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.tasks.dealt import check_task as check_form
from lab.data.tasks.dealt import deal
from lab.data.tasks.task import IGNORED, Examples, Task
from lab.data.tasks.tensors import fingerprint
from lab.ground.config.references import Call
from lab.ground.errors import RecipeError, shown
from lab.ground.seeds import generator
from lab.runs.data import make_task
from lab.testing.generators import own_generators
from lab.testing.report import Broken, Laws, NotApplicable, words

CLOSE = 1e-9
FEW = 32  # examples that losses and scores are tried on
MOST_IN_BOTH = 0.05  # of the held-out examples, that are also to be trained on
F64 = torch.float64


class Linear(nn.Module):
    """One linear map of an example, whatever it is, and a buffer that nobody has a reason to touch."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(num_out, num_in, generator=generator(0, "weight"), dtype=F64) / num_in**0.5
        )
        self.register_buffer("seen", torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1).to(self.weight.dtype)) @ self.weight.T  # B K


class Given:
    """A task, as an object or as a recipe names it. ``model(task)``: a module for it; None: a linear map."""

    def __init__(self, task: Any, model: Callable[[Task], nn.Module] | None = None):
        self.call = Call.read(task, "data") if isinstance(task, str | dict) else None
        if self.call is None and (callable(task) or not _is_task(task)):
            self.call = Call.of(task, "data")
        if self.call is None and not _is_task(task):
            check_form(task, "data")
        self.task: Task = make_task(self.call) if self.call is not None else task
        self.model = model

    def module(self) -> nn.Module:
        if self.model is not None:
            return self.model(self.task).double()
        return Linear(max(1, self.task.train.inputs[0].numel()), self.task.num_outputs)

    @cached_property
    def some(self) -> Examples:
        """A few held-out examples, as a model is given them in float64."""
        return self.task.held_out.select(torch.arange(min(FEW, len(self.task.held_out))), F64)


def _is_task(x: Any) -> bool:
    return all(name in dir(x) for name in ("train", "held_out", "loss")) and not isinstance(x, type)


LAWS: Laws[Given] = Laws()


@LAWS.law(
    "examples",
    "train and held_out: as many targets as inputs, numbers alone, classes that there are",
    "lab.data.tasks.tensors has Classification and Regression, which check all this when they are made",
)
def examples(g: Given) -> None:
    check_form(g.task)
    for name, part in (("train", g.task.train), ("held_out", g.task.held_out)):
        inputs, targets = part.take(torch.arange(len(part)), F64)
        for what, x in (("inputs", inputs), ("targets", targets)):
            bad = [i for i, row in enumerate(x) if row.is_floating_point() and not torch.isfinite(row).all()]
            if bad:
                raise Broken(f"{name}.{what} of example {bad[0]} are not finite")
        if not targets.is_floating_point():
            wrong = ((targets < 0) & (targets != IGNORED)) | (targets >= g.task.num_outputs)
            if wrong.any():
                i = int(wrong.reshape(len(part), -1).any(1).nonzero()[0])
                raise Broken(
                    f"{name}.targets of example {i} is {targets[i].tolist()}, and num_outputs is {g.task.num_outputs}"
                )
        if part.groups is not None and (part.groups.dtype != torch.int64 or part.groups.shape != (len(part),)):
            raise Broken(
                f"{name}.groups is {list(part.groups.shape)} of {part.groups.dtype}: one int64 for each example"
            )


@LAWS.law(
    "made again",
    "the same examples when it is made again, and no global generator has moved",
    "draw from torch.Generator().manual_seed(seed), with a seed that is an option; a run is resumed only on the examples it began with",
)
def made_again(g: Given) -> None:
    if g.call is None:
        raise NotApplicable("it was given as an object: give the function or class that makes it, as a recipe needs it")
    with own_generators() as drawn:
        one = fingerprint(make_task(g.call))
        moved = drawn(reseed=True)
        two = fingerprint(make_task(g.call))
    if moved:
        raise Broken(f"it draws from {moved}")
    if one != two:
        raise Broken("two that are made with the same options have other examples")


@LAWS.law(
    "dealt once",
    "dealt to three workers in every way that goes: each example to one of them, and once in an epoch",
    "groups and classes are numbers of examples, in the order of the inputs",
)
def dealt_once(g: Given) -> None:
    train = g.task.train
    classes = not train.targets.is_floating_point() and train.targets.dim() == 1
    splits = [
        "iid",
        "size:0.5",
        *(["dirichlet:10"] if classes else []),
        *(["groups"] if train.groups is not None else []),
    ]
    for split in splits:
        try:
            order = deal(g.task, num_workers=3, split=split, batch_size=1, num_validation=1).batches.order
        except RecipeError as error:
            if "would get no" in str(error):
                continue
            raise
        seen = np.concatenate([order.items(w, t) for w in range(3) for t in range(1, len(order.shards[w]) + 1)])
        if not np.array_equal(np.sort(seen), np.arange(len(train))):
            times = np.bincount(seen, minlength=len(train))
            raise Broken(
                f"split={split}: example {int((times != 1).argmax())} comes {int(times[(times != 1).argmax()])} times in an epoch"
            )


@LAWS.law(
    "held out",
    f"held-out examples that are also to be trained on: at most {MOST_IN_BOTH:.0%}",
    "split first, and then make examples larger in number (windows, augmentation)",
)
def held_out(g: Given) -> None:
    both = {_bytes(x, y) for x, y in zip(g.task.train.inputs, g.task.train.targets, strict=True)}
    num = sum(_bytes(x, y) in both for x, y in zip(g.task.held_out.inputs, g.task.held_out.targets, strict=True))
    if num > MOST_IN_BOTH * len(g.task.held_out):
        raise Broken(f"{num} of {len(g.task.held_out)} held-out examples are also in train")


def _bytes(x: Tensor, y: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes() + y.contiguous().numpy().tobytes()


@LAWS.law(
    "loss",
    "one number that depends on the parameters, in float32 and float64; module and batch stay as they are",
    "return the mean loss over the batch as a tensor, without detach, item or argmax",
)
def loss(g: Given) -> None:
    for dtype in (torch.float64, torch.float32):
        module = g.module().to(dtype)
        batch = g.task.held_out.take(torch.arange(len(g.some)), dtype)
        g.task.loss(g.module().to(dtype), *(x.clone() for x in batch))  # libraries that this imports may draw
        given, before = [x.clone() for x in batch], _values(module)
        with own_generators() as drawn:
            found: Any = g.task.loss(module, *batch)
            moved = drawn()
        if moved:
            raise Broken(f"it draws from {moved}")
        if not isinstance(found, Tensor) or found.dim() or not found.is_floating_point():
            raise Broken(f"it is {shown(found)}")
        if not found.requires_grad:
            raise Broken("it does not depend on the parameters")
        if not torch.isfinite(found):
            raise Broken(f"it is {float(found)} at the start")
        _unmoved(module, before)
        if not all(torch.equal(a, b) for a, b in zip(given, batch, strict=True)):
            raise Broken("it changes the batch that it is given")


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in (*module.named_parameters(), *module.named_buffers())}


def _unmoved(module: nn.Module, before: dict[str, Tensor]) -> None:
    for name, x in _values(module).items():
        if not torch.equal(x, before[name]):
            raise Broken(f"it changes {name} of the module")


@LAWS.law(
    "means",
    "the loss of many examples is the mean of the losses of batches of any size, weighted with num_targets",
    "num_targets counts what loss is a mean over: examples whose target counts, or numbers to predict",
)
@torch.no_grad()
def means(g: Given) -> None:
    module, (x, y) = g.module().eval(), (g.some.inputs, g.some.targets)
    whole, num = float(g.task.loss(module, x, y)), g.task.num_targets(y)
    for size in (1, 3, len(x)):
        parts = [
            (g.task.num_targets(b), float(g.task.loss(module, a, b)))
            for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
        if sum(n for n, _ in parts) != num:
            raise Broken(
                f"num_targets of {len(x)} examples is {num}, and of batches of {size} {sum(n for n, _ in parts)}"
            )
        mean = sum(n * one for n, one in parts if n) / max(1, num)
        if num and abs(mean - whole) > CLOSE * max(1.0, abs(whole)):
            raise Broken(f"the loss of {len(x)} examples is {whole:.9g}, and from batches of {size} it is {mean:.9g}")


@LAWS.law(
    "scores",
    "numbers by name: the same each time and in any order of the examples; module, mode and global generators stay as they are",
    "scores are means or counts over examples, and draw nothing",
)
def scores(g: Given) -> None:
    module = g.module().eval()
    before = _values(module)
    order = torch.randperm(len(g.some), generator=generator(0, "order"))
    first = dict(g.task.scores(module, g.some))  # libraries that this imports may draw
    with own_generators() as drawn:
        second = dict(g.task.scores(module, g.some))
        moved = drawn()
        turned = dict(g.task.scores(module, g.some.select(order, F64)))
    if moved:
        raise Broken(f"they draw from {moved}")
    for name, value in first.items():
        if not isinstance(name, str) or not isinstance(value, float) or not np.isfinite(value):
            raise Broken(f"{name!r} is {shown(value)}: a finite float by name")
    for what, other in (("the second time", second), ("with the examples in another order", turned)):
        if odd := [n for n in first.keys() | other.keys() if abs(first.get(n, np.inf) - other.get(n, -np.inf)) > 1e-6]:
            raise Broken(f"{words(sorted(odd))} is another one {what}")
    _unmoved(module, before)
    if module.training:
        raise Broken("the module is in train mode afterwards")
