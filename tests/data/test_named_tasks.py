"""Tasks by name: which there are, what their options may be, how packages offer theirs; digits and MNIST-1D."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field

from lab.data.tasks import mnist1d, registry
from lab.data.tasks.registry import TASKS, check_options, find_task, task
from lab.data.tasks.tensors import Classification, fingerprint
from lab.ground.config import config, references
from lab.ground.config.references import Call
from lab.ground.errors import RecipeError
from lab.runs.data import make_task
from tests.support.texts import fails, run

X, Y = torch.eye(3), torch.arange(3)


@pytest.fixture(autouse=True)
def registered_tasks_stay() -> Iterator[None]:
    """Tasks that a test registers are gone after it."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_functions_and_classes_get_names() -> None:
    @task("three")
    def three(*, scale: float = 1.0) -> Classification:
        return Classification((X * scale, Y), (X * scale, Y))

    assert find_task("three") is three
    assert make_task(Call("three", {"scale": 2})).train.inputs.max() == 2
    with fails("unknown option of data three 'sale': use one of scale"):
        make_task(Call("three", {"sale": 2}))
    with fails("data.scale = 'big' is not allowed: a number is needed, not text"):
        make_task(Call("three", {"scale": "big"}))

    @task("three")  # the cell is run again
    def again(*, scale: float = 3.0) -> Classification:
        return three(scale=scale)

    assert make_task(Call("three", {})).train.inputs.max() == 3


def test_a_class_of_ones_own_is_a_task() -> None:
    @task("corners")
    @config
    class Corners:
        num_outputs: Annotated[int, Field(ge=2)] = 3

        @property
        def train(self) -> Any:
            return Classification((X, Y), (X, Y), self.num_outputs).train

        held_out = train

        def loss(self, module: Any, inputs: Any, targets: Any) -> Any: ...
        def num_targets(self, targets: Any) -> int:
            return 0

        def scores(self, module: Any, examples: Any) -> dict[str, float]:
            return {}

    assert make_task(Call("corners", {"num_outputs": 5})).num_outputs == 5
    with fails("num_outputs = 1 is not allowed"):
        make_task(Call("corners", {"num_outputs": 1}))


@pytest.mark.parametrize("name", ["Two", "2", "two-moons", "a:b:c", ":a", ""])
def test_names_that_are_none(name: str) -> None:
    with fails("is no name: use small letters"):
        task(name)(lambda: None)


def test_names_that_are_taken_or_forgotten() -> None:
    with fails("@task\\('digits'\\): the name belongs to lab.data.tasks.digits, choose another"):
        task("digits")(lambda: None)
    with pytest.raises(RecipeError, match='has no name: write @task\\("two_moons"\\)'):
        task(lambda: None)  # type: ignore[arg-type]


def test_options_are_what_the_signature_says() -> None:
    """Lists become tuples, numbers are numbers; where no type is declared, or none can be told, a value is taken as it is."""

    def typed(*, sizes: tuple[int, ...], ratio: Annotated[float, Field(gt=0)], other=None) -> None: ...  # type: ignore[no-untyped-def]

    def untold(*, sizes: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert check_options(typed, {"sizes": [1, 2], "other": [3]}) == {"sizes": (1, 2), "other": [3]}
    assert check_options(untold, {"sizes": [1]}) == {"sizes": [1]}
    for options, message in (
        ({"sizes": [1, "b"]}, "data.sizes.1 = 'b' is not allowed: an integer is needed, not text"),
        ({"sizes": 3}, "data.sizes = 3 is not allowed: it is a list"),
        ({"ratio": 0}, "data.ratio = 0 is not allowed: input should be greater than 0"),
        ({"ratio": True}, "not true or false"),
    ):
        with fails(message):
            check_options(typed, options)


def test_what_gives_no_task_is_refused() -> None:
    task("nothing")(lambda: {"train": X})
    with fails("data nothing gives dict, which has no train, held_out"):
        make_task(Call("nothing", {}))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that offers two tasks, one of which cannot be imported."""
    about = tmp_path / "offering-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[isthmus.tasks]\ncorners = offering:corners\nbroken = offering:missing\n")
    (tmp_path / "offering.py").write_text(
        "import torch\nfrom lab.data.tasks.tensors import Classification\n"
        "def corners(*, size: int = 3):\n    x = torch.eye(size)\n    y = torch.arange(size)\n    return Classification((x, y), (x, y))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "offering"  # type: ignore[misc]
    sys.modules.pop("offering", None)


def test_packages_offer_tasks_by_entry_points(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for, and imported, for a name that is not known, and for no other."""
    find_task("digits")
    assert package not in sys.modules
    assert make_task(Call("corners", {"size": 4})).num_outputs == 4
    assert package in sys.modules
    with fails("'broken' of isthmus.tasks .* cannot be imported"):
        find_task("broken")
    with fails("unknown task 'corner'"):
        find_task("corner")
    monkeypatch.setattr(references, "entry_point", lambda *_: pytest.fail("looked for a name that is known"))
    find_task("sensors")
    assert registry.GROUP == "isthmus.tasks"


def test_nothing_heavy_is_imported_for_a_name() -> None:
    """Neither scikit-learn nor datasets: they come when examples are made, or scored."""
    code = (
        "import sys; from lab.recipes.recipe import Recipe; from lab.data.tasks.registry import find_task;"
        "find_task('digits'), find_task('mnist1d'), find_task('hub:cifar10');"
        "print([m for m in ('sklearn', 'datasets', 'scipy', 'mnist1d', 'matplotlib', 'PIL', 'soundfile') if m in sys.modules])"
    )
    assert run(code) == "[]"


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    """All of them, once; a fifth of each digit is held out; 0 to 1."""
    from sklearn.datasets import load_digits

    pixels, truth = load_digits(return_X_y=True)
    found = make_task(Call("digits", {}))
    assert found.train.inputs.shape == (1797 - len(found.held_out), 1, 8, 8)
    sizes = np.bincount(truth)
    assert np.bincount(found.held_out.targets).tolist() == [round(0.2 * n) for n in sizes]
    rows = torch.cat([found.train.inputs, found.held_out.inputs]).flatten(1) * 16
    labels = torch.cat([found.train.targets, found.held_out.targets])
    together = torch.cat([rows, labels[:, None]], 1).numpy()
    wanted = np.concatenate([pixels, truth[:, None]], 1)
    assert np.array_equal(together[np.lexsort(together.T)], wanted[np.lexsort(wanted.T)])
    flat = make_task(Call("digits", {"image": False}))
    assert torch.equal(flat.train.inputs, found.train.inputs.flatten(1))
    assert fingerprint(make_task(Call("digits", {"seed": 1}))) != fingerprint(found)
    assert fingerprint(make_task(Call("digits", {}))) == fingerprint(found)


# --- MNIST-1D ---------------------------------------------------------------------------------------------------------


needs_mnist1d = pytest.mark.skipif(importlib.util.find_spec("mnist1d") is None, reason="mnist1d is not installed")


@needs_mnist1d
@pytest.mark.processes
def test_mnist1d_is_what_its_package_draws() -> None:
    """The paper's numbers by default; nothing of this process is seeded or drawn from; options reach the package."""
    before = (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    found = make_task(Call("mnist1d", {"num_samples": 200}))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002
    assert found.train.inputs.shape == (160, 1, 40)
    assert found.held_out.inputs.shape == (40, 1, 40)
    whole = torch.cat([found.train.inputs, found.held_out.inputs])
    assert whole.mean().item() == pytest.approx(0, abs=1e-6)
    assert whole.std(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert torch.bincount(torch.cat([found.train.targets, found.held_out.targets])).tolist() == [20] * 10
    direct = run(
        "from mnist1d.data import *; a = get_dataset_args(); a.num_samples = 200; d = make_dataset(a);"
        "print(d['x'].astype('float32').tolist() , d['y_test'].tolist(), sep='|')"
    )
    x, y_test = direct.split("|")
    assert found.train.inputs[:, 0].tolist() == eval(x)
    assert found.held_out.targets.tolist() == eval(y_test)
    other = make_task(Call("mnist1d", {"num_samples": 100, "length": 24, "held_out": 0.5, "seed": 7, "flat": True}))
    assert other.train.inputs.shape == other.held_out.inputs.shape == (50, 24)


@needs_mnist1d
def test_mnist1d_is_drawn_once_and_nobody_changes_what_others_have() -> None:
    first = make_task(Call("mnist1d", {"num_samples": 60}))
    before, known = mnist1d.generated.cache_info(), first.train.targets.clone()
    first.train.targets.fill_(0)
    first.train.inputs.zero_()
    again = make_task(Call("mnist1d", {"num_samples": 60}))
    assert mnist1d.generated.cache_info().misses == before.misses
    assert torch.equal(again.train.targets, known)
    assert again.train.inputs.any()


@needs_mnist1d
def test_mnist1d_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist1d.importlib.util, "find_spec", lambda name: None)
    with fails(r"needs the package mnist1d: pip install 'isthmus\[mnist1d\]', or use task digits"):
        make_task(Call("mnist1d", {}))
    monkeypatch.undo()
    monkeypatch.setattr(mnist1d, "GENERATE", "raise ImportError('no filters')")
    with fails("its package failed .*no filters"):
        make_task(Call("mnist1d", {}))
