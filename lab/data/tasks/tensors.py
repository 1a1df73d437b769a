"""Tasks over tensors: which class an example is of, or which numbers belong to it.

Legend: E examples, B examples of a batch, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data.splits import cut
from lab.data.tasks import metrics
from lab.data.tasks.checks import Pair, as_classes, as_numbers, checked_parts, count_classes
from lab.data.tasks.columns import Column, Name, read_columns, tokens_of
from lab.data.tasks.task import IGNORED, Examples, Normalisation, Task
from lab.ground.errors import Diverged, RecipeError, one_of, shown
from lab.ground.seeds import numpy_generator

PART = 1 << 24  # bytes that are looked at together
AT_ONCE = 256  # examples of a forward pass when a module is scored


@dataclass(frozen=True, eq=False, init=False)
class Classification:
    """Which of ``num_classes`` classes is it? Cross entropy; a model gives ``[B, C]`` logits.

    Parameters
    ----------
    train, held_out
        inputs ``[E, *shape]`` and targets ``[E]`` as a pair of tensors (or numpy arrays, or lists), or as `Examples`. Targets are
        integers from 0; −100 does not count. Both parts need at least one example.
    num_classes
        left out: one more than the largest target, and then every class must have an example in one of the parts.
    groups, held_out_groups
        ``[E]`` integers, the natural group of each example; or none.
    normalisation
        of inputs that are stored as integers, for both parts.
    class_names
        one for each class, for the scores by class; left out: their numbers.
    per_class
        `scores` has the recall of every class as well.

    Raises
    ------
    RecipeError
        one line, where parts do not fit together, or hold what cannot be learnt from (NaN, negative classes, gaps, nothing).
    """

    train: Examples
    held_out: Examples
    num_outputs: int
    class_names: tuple[str, ...]
    per_class: bool

    def __init__(
        self,
        train: Pair,
        held_out: Pair,
        num_classes: int | None = None,
        groups: Any = None,
        held_out_groups: Any = None,
        *,
        normalisation: Normalisation | None = None,
        class_names: Sequence[str] = (),
        per_class: bool = False,
    ):
        parts = checked_parts(train, held_out, groups, held_out_groups, normalisation, as_classes)
        count = count_classes(parts, num_classes)
        names = tuple(map(str, class_names)) or tuple(map(str, range(count)))
        if len(names) != count:
            raise RecipeError(f"class_names has {len(names)} names for {count} classes: give one for each, or none")
        _set(self, train=parts[0], held_out=parts[1], num_outputs=count, class_names=names, per_class=per_class)

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats over the targets that count, a scalar; 0 where none does. ``module``: ``[B, *]`` → ``[B, C]``."""
        logits = _checked(module(inputs), (len(targets), self.num_outputs))
        count = (targets != IGNORED).sum().clamp(min=1)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") / count

    def num_targets(self, targets: Tensor) -> int:
        """How many are not −100."""
        return int((targets != IGNORED).sum())

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        """``accuracy``, ``macro_f1`` and ``calibration_error`` of a module in eval mode, see `lab.data.tasks.metrics`.

        With ``per_class`` also ``recall of <class>`` for every class that occurs. Nothing where no target counts.
        """
        logits, targets = self._answers(module, examples)
        found = metrics.of_classes(logits, targets)
        if self.per_class and found:
            by_class = metrics.by_class(logits, targets, self.class_names)
            found |= {f"recall of {name}": value["recall"] for name, value in by_class.items()}
        return found

    def by_example(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats and ``accuracy`` (1 or 0) of each example, float64 ``[B]``; NaN where its target does not count."""
        counts = targets != IGNORED
        logits = _outputs(module, Examples(inputs, targets), (self.num_outputs,))
        loss = F.cross_entropy(logits, targets.where(counts, 0), reduction="none")
        found = {"loss": loss, "accuracy": (logits.argmax(1) == targets).double()}
        return {name: x.where(counts, torch.nan) for name, x in found.items()}

    def scores_by_class(self, module: nn.Module, examples: Examples) -> dict[str, dict[str, float]]:
        """``precision``, ``recall`` (the accuracy within a class), ``f1`` and ``support`` (examples) of every class that occurs."""
        return metrics.by_class(*self._answers(module, examples), self.class_names)

    def _answers(self, module: nn.Module, examples: Examples) -> tuple[Tensor, Tensor]:
        """Logits ``[B, C]`` and targets ``[B]`` of the examples whose target counts."""
        targets = examples.targets.cpu()
        counts = targets != IGNORED
        return _outputs(module, examples, (self.num_outputs,))[counts], targets[counts]


@dataclass(frozen=True, eq=False, init=False)
class Regression:
    """Which numbers belong to it? Mean squared error; a model gives as many numbers as a target has.

    Parameters
    ----------
    train, held_out
        inputs ``[E, *shape]`` and targets ``[E]`` or ``[E, *]`` (floats) as a pair of tensors (or numpy arrays, or lists), or as
        `Examples`. Both parts need at least one example.
    groups, held_out_groups, normalisation
        as in `Classification`.

    Raises
    ------
    RecipeError
        one line, where parts do not fit together, or hold what cannot be learnt from (NaN, integers as targets, nothing).
    """

    train: Examples
    held_out: Examples
    num_outputs: int

    def __init__(
        self,
        train: Pair,
        held_out: Pair,
        groups: Any = None,
        held_out_groups: Any = None,
        *,
        normalisation: Normalisation | None = None,
    ):
        parts = checked_parts(train, held_out, groups, held_out_groups, normalisation, as_numbers)
        _set(self, train=parts[0], held_out=parts[1], num_outputs=parts[0].targets[0].numel())

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over all numbers of the batch, a scalar. ``module``: ``[B, *]`` → as many numbers as the targets have."""
        return F.mse_loss(_checked(module(inputs), tuple(targets.shape)), targets)

    def num_targets(self, targets: Tensor) -> int:
        """All numbers."""
        return targets.numel()

    def by_example(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss`` (mean squared error) and ``mae`` of each example, float64 ``[B]``."""
        apart = _outputs(module, Examples(inputs, targets), tuple(targets.shape[1:])) - targets
        apart = apart.reshape(len(targets), -1).double()
        return {"loss": apart.square().mean(1), "mae": apart.abs().mean(1)}

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        """``mse``, ``mae`` and ``r2`` of a module in eval mode, see `lab.data.tasks.metrics.of_numbers`."""
        return metrics.of_numbers(_outputs(module, examples, tuple(examples.targets.shape[1:])), examples.targets.cpu())


def from_dataset(
    train: Any,
    held_out: Any = None,
    *,
    inputs: Name = 0,
    targets: Name | None = None,
    groups: Name | None = None,
    columns: Sequence[Name] = (),
    kind: Literal["classification", "regression"] = "classification",
    num_classes: int | None = None,
    share: float = 0.1,
    seed: int = 0,
    length: int = 0,
    tokenizer: str = "bytes",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    per_class: bool = False,
) -> Classification | Regression:
    """A task from any ``torch.utils.data.Dataset`` with a length, or any ``Dataset`` or ``DatasetDict`` of ``datasets``.

    All is read once, into memory: numbers as they are, images as uint8 ``[channels, height, width]``, sounds as ``[channels, samples]``,
    text as tokens ``[length]``. ``train`` is a dataset, ``held_out`` another. Of a ``DatasetDict``: the name of the split (left out:
    ``test`` or ``validation``). Without any, ``share`` of every group, or else of every class, is held out, drawn from ``seed``.

    Columns ``inputs``, ``targets``, ``groups`` are names, or places in tuples (without ``targets``: the second of two); ``columns`` are
    further ones, by which a split may go. Classes, groups and these may be text, and count as sorted.
    The last axis of inputs is cut, or filled up with zeros, to ``length`` (which text needs). Of images and sounds, ``mean`` and ``std``
    (of each channel, or one for all) are those of pixels from 0 to 1, or samples from −1 to 1.

    Raises
    ------
    RecipeError
        one line, for what has no length, for a column that there is not, and as `Classification` and `Regression` do.
    """
    if kind not in ("classification", "regression"):
        raise RecipeError(one_of("kind of task", kind, ("classification", "regression")))
    _check_share(share)
    parts, places = _splits(train, held_out), (inputs, 1 if targets is None else targets, groups)
    pairs = targets is None and groups is None and not columns
    read = _Read.of(parts, places, columns, kind, length, tokenizer, pairs)
    if len(read.x) < 2:
        read = read.with_held_out(share, seed, by_class=kind == "classification")
    a, b = read.examples
    chosen = _normalisation(read.normalisation, tuple(mean), tuple(std))
    if kind == "regression":
        return Regression(a, b, normalisation=chosen)
    return Classification(
        a, b, num_classes or len(read.names) or None, normalisation=chosen, class_names=read.names, per_class=per_class
    )


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise RecipeError(
            f"share = {shown(share)} is not allowed: it is the part that is held out, above 0 and below 1"
        )


@dataclass(frozen=True, eq=False)
class _Read:
    """Columns of one or two datasets: inputs, targets, groups (None each, where there are none) and further ones of every one."""

    x: list[Tensor]
    y: list[Tensor]
    groups: list[Tensor | None]
    columns: list[dict[str, Tensor]]  # further ones
    normalisation: Normalisation | None
    names: tuple[str, ...]  # of classes, where there are any

    @property
    def examples(self) -> list[Examples]:
        """Of every part, as they were stored."""
        each = zip(self.x, self.y, self.groups, self.columns, strict=True)
        return [Examples(x, y, groups, columns=columns) for x, y, groups, columns in each]

    @classmethod
    def of(
        cls,
        data: Sequence[Any],
        places: tuple[Name, Name, Name | None],
        further: Sequence[Name],
        kind: str,
        length: int,
        tokenizer: str,
        pairs: bool,
    ) -> _Read:
        inputs, targets, groups = places
        wanted = [name for name in dict.fromkeys((*places, *further)) if name is not None]
        parts = [read_columns(part, wanted, {inputs: length}, pairs) for part in data]
        first = parts[0][inputs]
        y, names = _targets([part[targets] for part in parts], kind)
        x = [v if isinstance(v := part[inputs].values, Tensor) else tokens_of(v, length, tokenizer) for part in parts]
        of: list[Tensor | None] = [None] * len(parts)
        if groups is not None:
            of = [*_numbered([part[groups] for part in parts])[0]]
        numbered = {str(name): _numbered([part[name] for part in parts])[0] for name in further}
        more = [{name: values[i] for name, values in numbered.items()} for i in range(len(parts))]
        return cls(x, y, of, more, first.normalisation, names)

    def with_held_out(self, share: float, seed: int, by_class: bool) -> _Read:
        """Two parts of one."""
        (x,), (y,), (groups,), (columns,) = self.x, self.y, self.groups, self.columns
        strata = groups if groups is not None else y if by_class else torch.zeros(len(y))
        index = [torch.from_numpy(i) for i in hold_out(strata.numpy(), share, seed)]
        of = [None if groups is None else groups[i] for i in index]
        more = [{name: values[i] for name, values in columns.items()} for i in index]
        return replace(self, x=[x[i] for i in index], y=[y[i] for i in index], groups=of, columns=more)


def _splits(train: Any, held_out: Any) -> list[Any]:
    """Two datasets, or one: of a ``DatasetDict`` its splits."""
    if isinstance(train, Mapping):
        if "train" not in train:
            raise RecipeError(one_of("split of the dataset", "train", train) + "; or give two datasets")
        name = held_out or next((name for name in ("test", "validation") if name in train), None)
        if name is not None and name not in train:
            raise RecipeError(one_of("split of the dataset", name, train))
        return [train["train"], *([] if name is None else [train[name]])]
    if isinstance(held_out, str):
        raise RecipeError(
            f"held_out = {held_out!r} names a split, and a {type(train).__name__} has none: give a DatasetDict, or a dataset"
        )
    return [train, *([] if held_out is None else [held_out])]


def _normalisation(
    found: Normalisation | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Normalisation | None:
    if not mean and not std:
        return found
    if found is None:
        raise RecipeError("mean and std are for images and sounds, and these inputs are neither: leave them out")
    return replace(found, mean=mean or found.mean, std=std or found.std)


def _targets(columns: list[Column], kind: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """Of both parts, and the names of classes where there are any."""
    if kind == "classification":
        found, names = _numbered(columns)
        return [as_classes("the dataset", targets) for targets in found], names or columns[0].names
    wrong = next((c.values for c in columns if not isinstance(c.values, Tensor)), None)
    if wrong is not None:
        raise RecipeError(
            f"a regression has numbers as targets, not text ({shown(wrong[0])}): use kind='classification'"
        )
    return [c.values.float() for c in columns if isinstance(c.values, Tensor)], ()


def _numbered(columns: list[Column]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Integers: as they are, or in place of texts, and then those as well, sorted, by number."""
    texts = [c.values for c in columns if not isinstance(c.values, Tensor)]
    if not texts:
        return [v.long() if v.dtype == torch.bool else v for c in columns if isinstance(v := c.values, Tensor)], ()
    if len(texts) < len(columns):
        raise RecipeError("a column has text in one part and numbers in the other: both need the same")
    names = sorted({text for values in texts for text in values})
    number = {text: i for i, text in enumerate(names)}
    return [torch.tensor([number[text] for text in values]) for values in texts], tuple(names)


def fingerprint(task: Task, columns: bool = False) -> str:
    """SHA-256 of all that a task's examples are: equal for equal numbers, however they came about. Reads each byte once.

    ``columns``: with what else is known of each example, and what inputs consist of.
    """
    digest = hashlib.sha256(str(task.num_outputs).encode())
    for part in (task.train, task.held_out):
        digest.update(repr(part.normalisation).encode())
        more = [part.columns[name] for name in sorted(part.columns)] if columns else []
        if columns:
            digest.update(repr(sorted(part.columns)).encode())
        if columns and part.parts is not None:
            digest.update(repr((part.parts.name, part.parts.sizes, part.parts.padding)).encode())
            more.append(torch.zeros(0) if part.parts.present is None else part.parts.present)
        for tensor in (part.inputs, part.targets, part.groups, *more):
            if tensor is None:
                digest.update(b"none")
                continue
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            rows = max(1, PART // max(1, tensor[:1].numel() * tensor.element_size()))
            for some in tensor.detach().cpu().split(rows):
                digest.update(some.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hold_out(strata: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices held out, sorted int64: ``share`` of every stratum (a class, a writer), drawn from ``seed``.

    A stratum of n examples gives round(share · n) of them, and always leaves one to train on.

    Raises RecipeError where nothing would be held out.
    """
    rng = numpy_generator(seed, "hold out")
    codes = np.unique(strata, return_inverse=True)[1]
    chosen = []
    for members in np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]):
        chosen.append(rng.permutation(members)[: min(round(share * len(members)), len(members) - 1)])
    held_out = np.sort(np.concatenate(chosen))
    if not len(held_out):
        raise RecipeError(f"a share of {share:g} of {len(strata)} examples holds out none: take a larger share")
    return np.setdiff1d(np.arange(len(strata)), held_out), held_out


def _set(task: Any, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(task, name, value)


def _checked(outputs: Any, shape: tuple[int, ...]) -> Tensor:
    """What a model gave, in this shape, and at least in float32."""
    if not isinstance(outputs, Tensor):
        raise RecipeError(f"the model gives a {type(outputs).__name__}: a model for this task gives one tensor")
    if outputs.shape[:1] != shape[:1] or outputs.numel() != math.prod(shape):
        raise RecipeError(
            f"the model gives a tensor of shape {list(outputs.shape)}: a model for this task gives {list(shape)} for {shape[0]} examples"
        )
    return outputs.reshape(shape).to(torch.promote_types(outputs.dtype, torch.float32))


@torch.no_grad()
def _outputs(module: nn.Module, examples: Examples, each: tuple[int, ...]) -> Tensor:
    """What a module gives for some examples ``[E, *each]``: made where it is, in its precision; on the CPU, in float64."""
    own = torch.zeros((), dtype=examples.inputs.dtype if examples.inputs.is_floating_point() else torch.float32)
    some = next((p for p in module.parameters() if p.is_floating_point()), own)
    parts = []
    for index in cut(np.arange(len(examples)), AT_ONCE):
        inputs, _ = examples.take(torch.from_numpy(index).to(examples.inputs.device), some.dtype)
        parts.append(_checked(module(inputs.to(some.device)), (len(index), *each)).double().cpu())
    outputs = torch.cat(parts)
    if not bool(torch.isfinite(outputs).all()):
        raise Diverged("the model gives NaN or infinity for held-out examples")
    return outputs
