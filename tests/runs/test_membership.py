"""Membership: scores counted by hand, a model that has learnt by heart, one that has learnt nothing, and runs that stay what they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.data.tasks.tensors import Classification
from lab.engine.optim import Optimizer
from lab.events import Measured, Seated, Stepped, WorkersChanged
from lab.methods.local_sgd import LocalSGD
from lab.probes import membership
from lab.probes.membership import MembershipProbe, advantage, leak, words
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from lab.study.membership import Half, attack, half, likelihood_ratio
from lab.testing.resume import stop_and_go
from tests.support.federations import federation
from tests.support.recipes import corpus, recipe
from tests.support.texts import fails


def by_chance(num: int = 40, width: int = 24, seed: int = 0) -> Classification:
    """Points whose class nothing but their own list tells: what a model knows of one it has learnt by heart."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2 * num, width, generator=g), torch.randint(2, (2 * num,), generator=g)
    return Classification((x[:num], y[:num]), (x[num:], y[num:]), num_classes=2)


def learning(lr: float = 0.5, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [32]},
        "data": by_chance,
        "batch_size": 4,
        "num_workers": 2,
    }
    fields |= {"steps": 60, "eval_every": 20, "eval_windows": 40, "checkpoint_every": 0, "metrics": ("membership",)}
    return recipe(LocalSGD(4, Optimizer("SGD", lr), max_norm=None), **(fields | changes))


def looks(r: Recipe) -> list[dict[str, Any]]:
    events = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Measured)]
    assert [e.step for e in events] == [20, 40, 60]
    return [{name: x for name, (x,) in e.values.items()} for e in events]


def test_how_well_scores_tell_members_is_counted_by_hand() -> None:
    g = np.random.default_rng(5)
    members, others = np.round(g.normal(0.7, 1, 60), 1), np.round(g.normal(0, 1, 300), 1)  # with ties
    found = leak(members, others)
    assert found.auc == pytest.approx(np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others]), abs=1e-12)
    bars = [np.inf, *members, *others]
    assert found.tpr == max((members >= bar).mean() for bar in bars if (others >= bar).mean() <= 0.01)
    assert (found.members, found.others) == (60, 300)
    draws = [leak(g.normal(size=60), g.normal(size=300)).auc for _ in range(400)]
    assert np.std(draws) == pytest.approx(found.auc_error, rel=0.15)
    assert leak(members, members).auc == pytest.approx(0.5)
    loss = -members
    assert advantage(loss, -others) == (loss <= loss.mean()).mean() - (-others <= loss.mean()).mean()


def test_what_is_learnt_by_heart_is_found_and_what_is_not_is_not() -> None:
    """Labels by chance: a model that knows them tells its members; one that never moves has the same loss on what it saw and did not see."""
    seen = looks(learning())
    assert seen[-1]["auc"] > 0.5 + 5 * seen[-1]["auc_error"]
    assert seen[-1]["advantage"] > 0.25
    assert seen[-1]["tpr"] > 0.05
    assert (seen[-1]["members"], seen[-1]["others"]) == (120, 40)
    still = looks(learning(1e-12))
    assert all(abs(x["auc"] - 0.5) < 4 * x["auc_error"] for x in still)
    assert "a guess: 0.5 ±" in words(Measured(1, "membership", {k: [v] for k, v in seen[0].items()}))


def test_members_are_what_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clients that had a turn, and counted in it; of more than are kept, each batch as likely."""
    r = federation("local_sgd", metrics=("membership",), steps=12, eval_every=12)
    trainer = Trainer(r, corpus=corpus())
    (probe,) = (p for p in trainer.probes if isinstance(p, MembershipProbe))
    trained, seats = set[tuple[int, int]](), list[int]()
    for event in trainer.events():
        if isinstance(event, Seated):
            seats = event.clients
        elif isinstance(event, Stepped):
            trained |= {(seats[w], event.step) for w, loss in enumerate(event.loss_W) if loss is not None}
        else:
            assert not isinstance(event, WorkersChanged) or event.step
    assert set(probe.kept) == trained
    assert probe.seen == len(trained) == len(probe.kept)

    monkeypatch.setattr(membership, "MOST", 50)
    probe.forget()
    for k in range(2000):
        probe._keep((k % 7, k))
    steps = np.array([t for _, t in probe.kept])
    assert len(steps) == 50 == len({*steps.tolist()})
    assert abs(steps.mean() - 1000) < 4 * 2000 / math.sqrt(12 * 50)


def test_looking_changes_nothing_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    with_it, without = (
        [e for e in Trainer(learning(metrics=m), corpus=corpus()).events() if isinstance(e, Stepped)]
        for m in (("membership",), ())
    )
    assert [e.loss_W for e in with_it] == [e.loss_W for e in without]
    stop_and_go(learning(steps=8, eval_every=4, checkpoint_every=1), tmp_path / "a", corpus())
    folder = RunFolder(tmp_path / "b")
    for _ in Trainer(learning(steps=8, eval_every=4, checkpoint_every=4), corpus=corpus()).events(folder):
        pass
    checkpoint, _ = folder.load()
    assert checkpoint is not None
    assert checkpoint.extra["membership"] == [16, [[c, t] for t in range(1, 9) for c in range(2)]]


# --- shadow models -------------------------------------------------------------------------------------------------------


def test_the_ratio_of_two_normal_distributions_by_hand() -> None:
    shadows = np.array([[1.0, 5.0], [3.0, 6.0], [2.0, 4.0], [4.0, 9.0]])
    inside = np.array([[True, False], [False, True], [True, False], [False, True]])
    mean_in, mean_out = [1.5, 7.5], [3.5, 4.5]
    variance = (2 * 0.5**2 + 2 * 0.5**2 + 2 * 1.5**2 + 2 * 0.5**2) / (8 - 4)
    target = np.array([1.0, 4.0])
    density = lambda x, mu: -((x - mu) ** 2) / (2 * variance)  # noqa: E731
    want = [density(x, i) - density(x, o) for x, i, o in zip(target, mean_in, mean_out, strict=True)]
    assert likelihood_ratio(target, shadows, inside) == pytest.approx(want, rel=1e-12)


def test_halves_are_halves() -> None:
    task = {"task": "tests.runs.test_membership:by_chance", "options": {"num": 31}, "seed": 4}
    one, other = Half(**task), Half(**task, other=True)
    assert sorted([*one.index, *other.index]) == [*range(31)]
    assert [*one.index] == [*np.flatnonzero(half(31, 4))]
    assert [*Half(**task | {"seed": 5}).index] != [*one.index]
    whole = by_chance(31).train
    assert torch.equal(one.train.inputs, whole.inputs[torch.from_numpy(one.index)])
    assert torch.equal(one.train.targets, whole.targets[torch.from_numpy(one.index)])
    assert len(one.held_out) == 31


def test_shadows_find_what_is_learnt_by_heart() -> None:
    r = learning(steps=40)
    found = attack(r, shadows=4, examples=40)
    assert found.shadows.auc > 0.5 + 4 * found.shadows.auc_error
    assert found.loss.auc > 0.5 + 3 * found.loss.auc_error
    assert found.shadows.members + found.shadows.others == 40
    assert attack(r, shadows=4, examples=40) == found
    still = attack(learning(1e-12, steps=4), shadows=2, examples=40)
    assert abs(still.loss.auc - 0.5) < 4 * still.loss.auc_error
    with fails("running text has none: use a task"):
        attack(recipe())
    with fails("shadows = 3 is not allowed: give an even number"):
        attack(r, shadows=3)
