"""A record of agents: what it counts, that it goes on where it was cut off, policies that go elsewhere, and the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lab.cli import main
from lab.events import CellDone, Ended, Event, Orchestrated, Warned
from lab.ground.errors import RecipeError
from lab.systems.agents import orchestrate as module
from lab.systems.agents.learning import Learner, Nexa
from lab.systems.agents.nexa import Learning, Policy
from lab.systems.agents.orchestrate import POLICY, Orchestration, evaluate, learnt, orchestrate, results, summed
from lab.systems.agents.plans import play
from lab.systems.agents.rivals import Rival
from lab.systems.agents.synthetic import Synthetic

SMALL = Orchestration(
    policy=Policy(width=16, mlp_dim=16),
    learning=Learning(updates=5, batch_size=4),
    num_agents=4,
    rivals=("single", "full"),
    test_agents=(2, 3),
    test_questions=8,
    save_every=2,
)


def said(events: list[Event]) -> list[Event]:
    """Without the seconds of cells."""
    return [dataclasses.replace(e, seconds=0.0) if isinstance(e, CellDone) else e for e in events]


def test_counts_by_hand() -> None:
    world = Synthetic().setting()
    queries = world.questions.queries(0, 6, held_out=True)
    one, two = (play(world, Rival("full"), queries[a : a + 3], 4) for a in (0, 3))
    event = summed([one, two], "full", 7)
    came = play(world, Rival("full"), queries, 4)
    assert event == evaluate(world, Rival("full"), 4, 6, step=7) == summed([came], "full", 7)
    assert (event.questions, event.answers, event.edges, event.most_edges, event.calls) == (6, 24, 36, 6, 42)
    assert event.right == int(came.right.sum())
    assert event.right_before + event.rescued - event.harmed == int(came.finals_right.sum())
    assert event.tokens == (42 * (60 + 120) + 36 * 120) / 6
    assert event.probability_RR == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert (event.learning, event.reward, event.empty) == (False, None, 0)
    unequal = summed([play(world, Rival("parallel"), queries[:1], 4), one], "x", 0)
    assert unequal.probability_RR[0] == [0, 0.75, 0.75, 0.75]  # a mean over questions, not over batches
    assert unequal.empty == 1


def test_cells_events_and_the_policy(tmp_path: Path) -> None:
    told: list[Event] = []
    record = orchestrate(SMALL, tmp_path, tell=told.append)
    assert list(record.cells) == [
        "updates 1 to 2",
        "updates 3 to 4",
        "updates 5 to 5",
        "nexa with 2",
        "nexa with 3",
        "single with 1",
        "full with 2",
        "full with 3",
    ]
    assert told == [*record.events, Ended(5, "done", "")]
    updates = [e for e in record.events if isinstance(e, Orchestrated) and e.learning]
    assert [e.step for e in updates] == [1, 2, 3, 4, 5]
    assert results(record).keys() == {("nexa", 2), ("nexa", 3), ("single", 1), ("full", 2), ("full", 3)}
    learner = Learner(SMALL.setting(), SMALL.policy, SMALL.learning, 4)
    for _ in range(5):
        learner.update_()
    for a, b in zip(learner.policy.parameters(), learnt(record).parameters(), strict=True):
        assert torch.equal(a, b)
    assert results(record)["nexa", 3] == evaluate(SMALL.setting(), Nexa(learner.policy), 3, 8, step=5)
    again = orchestrate(SMALL, tmp_path)
    assert again.events == record.events


@pytest.mark.parametrize("fails_at", [1, 3, 5, 7])
def test_it_goes_on_where_it_was_cut_off(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit as in one go, and what was whole is not asked again."""
    whole = orchestrate(SMALL, tmp_path / "whole")
    count, real = [0], module.summed

    def failing(*args: Any) -> Orchestrated:
        count[0] += 1
        if count[0] == fails_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "summed", failing)
    with pytest.raises(KeyboardInterrupt):
        orchestrate(SMALL, tmp_path / "cut")
    before = count[0]
    again = orchestrate(SMALL, tmp_path / "cut")
    assert said(again.events) == said(whole.events)
    done_again = count[0] - before
    assert done_again == 10 - (fails_at - 1)


def test_a_frozen_policy_elsewhere(tmp_path: Path) -> None:
    first = orchestrate(SMALL, tmp_path)
    start = str(first.path / POLICY)
    hard = dataclasses.replace(SMALL, start=start, synthetic=Synthetic(seed=5, easy=0.3), test_agents=(6,))
    record = orchestrate(hard, tmp_path)
    assert list(record.cells) == ["nexa with 6", "single with 1", "full with 6"]
    assert record.settings["start_sha256"]
    assert not (record.path / POLICY).exists()
    with pytest.raises(RecipeError, match="is another file than when it began"):
        orchestrate(dataclasses.replace(hard, start_sha256="0" * 64), tmp_path)
    with pytest.raises(RecipeError, match=r"policy .*nowhere: there is no nowhere"):
        orchestrate(dataclasses.replace(hard, start="nowhere"), tmp_path)


def test_a_frozen_policy_by_the_name_of_its_record(tmp_path: Path) -> None:
    """What is done does not hang on where runs lie: the record has the same name anywhere."""
    first = orchestrate(SMALL, tmp_path / "a")
    hard = dataclasses.replace(SMALL, start=first.path.name, synthetic=Synthetic(seed=5, easy=0.3), test_agents=(6,))
    by_file = dataclasses.replace(hard, start=str(first.path / POLICY))
    record = orchestrate(hard, tmp_path / "a", stored=tmp_path / "small")
    assert said(record.events) == said(orchestrate(by_file, tmp_path / "a").events)
    with pytest.raises(RecipeError, match=rf"start = '{first.path.name}': .* has no policy: use the name of a record"):
        orchestrate(hard, tmp_path / "b")
    elsewhere = orchestrate(hard, tmp_path / "b", stored=tmp_path / "small")  # read, so that no policy is needed
    assert elsewhere.events == record.events
    assert elsewhere.path == tmp_path / "b/records" / record.path.name


def test_a_record_in_small_form_is_done_once_more_for_its_policy(tmp_path: Path) -> None:
    first = orchestrate(SMALL, tmp_path / "a", stored=tmp_path / "small")
    hard = dataclasses.replace(SMALL, start=first.path.name, synthetic=Synthetic(seed=5, easy=0.3), test_agents=(6,))
    here = orchestrate(hard, tmp_path / "a")
    there = orchestrate(hard, tmp_path / "b", stored=tmp_path / "small")
    assert said(there.events) == said(here.events)
    assert (tmp_path / "b/records" / first.path.name / POLICY).exists()


def test_a_saturated_policy_is_said_to_be(tmp_path: Path) -> None:
    literal = dataclasses.replace(SMALL, policy=Policy(decoder="literal"), learning=Learning(updates=1, batch_size=4))
    said = [e.message for e in orchestrate(literal, tmp_path).events if isinstance(e, Warned)]
    assert len(said) == 1
    assert "saturated" in said[0]
    assert not [e for e in orchestrate(SMALL, tmp_path).events if isinstance(e, Warned)]


def test_the_command(tmp_path: Path) -> None:
    options = ["learning.updates=2", "learning.batch_size=4", "test_questions=4", "test_agents=[3]", "rivals=[]"]
    arguments = ["agents", "--runs", str(tmp_path), *(f"-o{o}" for o in [*options, "policy.decoder=literal"])]
    out = CliRunner().invoke(main, arguments)
    assert out.exit_code == 0, out.output
    lines = out.output.splitlines()
    assert sum(line.startswith("update ") for line in lines) == 2
    assert sum(line.startswith("held out: nexa, 3 agents: ") for line in lines) == 1
    assert "note: the policy is saturated" in out.output
    assert lines[-1].startswith("policy: ")
    assert CliRunner().invoke(main, arguments).output == out.output


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("world=moon", "world = 'moon' is not allowed"),
        ("world=endpoint", "nobody is asked who was not named"),
        ("learning.update=3", "unknown option 'learning.update'"),
        ('rivals=["alone"]', "rivals.0 = 'alone' is not allowed"),
        ("test_agents=[0]", "test_agents.0 = 0 is not allowed"),
        ("start=none.safetensors", "there is no none.safetensors"),
        ("test_agents=[40]", "at most 32"),
        ('endpoint={"base_url": "x"}', "endpoint"),
    ],
)
def test_mistakes_are_one_line(option: str, says: str, tmp_path: Path) -> None:
    small = ["-olearning.updates=1", "-olearning.batch_size=1", "-otest_questions=1", "-orivals=[]"]
    out = CliRunner().invoke(main, ["agents", "--runs", str(tmp_path), *small, "-o", option])
    assert out.exit_code == 2, out.output
    assert says in out.output.splitlines()[-1]
