# ruff: noqa: NPY002  (the generators that all share are what this is about)
"""What a run shares with everybody else in its process: it reads none of it, and leaves all of it as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lab
from lab.events import Event
from lab.ground.seeds.surroundings import in_a_new_thread, one_core, one_core_
from lab.recipes.compute import Compute
from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from lab.runs.trainer import Trainer
from tests.support.recipes import TINY, corpus, recipe
from tests.support.stories import PATIENCE, story

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

DROPOUT = dataclasses.replace(TINY, dropout=0.2)
LIVE = ["model=nano", "corpus=grammar", "num_workers=2", "batch_size=2", "context=16", "eval_windows=4", "schedule={}"]


def live(*more: str) -> Recipe:
    return Recipe.of("des_loc", [*LIVE, "steps=30", "eval_every=10", "checkpoint_every=10", *more])


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """As a user's kernel has them; elsewhere tests run on one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def kernel() -> dict[str, Any]:
    """All that cells share."""
    return {
        "threads": torch.get_num_threads(),
        "threads of a new thread": in_a_new_thread(torch.get_num_threads),
        "threads between operations": torch.get_num_interop_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "draws of torch": torch.get_rng_state().tolist(),
        "draws of numpy": repr(np.random.get_state()),
        "draws of python": random.getstate(),
        "environment": dict(os.environ),
        "working directory": Path.cwd(),
        "filters of warnings": list(warnings.filters),
    }


def trained() -> None:
    lab.train(live(), "somewhere")


def trained_at_once() -> None:
    lab.train(live("compute.vectorised=true"))


def started() -> None:
    lab.start(live("model.dropout=0.1")).wait(PATIENCE)


def planned() -> None:
    plan(live("codecs.params=int8"))


def ended_early() -> None:
    events = Trainer(live()).events()
    next(events)
    events.close()


DOING = [trained, trained_at_once, started, planned, ended_early]


@pytest.mark.parametrize("do", DOING, ids=[f.__name__ for f in DOING])
def test_the_kernel_is_as_it_was(do: Callable[[], None]) -> None:
    before = kernel()
    do()
    assert before == kernel()
    torch.set_num_threads(2)
    do()
    assert before == kernel()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def errors_on_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SETTINGS: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": default_device,
    "errors on warnings": errors_on_warnings,
}
RUNS = {
    "dropout": recipe("des_loc", model=DROPOUT, steps=3, eval_every=2),
    "adapters": recipe("flexlora", lora={"ranks": [1, 2, 2]}, steps=4),
    "experts": recipe("fomoe", model="moe-nano", routing_every=2, steps=2, dtype="float32"),
    "outer": recipe("diloco", steps=4, codecs={"params": "int8"}),
    "all at once": recipe("des_loc", steps=3, compute=Compute(vectorised=True)),
    "counts of their own": recipe("lordo", scenario={"sample": 2, "sample_every": 1}, steps=3),
    "measured": recipe("lordo", steps=3, metrics=["spectrum", "activations", "noise"], metrics_every=2),
}


@pytest.fixture(scope="module")
def stories() -> dict[str, list[Event]]:
    return {name: list(story(Trainer(r, corpus=corpus()).events())) for name, r in RUNS.items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_of_the_kernel_changes_a_run(setting: str, stories: dict[str, list[Event]]) -> None:
    text, strange = corpus(), {torch.bfloat16, torch.float16}
    with SETTINGS[setting]():
        before = kernel()
        for name, r in RUNS.items():
            trainer = Trainer(r, corpus=text)
            assert list(story(trainer.events())) == stories[name], name
            assert not {x.dtype for x in trainer.snapshot()[0].values() if x.dim()} & strange, name
        assert before == kernel()


def test_what_takes_events_has_its_own_settings_back() -> None:
    """Between two events nothing is set aside: what a cell does there is under its own settings."""
    with torch.inference_mode():
        for _ in Trainer(RUNS["outer"], corpus=corpus()).events():
            assert torch.is_inference_mode_enabled()
            assert torch.get_num_threads() == 2


def test_one_core_is_for_one_thread() -> None:
    """Of a thread that says so, whether it has used torch before or not; all others keep theirs, also those to come."""

    def mine() -> tuple[int, int]:
        one_core_()
        return torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)

    assert in_a_new_thread(mine) == (1, 2)
    assert torch.get_num_threads() == 2
    with one_core():
        assert torch.get_num_threads() == 1
        assert in_a_new_thread(torch.get_num_threads) == 2
    assert torch.get_num_threads() == 2


def test_every_worker_computes_on_one_core() -> None:
    trainer = Trainer(RUNS["outer"], corpus=corpus())
    assert trainer.fleet.pool.submit(torch.get_num_threads).result() == 1
    trainer.fleet.close()


# --- beside a run that goes on ---------------------------------------------------------------------------------------


def draw(seed: int, num: int) -> list[Any]:
    """What a user's cell draws."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return [(torch.rand(3).tolist(), np.random.rand(), random.random()) for _ in range(num)]


@contextlib.contextmanager
def generators_put_back() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def test_draws_and_settings_beside_runs_that_go_on() -> None:
    """Two live runs that drop out, and a cell that draws from seeds of its own: each gets the numbers that it gets alone."""
    with generators_put_back():
        drops = [live("model.dropout=0.1", f"seed={seed}") for seed in (0, 1)]
        alone = [lab.train(r) for r in drops]
        want = draw(7, 4000)
        before = settings()
        runs = [lab.start(r, keep=False) for r in drops]
        rounds = 0
        while not all(run.finished.is_set() for run in runs):
            assert draw(7, 4000) == want
            assert settings() == before
            rounds += 1
        assert rounds
        for run, columns in zip(runs, alone, strict=True):
            assert run.wait(PATIENCE).loss_W == columns.loss_W
            assert run.columns.eval_loss == columns.eval_loss


def settings() -> dict[str, Any]:
    """The kernel, but for the draws that this cell makes."""
    return {k: v for k, v in kernel().items() if not k.startswith("draws")}


# --- the working directory -------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder to change to, with other texts of the same names."""
    for folder in (Path.cwd(), tmp_path / "elsewhere"):
        (folder / "texts").mkdir(parents=True)
        words = "one two three " if folder == Path.cwd() else "not this one "
        for name in ("a", "b", "c", "d"):
            (folder / "texts" / f"{name}.txt").write_text(f"{name} {words}" * 400)
    return tmp_path / "elsewhere"


TEXTS = ["model=nano", "corpus=text:texts/*.txt", "num_workers=2", "batch_size=2", "context=16", "eval_windows=4"]


def test_a_run_goes_on_where_it_began(elsewhere: Path) -> None:
    """Whatever cells change to while it goes on: its text, its folder, its knobs and its checkpoints are where it began."""
    here, r = Path.cwd(), Recipe.of("des_loc", [*TEXTS, "schedule={}", "steps=8", "eval_every=4", "checkpoint_every=2"])
    want = lab.train(r, "alone")
    run = lab.start(r, folder="mine", paused=True)
    os.chdir(elsewhere)
    run.set(lr=1.0)
    for _ in range(3):
        run.step()
    run.resume()
    columns = run.wait(PATIENCE)
    assert columns.loss_W == want.loss_W
    assert columns.eval_loss == want.eval_loss
    assert sorted(p.name for p in elsewhere.iterdir()) == ["texts"]
    os.chdir(here)
    replay = lab.replay("mine", float("inf"), paused=True)
    os.chdir(elsewhere)
    replay.resume()
    assert replay.wait(PATIENCE).loss_W == want.loss_W


def test_a_run_goes_on_where_it_began_in_a_script(elsewhere: Path) -> None:
    """The same where the caller changes folders between two events."""
    r = Recipe.of("des_loc", [*TEXTS, "schedule={}", "steps=6", "eval_every=2", "checkpoint_every=2"])
    want = lab.train(r, "alone")
    here = Path.cwd()
    columns = lab.train(r, "mine", each=lambda event: os.chdir(elsewhere))
    assert columns.eval_loss == want.eval_loss
    assert (here / "mine" / "events.jsonl").exists()
    assert sorted(p.name for p in elsewhere.iterdir()) == ["texts"]


@pytest.mark.slow
def test_processes_go_on_where_the_run_began(elsewhere: Path) -> None:
    here, r = Path.cwd(), Recipe.of("des_loc", [*TEXTS, "schedule={}", "steps=4", "eval_every=2"])
    want = lab.train(r, "alone")
    run = lab.start(r, folder="mine", processes=2)
    os.chdir(elsewhere)
    assert run.wait(PATIENCE).eval_loss == want.eval_loss
    assert (here / "mine" / "events.jsonl").exists()
    assert sorted(p.name for p in elsewhere.iterdir()) == ["texts"]
