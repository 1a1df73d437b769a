"""Tasks over tensors: which class an example is of, or which numbers belong to it.

Legend: E examples, B examples of a batch, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data.splits import cut
from lab.data.tasks import metrics
from lab.data.tasks.columns import Column, Name, read_columns, tokens_of
from lab.data.tasks.task import IGNORED, Examples, Normalisation, Task
from lab.errors import Diverged, RecipeError, one_of, shown
from lab.seeds import numpy_generator

Pair = tuple[Any, Any] | Examples  # inputs and targets: tensors, numpy arrays or lists
Check = Callable[[str, Tensor], Tensor]  # the targets of a part, by its name, as a task needs them
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
        parts = _parts(train, held_out, groups, held_out_groups, normalisation, _classes)
        count = _num_classes(parts, num_classes)
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
        parts = _parts(train, held_out, groups, held_out_groups, normalisation, _numbers)
        _set(self, train=parts[0], held_out=parts[1], num_outputs=parts[0].targets[0].numel())

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over all numbers of the batch, a scalar. ``module``: ``[B, *]`` → as many numbers as the targets have."""
        return F.mse_loss(_checked(module(inputs), tuple(targets.shape)), targets)

    def num_targets(self, targets: Tensor) -> int:
        """All numbers."""
        return targets.numel()

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        """``mse``, ``mae`` and ``r2`` of a module in eval mode, see `lab.data.tasks.metrics.of_numbers`."""
        return metrics.of_numbers(_outputs(module, examples, tuple(examples.targets.shape[1:])), examples.targets.cpu())


def from_dataset(
    train: Any,
    held_out: Any = None,
    *,
    inputs: Name = 0,
    targets: Name = 1,
    groups: Name | None = None,
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
    """A task from any ``torch.utils.data.Dataset`` with a length, or any ``Dataset`` or ``DatasetDict`` of Hugging Face ``datasets``.

    All examples are read, once, into memory: numbers and arrays as they are, images as uint8 ``[channels, height, width]``, sounds
    as ``[channels, samples]``, text as tokens ``[length]``. What a dataset draws anew each time (augmentation) is drawn once.

    Parameters
    ----------
    train, held_out
        a dataset each. Of a ``DatasetDict``: it, and the name of the split that is held out (left out: ``test`` or ``validation``).
        Without any, ``share`` of the examples is held out, drawn from ``seed``: of every group, or else of every class.
    inputs, targets, groups
        columns: names, or places in the tuples of a dataset of torch. Classes and groups may be text; they are numbered as sorted.
    kind
        ``classification`` or ``regression``.
    num_classes, per_class
        as in `Classification`.
    length
        of text (needed), or of the last axis of the inputs: longer ones are cut, shorter ones filled up with zeros.
    tokenizer
        of text, as in `lab.data.tokenizer.load_tokenizer`.
    mean, std
        of images and sounds, one number for each channel or one for all: what is taken away from pixels from 0 to 1 (samples from −1
        to 1), and what they are divided by.

    Raises
    ------
    RecipeError
        one line, for a dataset without a length or a column that it does not have, and as `Classification` and `Regression` do.
    """
    if kind not in ("classification", "regression"):
        raise RecipeError(one_of("kind of task", kind, ("classification", "regression")))
    train, held_out = _splits(train, held_out)
    names = [name for name in (inputs, targets, groups) if name is not None]
    parts = [read_columns(part, names, {inputs: length}) for part in (train, held_out) if part is not None]
    x = [_inputs(part[inputs], length, tokenizer) for part in parts]
    y, class_names = _targets([part[targets] for part in parts], kind)
    g: list[Any] = _numbered([part[groups] for part in parts])[0] if groups is not None else [None] * len(parts)
    if held_out is None:
        strata = g[0] if g[0] is not None else y[0] if kind == "classification" else torch.zeros(len(y[0]))
        index = [torch.from_numpy(i) for i in hold_out(strata.numpy(), share, seed)]
        x, y = [x[0][i] for i in index], [y[0][i] for i in index]
        g = [None if g[0] is None else g[0][i] for i in index]
    chosen = _normalisation(parts[0][inputs].normalisation, tuple(mean), tuple(std))
    if kind == "regression":
        return Regression((x[0], y[0]), (x[1], y[1]), *g, normalisation=chosen)
    return Classification(
        (x[0], y[0]),
        (x[1], y[1]),
        num_classes or len(class_names) or None,
        *g,
        normalisation=chosen,
        class_names=class_names,
        per_class=per_class,
    )


def _splits(train: Any, held_out: Any) -> tuple[Any, Any]:
    """Two datasets, or one and None: of a ``DatasetDict`` its splits."""
    if isinstance(train, Mapping):
        if "train" not in train:
            raise RecipeError(one_of("split of the dataset", "train", train) + "; or give two datasets")
        name = held_out or next((name for name in ("test", "validation") if name in train), None)
        if name is not None and name not in train:
            raise RecipeError(one_of("split of the dataset", name, train))
        return train["train"], None if name is None else train[name]
    if isinstance(held_out, str):
        raise RecipeError(
            f"held_out = {held_out!r} names a split, and a {type(train).__name__} has none: give a DatasetDict, or a dataset"
        )
    return train, held_out


def _normalisation(
    found: Normalisation | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Normalisation | None:
    if not mean and not std:
        return found
    if found is None:
        raise RecipeError("mean and std are for images and sounds, and these inputs are neither: leave them out")
    return replace(found, mean=mean or found.mean, std=std or found.std)


def _inputs(column: Column, length: int, tokenizer: str) -> Tensor:
    return column.values if isinstance(column.values, Tensor) else tokens_of(column.values, length, tokenizer)


def _targets(columns: list[Column], kind: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """Of both parts, and the names of classes where there are any."""
    if kind == "classification":
        found, names = _numbered(columns)
        return found, names or columns[0].names
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


def fingerprint(task: Task) -> str:
    """SHA-256 of all that a task's examples are: equal for equal numbers, however they came about. Reads each byte once."""
    digest = hashlib.sha256(str(task.num_outputs).encode())
    for part in (task.train, task.held_out):
        digest.update(repr(part.normalisation).encode())
        for tensor in (part.inputs, part.targets, part.groups):
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
    some = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    parts = []
    for index in cut(np.arange(len(examples)), AT_ONCE):
        inputs, _ = examples.take(torch.from_numpy(index).to(examples.inputs.device), some.dtype)
        parts.append(_checked(module(inputs.to(some.device)), (len(index), *each)).double().cpu())
    outputs = torch.cat(parts)
    if not bool(torch.isfinite(outputs).all()):
        raise Diverged("the model gives NaN or infinity for held-out examples")
    return outputs


# --- what is checked of examples ---------------------------------------------------------------------------------------


def _parts(
    train: Pair, held_out: Pair, groups: Any, held_out_groups: Any, normalisation: Normalisation | None, targets: Check
) -> tuple[Examples, Examples]:
    """Both parts as `Examples` that go together."""
    a = _examples("train", train, groups, normalisation, targets)
    b = _examples("held_out", held_out, held_out_groups, normalisation, targets)
    for what, one, other in (
        ("inputs", a.inputs, b.inputs),
        ("targets", a.targets, b.targets),
    ):
        if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
            raise RecipeError(
                f"train has {what} {_kind(one)} and held_out has {_kind(other)}: both parts need the same shape and type"
            )
    return a, b


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {['E', *tensor.shape[1:]]}".replace("'", "")


def _examples(name: str, part: Pair, groups: Any, normalisation: Normalisation | None, targets: Check) -> Examples:
    """One part, checked."""
    if not isinstance(part, Examples):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise RecipeError(
                f"{name} is {shown(type(part).__name__)}: it is a pair (inputs, targets) of tensors, or Examples"
            )
        part = Examples(_as_tensor(part[0], f"{name}'s inputs"), _as_tensor(part[1], f"{name}'s targets"))
    if groups is not None:
        part = replace(part, groups=_as_tensor(groups, f"{name}'s groups"))
    part = replace(part, normalisation=normalisation or part.normalisation)
    _check_inputs(name, part)
    if part.targets.dim() < 1 or len(part.targets) != len(part.inputs):
        raise RecipeError(
            f"{name} has {len(part.inputs)} inputs and targets of shape {list(part.targets.shape)}: one target each"
        )
    part = replace(part, targets=targets(name, part.targets))
    if part.groups is not None:
        if part.groups.shape != (len(part),) or part.groups.is_floating_point() or part.groups.is_complex():
            raise RecipeError(f"{name} has groups {_kind(part.groups)} for {len(part)} examples: one integer each")
        part = replace(part, groups=part.groups.to(torch.int64))
    return part


def _as_tensor(value: Any, what: str) -> Tensor:
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{what} cannot become a tensor ({reason}): give a tensor or an array of numbers") from None
    return found.detach()


def _check_inputs(name: str, part: Examples) -> None:
    inputs = part.inputs
    if inputs.dim() < 1 or not len(inputs):
        raise RecipeError(f"{name} has no examples: each part needs at least one")
    if inputs.is_complex() or inputs.dtype == torch.bool:
        raise RecipeError(f"{name} has inputs {_kind(inputs)}: give floats, or integers")
    if part.normalisation is not None:
        _check_normalisation(name, inputs, part.normalisation)
    if inputs.is_floating_point():
        _check_finite(f"{name}'s inputs", inputs)
    elif part.normalisation is None and bool((inputs < 0).any()):
        raise RecipeError(
            f"{name} has integers below 0 as inputs: tokens count from 0; give floats, or a normalisation"
        )


def _check_normalisation(name: str, inputs: Tensor, normalisation: Normalisation) -> None:
    if inputs.is_floating_point():
        raise RecipeError(
            f"{name} has inputs {_kind(inputs)} and a normalisation, which is for stored integers: leave it out"
        )
    channels = inputs.shape[1] if inputs.dim() > 1 else 1
    for what, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, channels):
            raise RecipeError(
                f"{what} has {len(values)} numbers, and the inputs have {channels} channels: give one for each, or one"
            )
    if not all(math.isfinite(x) and x > 0 for x in (*normalisation.std, normalisation.most)):
        raise RecipeError(f"std = {list(normalisation.std)} is not allowed: deviations are above 0")


def _check_finite(what: str, values: Tensor) -> None:
    for at, some in zip(range(0, len(values), AT_ONCE), values.split(AT_ONCE), strict=True):
        wrong = ~torch.isfinite(some.flatten(1) if some.dim() > 1 else some[:, None]).all(1)
        if bool(wrong.any()):
            first = at + int(wrong.nonzero()[0])
            raise RecipeError(
                f"{what} are not all numbers: example {first} has NaN or infinity; leave it out or repair it"
            )


def _classes(name: str, targets: Tensor) -> Tensor:
    """Targets of a classification, int64 ``[E]``."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise RecipeError(
            f"{name} has targets {_kind(targets)}: classes are integers from 0 (use .long(), or Regression)"
        )
    if targets.dim() != 1:
        raise RecipeError(f"{name} has targets of shape {list(targets.shape)}: one class for each example")
    wrong = (targets < 0) & (targets != IGNORED)
    if bool(wrong.any()):
        raise RecipeError(
            f"{name} has class {int(targets[wrong][0])} (example {int(wrong.nonzero()[0])}): classes are integers from 0, and "
            f"{IGNORED} is for a target that does not count"
        )
    if bool((targets == IGNORED).all()):
        raise RecipeError(f"{name} has no target that counts: all are {IGNORED}")
    return targets.to(torch.int64)


def _numbers(name: str, targets: Tensor) -> Tensor:
    """Targets of a regression, floats ``[E, *]``."""
    if not targets.is_floating_point():
        raise RecipeError(
            f"{name} has targets {_kind(targets)}: numbers to predict are floats (use .float(), or Classification)"
        )
    if not targets.numel():
        raise RecipeError(f"{name} has targets of shape {list(targets.shape)}: at least one number for each example")
    _check_finite(f"{name}'s targets", targets)
    return targets


def _num_classes(parts: tuple[Examples, Examples], given: int | None) -> int:
    """How many classes there are, none of them left out where nobody says how many."""
    there = torch.cat([part.targets for part in parts]).unique()
    there = there[there != IGNORED]
    largest = int(there[-1])
    if given is None:
        missing = sorted(set(range(min(largest + 1, 10 * len(there) + 10))) - set(there.tolist()))
        if missing:
            raise RecipeError(
                f"classes go up to {largest}, and {shown(missing)} have no example: number them without gaps, or give "
                f"num_classes={largest + 1}"
            )
        return largest + 1
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise RecipeError(f"num_classes = {shown(given)} is not allowed: it is an integer of at least 1")
    if largest >= given:
        raise RecipeError(f"there is a class {largest}, and num_classes = {given}: classes go from 0 to {given - 1}")
    return given
