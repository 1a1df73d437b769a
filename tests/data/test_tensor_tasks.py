"""Classification and regression over tensors: what they refuse, what their losses and scores are, what a fingerprint tells apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lab.data.tasks import metrics, tensors
from lab.data.tasks.data import IGNORED
from lab.data.tasks.dealt import deal
from lab.data.tasks.task import Examples, Normalisation
from lab.data.tasks.tensors import Classification, Regression, fingerprint, hold_out
from lab.ground.errors import Diverged
from lab.ground.seeds import generator
from lab.models.gpt import GPT
from tests.support.texts import fails, run

X, Y = torch.arange(24.0).view(6, 4) / 7, torch.tensor([0, 1, 2, 0, 1, 2])
HELD = (X + 1, Y)


def classes(x: Any = X, y: Any = Y, held: Any = HELD, *args: Any, **options: Any) -> Classification:
    return Classification((x, y), held, *args, **options)


# --- what is refused --------------------------------------------------------------------------------------------------

NAN = X.clone()
NAN[4, 1] = float("nan")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:5]), {}, r"train has 6 inputs and targets of shape \[5\]: one target each"),
        ((X, Y, (X, Y[:2])), {}, "held_out has 6 inputs"),
        ((X, Y - 1), {}, r"train has class -1 \(example 0\): classes are integers from 0, and -100"),
        ((X, Y * 2), {}, r"classes go up to 4, and \[3\] have no example: number them without gaps, or give num_classes=5"),
        ((X, Y, HELD, 2), {}, "there is a class 2, and num_classes = 2: classes go from 0 to 1"),
        ((X, Y, HELD, 0), {}, "num_classes = 0 is not allowed"),
        ((X, Y, HELD, True), {}, "num_classes = True is not allowed"),
        ((X, Y.float()), {}, r"train has targets float32 \[E\]: classes are integers from 0 \(use .long\(\), or Regression\)"),
        ((X, Y.bool()), {}, "targets bool"),
        ((X, Y.view(6, 1)), {}, "one class for each example"),
        ((X, torch.full((6,), -100)), {}, "no target that counts"),
        ((NAN, Y), {}, "train's inputs are not all numbers: example 4 has NaN or infinity"),
        ((X, Y, (X / 0, Y)), {}, "held_out's inputs are not all numbers: example 0"),
        ((X[:0], Y[:0]), {}, "train has no examples"),
        ((X, Y, (X[:0], Y[:0])), {}, "held_out has no examples"),
        ((X, Y, (X.view(6, 2, 2), Y)), {}, r"train has inputs float32 \[E, 4\] and held_out has float32 \[E, 2, 2\]"),
        ((X, Y, (X.double(), Y)), {}, "held_out has float64"),
        ((X > 1, Y), {}, "inputs bool"),
        ((X + 0j, Y), {}, "inputs complex64"),
        ((Y[:, None] - 1, Y, (Y[:, None], Y)), {}, "integers below 0 as inputs"),
        (([["a"]], [0]), {}, "train's inputs cannot become a tensor"),
        ((X, None), {}, "train's targets cannot become a tensor"),
        ((X, Y, X), {}, "held_out is 'Tensor': it is a pair"),
        ((X, Y), {"groups": Y[:3]}, r"train has groups int64 \[E\] for 6 examples: one integer each"),
        ((X, Y), {"held_out_groups": X[:, 0]}, "held_out has groups float32"),
        ((X, Y), {"class_names": ["a", "b"]}, "class_names has 2 names for 3 classes"),
        ((X, Y), {"normalisation": Normalisation()}, "a normalisation, which is for stored integers"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_refused(arguments: Any, options: Any, message: str) -> None:
    with fails(message):
        classes(*arguments, **options)


PIXELS = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("normalisation", "message"),
    [
        (Normalisation(mean=(0.1, 0.2)), "mean has 2 numbers, and the inputs have 3 channels"),
        (Normalisation(std=(0.1, 0.2)), "std has 2 numbers"),
        (Normalisation(std=(0.0,)), "deviations are above 0"),
        (Normalisation(std=(math.nan,)), "deviations are above 0"),
    ],
)
def test_normalisations_that_mean_nothing(normalisation: Normalisation, message: str) -> None:
    with fails(message):
        Classification((PIXELS, [0, 1]), (PIXELS, [0, 1]), normalisation=normalisation)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Y, r"train has targets int64 \[E\]: numbers to predict are floats \(use .float\(\), or Classification\)"),
        (torch.tensor([0, 1, 2, 3, math.inf, 4]), "train's targets are not all numbers: example 4"),
        (torch.zeros(6, 0), "at least one number"),
        (X[:4], "one target each"),
    ],
)
def test_numbers_that_cannot_be_predicted(targets: Tensor, message: str) -> None:
    with fails(message):
        Regression((X, targets), (X, X[:, 0]))


def test_what_is_taken() -> None:
    """Arrays, lists, any integer, a class that only the held-out part has, targets that do not count, more classes than there are."""
    task = classes(X.numpy(), Y.int().numpy(), (X.tolist(), [0, 1, 2, 3, 3, -100]))
    assert task.num_outputs == 4
    assert task.class_names == ("0", "1", "2", "3")
    assert task.train.targets.dtype == torch.int64
    assert task.num_targets(task.held_out.targets) == 5
    assert classes(num_classes=7).num_outputs == 7
    examples = Examples(X, Y, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert Classification(examples, examples).train.groups is not None
    assert Regression((X, X[:, :2]), HELD_NUMBERS).num_outputs == 2
    assert "6 of shape [4]" in repr(task)
    assert "tensor(" not in repr(task)


HELD_NUMBERS = (X, X[:, 2:])


# --- losses -----------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    """Of the two rows that count: −log softmax at the class, and their mean."""
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [3.0, -1.0, 2.0]], dtype=torch.float64)
    loss = classes().loss(nn.Identity(), logits, torch.tensor([1, IGNORED, 2]))
    first = -(2 - math.log(math.e + math.e**2 + math.e**0.5))
    third = -(2 - math.log(math.e**3 + math.e**-1 + math.e**2))
    assert loss.item() == pytest.approx((first + third) / 2, rel=1e-14)
    targets = torch.tensor([1, 0, 2])
    assert torch.allclose(classes().loss(nn.Identity(), logits, targets), F.cross_entropy(logits, targets), rtol=1e-14)


def test_a_batch_in_which_nothing_counts_is_no_nan() -> None:
    model = _linear(0)
    loss = classes().loss(model, X.double(), torch.full((6,), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters())


def test_squared_error_by_hand() -> None:
    """And a model that gives ``[B, 1]`` is not spread over ``[B, B]``."""
    task = Regression((X, X[:, 0]), (X, X[:, 0]))
    targets = torch.tensor([1.0, 2.0, 4.0])
    predicted = torch.tensor([[1.5], [2.0], [2.0]])
    for shape in ((3,), (3, 1)):
        assert task.loss(nn.Identity(), predicted.view(shape), targets).item() == pytest.approx(4.25 / 3)
    both = Regression((X, X[:, :2]), HELD_NUMBERS)
    assert both.loss(nn.Identity(), X[:2, :2], X[:2, :2] + 2).item() == pytest.approx(4)
    assert both.num_targets(X[:3, :2]) == 6


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_model_of_the_wrong_width_is_refused(outputs: int) -> None:
    model = _linear(0, 4, outputs).float()
    with fails(
        rf"the model gives a tensor of shape \[6, {outputs}\]: a model for this task gives \[6, 3\] for 6 examples"
    ):
        classes().loss(model, X, Y)
    with fails("a model for this task gives"):
        classes().scores(model, classes().held_out)
    with fails("a model for this task gives"):
        Regression((X, X[:, 0]), (X, X[:, 0])).loss(model, X, X[:, 0])


def test_a_model_that_gives_no_tensor_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with fails("the model gives a tuple: a model for this task gives one tensor"):
        classes().loss(Two(), X, Y)


def test_losses_of_all_workers_at_once_are_those_of_each() -> None:
    """The loss is something that ``vmap`` can follow, as a fleet in one pass needs it."""
    task = classes()
    models = [_linear(i) for i in range(3)]
    stacked = {name: torch.stack([dict(m.named_parameters())[name] for m in models]) for name in ("weight", "bias")}
    inputs, targets = torch.stack([X, X + 1, X * 2]).double(), torch.stack([Y, Y, torch.where(Y == 1, IGNORED, Y)])

    class Loss(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module = module

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return task.loss(self.module, x, y)

    def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional_call(Loss(models[0]), {f"module.{k}": v for k, v in parameters.items()}, (x, y))

    together = vmap(one)(stacked, inputs, targets)
    apart = [task.loss(m, x, y) for m, x, y in zip(models, inputs, targets, strict=True)]
    assert torch.allclose(together, torch.stack(apart), rtol=1e-12)


def _linear(seed: int, width: int = 4, outputs: int = 3) -> nn.Linear:
    model = nn.Linear(width, outputs, dtype=torch.float64, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator(seed))
    return model


# --- scores -----------------------------------------------------------------------------------------------------------


def logits_of(answers: list[int], probability: list[float], num: int = 3) -> Tensor:
    """Logits whose softmax gives the answer this probability, and the rest to the others in equal parts."""
    p = torch.tensor(probability, dtype=torch.float64)
    rows = ((1 - p) / (num - 1))[:, None].repeat(1, num)
    rows[range(len(answers)), answers] = p
    return rows.log()


def scored(logits: Tensor, targets: list[int], **options: Any) -> dict[str, float]:
    """Of a model that gives these logits."""
    truth = torch.tensor(targets)
    task = Classification((logits, truth), (logits, truth), logits.shape[1], **options)
    return task.scores(nn.Identity(), task.held_out)


def test_scores_by_hand() -> None:
    """Class 0: 2 of 3 found, one false; class 1: 1 of 2 found, one false; class 2 is guessed once and is never there."""
    targets = [0, 0, 0, 1, 1]
    found = scored(logits_of([0, 0, 1, 1, 2], [0.9, 0.8, 0.7, 0.6, 0.5]), targets, per_class=True)
    assert found["accuracy"] == pytest.approx(3 / 5)
    f0, f1, f2 = 2 * 2 / (2 * 2 + 0 + 1), 2 * 1 / (2 * 1 + 1 + 1), 0.0
    assert found["macro_f1"] == pytest.approx((f0 + f1 + f2) / 3)
    assert {k: v for k, v in found.items() if k.startswith("recall")} == {"recall of 0": 2 / 3, "recall of 1": 1 / 2}
    # of 15 bins each answer has one for itself: |right − confidence|, a fifth each
    assert found["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.4 + 0.5) / 5, rel=1e-12)


def test_calibration_error_by_hand() -> None:
    """Three answers in the bin of [0.8, 0.867): accuracy 2/3 against 0.82; one alone: 1 against 0.6."""
    confidence, right = np.array([0.81, 0.82, 0.83, 0.6]), np.array([True, True, False, True])
    wanted = 3 / 4 * abs(2 / 3 - 0.82) + 1 / 4 * abs(1 - 0.6)
    assert metrics.calibration_error(confidence, right) == pytest.approx(wanted, rel=1e-12)
    assert metrics.calibration_error(np.ones(5), np.ones(5, bool)) == 0
    assert metrics.calibration_error(np.ones(5), np.zeros(5, bool)) == 1
    assert metrics.calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_the_definition(answers: list[tuple[float, bool]]) -> None:
    """Guo et al., eq. 3, bin by bin, with bins as numpy counts them (a value on an edge belongs to the lower or the upper one)."""
    confidence, right = (np.array(x) for x in zip(*answers, strict=True))
    edges = np.linspace(0, 1, 16)
    wanted = 0.0
    for b in range(15):
        inside = (confidence > edges[b]) & (confidence <= edges[b + 1]) | ((b == 0) & (confidence == 0))
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(confidence, right) == pytest.approx(wanted, abs=1e-12)


def test_scores_by_class_by_hand() -> None:
    logits = logits_of([0, 0, 1, 1, 2], [0.9] * 5)
    targets = torch.tensor([0, 0, 0, 1, 1])
    task = Classification((logits, targets), (logits, targets), 3, class_names=["a", "b", "c"])
    assert task.scores_by_class(nn.Identity(), task.held_out) == {
        "a": {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3.0},
        "b": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2.0},
    }


def test_what_does_not_count_is_not_scored() -> None:
    logits, targets = logits_of([0, 1, 2, 2], [0.9, 0.8, 0.7, 0.6]), [0, 0, 2, 1]
    more = torch.cat([logits, logits_of([1, 1], [0.9, 0.9])])
    assert scored(more, [*targets, IGNORED, IGNORED]) == scored(logits, targets)
    none = Examples(logits, torch.full((4,), IGNORED))
    assert classes(num_classes=3).scores(nn.Identity(), none) == {}


def test_errors_of_a_regression_by_hand() -> None:
    targets, predicted = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.5, 2.0, 2.0, 6.0])
    task = Regression((predicted, targets), (predicted, targets))
    found = task.scores(nn.Identity(), task.held_out)
    assert found == {
        "mse": pytest.approx(1.25 / 4),
        "mae": pytest.approx(1.5 / 4),
        "r2": pytest.approx(1 - 1.25 / (4 + 1 + 0 + 9)),
    }
    one = Examples(predicted[:1], targets[:1])
    assert task.scores(nn.Identity(), one).keys() == {"mse", "mae"}  # r2 of one example has no meaning


def test_a_model_that_says_nan_has_diverged() -> None:
    logits = torch.full((2, 3), float("nan"))
    task = classes(num_classes=3)
    with pytest.raises(Diverged, match="NaN or infinity"):
        task.scores(_Says(logits), Examples(X[:2], Y[:2]))


class _Says(nn.Module):
    def __init__(self, outputs: Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs


def random_classes(num: int = 41, held: int = 23, width: int = 5, seed: int = 0) -> Classification:
    """A few of whose targets do not count."""
    g = generator(seed)
    x = torch.randn(num + held, width, generator=g, dtype=torch.float64)
    y = torch.randint(4, (num + held,), generator=g)
    y[::6] = IGNORED
    return Classification((x[:num], y[:num]), (x[num:], y[num:]), 4)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_scores_do_not_depend_on_how_many_go_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = random_classes(), _linear(1, 5, 4)
    numbers = Regression(
        (task.train.inputs, task.train.inputs[:, :4]), (task.held_out.inputs, task.held_out.inputs[:, :4])
    )
    wanted = [t.scores(model, t.held_out) for t in (task, numbers)]
    monkeypatch.setattr(tensors, "AT_ONCE", at_once)
    for t, of_256 in zip((task, numbers), wanted, strict=True):
        assert t.scores(model, t.held_out) == pytest.approx(of_256, rel=1e-13)


@pytest.mark.parametrize("batch_size", [1, 7, 23])
def test_means_are_exact_whatever_the_batch_size(batch_size: int) -> None:
    """The mean of the losses of batches, weighted by the targets that count, is that of all examples at once; scores are the same."""
    task, model = random_classes(), _linear(2, 5, 4)
    dealt = deal(task, num_workers=2, batch_size=batch_size, num_validation=1000, dtype=torch.float64)
    assert [len(x) for x, _ in dealt.validation] == {1: [1] * 23, 7: [7, 7, 7, 2], 23: [23]}[batch_size]
    sums = [(dealt.loss(model, x, y).item() * dealt.num_targets(y), dealt.num_targets(y)) for x, y in dealt.validation]
    counts = task.held_out.targets != IGNORED
    x, y = task.held_out.inputs[counts], task.held_out.targets[counts]
    assert sum(n for _, n in sums) == len(y) < 23
    assert sum(s for s, _ in sums) / len(y) == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-13)
    assert dealt.scores(model) == pytest.approx(task.scores(model, task.held_out), rel=1e-13)


def test_means_over_tokens_are_exact_whatever_the_batch_size(tmp_path: Any) -> None:
    """Rows of text have different numbers of targets: the weighted mean over batches is that over all tokens."""
    from lab.data.tasks import load_task
    from lab.runs.data import tokens_that_count

    task = load_task("docstrings", context=48, num_workers=2, cache=tmp_path)
    model = GPT(dim=16, num_layers=1, num_heads=1).build(task.vocab_size, task.context, 3).double()
    means = []
    for batch_size in (1, 7, 20):
        batches = task.validation(batch_size, 20)
        with torch.no_grad():
            sums = [(model.loss(*b).item() * tokens_that_count(b[1]), tokens_that_count(b[1])) for b in batches]
        means.append(sum(s for s, _ in sums) / sum(n for _, n in sums))
    assert means == pytest.approx([means[0]] * 3, rel=1e-13)


# --- what examples become ---------------------------------------------------------------------------------------------


def test_stored_integers_become_what_a_model_is_given() -> None:
    """By hand: a pixel of 51 is 0.2; with mean 0.5 and deviation 0.25 in its channel, −1.2."""
    pixels = torch.full((2, 3, 2, 2), 51, dtype=torch.uint8)
    task = Classification(
        (pixels, [0, 1]), (pixels, [0, 1]), normalisation=Normalisation((0.5, 0.0, 0.2), (0.25, 1.0, 0.1))
    )
    x, y = task.train.take(torch.tensor([1]), torch.float64)
    assert x[0, :, 0, 0].tolist() == pytest.approx([-1.2, 0.2, 0.0], abs=1e-15)
    assert x.dtype == torch.float64
    assert y.tolist() == [1]
    assert task.train.inputs.dtype == torch.uint8
    assert task.train.take(torch.tensor([0]))[0].dtype == torch.float32
    done = task.train.select(torch.tensor([1, 0]))
    assert torch.equal(done.take(torch.tensor([0, 1]))[0], task.train.take(torch.tensor([1, 0]))[0])  # once, not twice


def test_integers_without_a_normalisation_are_tokens() -> None:
    tokens = torch.tensor([[1, 5], [2, 0]], dtype=torch.uint8)
    task = Classification((tokens, [0, 1]), (tokens, [0, 1]))
    assert task.train.take(torch.tensor([0]))[0].dtype == torch.int64
    dealt = deal(task, num_workers=1, batch_size=2)
    assert dealt.vocab_size == 6
    assert deal(classes(), num_workers=1, batch_size=2).vocab_size == 0


def test_floats_are_of_the_precision_that_is_asked_for() -> None:
    task = Regression((X, X[:, :2]), HELD_NUMBERS)
    dealt = deal(task, num_workers=2, batch_size=2, dtype=torch.float64)
    assert {t.dtype for t in (*dealt.batches.get(0, 1), *dealt.validation[0])} == {torch.float64}
    assert dealt.loss(_linear(0, 4, 2), *dealt.batches.get(1, 1)).dtype == torch.float64
    assert dealt.scores(_linear(0, 4, 2)).keys() == {"mse", "mae", "r2"}


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_apart_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.tensor([0, 0, 1, 1, 2, 2])
    one, other, swapped = X.clone(), X.clone(), Y.clone()
    one[5, 3] = math.nextafter(one[5, 3].item(), 9)
    other[[0, 1]] = X[[1, 0]]
    swapped[[0, 1]] = Y[[1, 0]]
    small = (X * 9).to(torch.uint8)
    different = [
        classes(),
        classes(one.float() + 1e-6),
        classes(other),
        classes(X, swapped),
        classes(X, Y, (one + 1e-3, Y)),
        classes(groups=g),
        classes(held_out_groups=g),
        classes(num_classes=4),
        classes(X.double(), Y, (X.double() + 1, Y)),
        classes(X.view(6, 2, 2), Y, (X.view(6, 2, 2) + 1, Y)),
        classes(small, Y, (small, Y)),
        classes(small, Y, (small, Y), normalisation=Normalisation()),
        classes(small, Y, (small, Y), normalisation=Normalisation((0.1,))),
    ]
    found = [fingerprint(task) for task in different]
    assert len(set(found)) == len(found)
    for part in (1, 17, 64):  # pieces of any size are the same bytes
        monkeypatch.setattr(tensors, "PART", part)
        assert [fingerprint(task) for task in different] == found
    scattered = torch.stack([X, X], -1)[..., 0]
    assert not scattered.is_contiguous()
    assert fingerprint(classes(scattered)) == fingerprint(classes(X.clone()))


@pytest.mark.processes
def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from lab.data.tasks.tensors import *; x = torch.arange(24.0).view(6, 4) / 7;"
        "y = torch.tensor([0, 1, 2, 0, 1, 2]); print(fingerprint(Classification((x, y), (x + 1, y))))"
    )
    assert run(code, PYTHONHASHSEED="5") == fingerprint(classes())


# --- what is held out -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-3, 4), min_size=4, max_size=80), st.floats(0.05, 0.95), st.integers(0, 3))
def test_a_share_of_every_stratum_is_held_out(strata: list[int], share: float, seed: int) -> None:
    values = np.array(strata)
    sizes = {s: strata.count(s) for s in strata}
    wanted = {s: min(round(share * n), n - 1) for s, n in sizes.items()}
    if not sum(wanted.values()):
        with fails("holds out none"):
            hold_out(values, share, seed)
        return
    train, held = hold_out(values, share, seed)
    assert sorted([*train, *held]) == list(range(len(strata)))
    assert {s: int((values[held] == s).sum()) for s in sizes} == wanted
    assert all(np.array_equal(a, b) for a, b in zip(hold_out(values, share, seed), (train, held), strict=True))


def test_what_is_held_out_follows_from_the_seed() -> None:
    values = np.repeat([0, 1], 50)
    assert not np.array_equal(hold_out(values, 0.2, 0)[1], hold_out(values, 0.2, 1)[1])
