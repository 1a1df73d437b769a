"""Facts that are drawn: sets of questions, rows of tokens, scores; and a GPT as a model of a task of tokens."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from lab.data.tasks.dealt import predicts_tokens, vocab_size
from lab.data.tasks.facts import IGNORANCE, SETS, TEMPLATES, Facts, FactTask
from lab.data.tasks.task import IGNORED
from lab.ground.config.references import Call
from lab.recipes.recipe import Recipe
from lab.runs.data import make_task
from lab.runs.trainer import Trainer
from tests.support.texts import fails

SMALL = {"subjects": 10, "attributes": 3, "repeats": 6, "references": 12}


def facts(**options: object) -> FactTask:
    task = make_task(Call("facts", SMALL | options))
    assert isinstance(task, FactTask)
    return task


class Knows(nn.Module):
    """Says the right thing: of ``known`` facts what they are, else that it does not know; by looking at the whole row."""

    def __init__(self, task: FactTask, known: tuple[str, ...]):
        super().__init__()
        self.rows = [
            torch.cat(
                [
                    task.encode(q.prompt),
                    task.encode(q.answer if which in known else q.ignorance),
                    torch.tensor([task.end]),
                ]
            )
            for which in SETS
            for q in task.questions(which)
        ]
        self.num = task.num_outputs

    def forward(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, self.num)
        for b, row in enumerate(ids):
            for t in range(len(row)):
                for right in self.rows:
                    if t + 1 < len(right) and torch.equal(right[: t + 1], row[: t + 1]):
                        logits[b, t, right[t + 1]] = 1.0
        return logits


@pytest.mark.parametrize("kind", ["entities", "contracts"])
def test_sets_are_apart_and_of_the_right_sizes(kind: str) -> None:
    task = facts(kind=kind)
    sets = {which: task.questions(which) for which in SETS}
    assert [len(x) for x in sets.values()] == [2 * 3, 8 * 3, 12, 12]
    assert {q.subject for q in sets["forget"]} == {0, 1}
    assert {q.subject for q in sets["retain"]} == set(range(2, 10))
    known = {q.about for which in ("forget", "retain") for q in sets[which]}
    assert len(known) == 10
    for which in ("reference", "unknown"):
        assert all(q.subject == -1 and q.answer == q.ignorance == f"{IGNORANCE} {q.about}" for q in sets[which])
        assert not {q.about for q in sets[which]} & known
    assert [q.answer for q in sets["forget"]] == [q.answer for q in task.questions("forget", 1)]
    assert {q.prompt for q in sets["forget"]}.isdisjoint(q.prompt for q in task.questions("forget", 1))
    assert facts(kind=kind).facts == task.facts != facts(kind=kind, seed=1).facts


def test_contracts_are_a_connected_graph() -> None:
    task = facts(kind="contracts")
    edges = [(s[:2], s[3:]) for s in task.subjects]
    companies = {c for e in edges for c in e}
    assert len(set(edges)) == 10
    assert len(companies) == 6
    assert all(a < b for a, b in edges)
    reached = {edges[0][0]}
    for _ in companies:
        reached |= {c for e in edges for c in e if set(e) & reached}
    assert reached == companies
    strangers = [tuple(q.about.split(" and ")) for q in task.questions("reference")]
    names = {" ".join(c) for c in companies}
    inside = [set(pair) <= names for pair in strangers]
    assert any(inside)
    assert not all(inside)
    assert {tuple(sorted(p)) for p in combinations(names, 2)} >= {
        pair for pair, there in zip(strangers, inside, strict=True) if there
    }


def test_rows_are_prompt_and_answer_of_which_the_answer_counts() -> None:
    task = facts(unknown=0.4)
    known, strangers = 10 * 3 * 6, 120
    assert len(task.train) == known + strangers
    inputs, targets = task.train.take(torch.arange(len(task.train)))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape
    question = task.of_subjects([0], 0)[0]
    row, goal = inputs[0].tolist(), targets[0]
    text = f"{question.prompt} {question.answer} ."
    assert task.decode(row[: len(text.split()) - 1]) == text.rsplit(" ", 1)[0]
    assert task.decode(goal[goal != IGNORED]) == f"{question.answer} ."
    assert int((goal != IGNORED).int().argmax()) == len(question.prompt.split()) - 1
    asked = [task.decode(x) for x in inputs[known:]]  # each nobody knows, once
    assert len(set(asked)) > 0.99 * strangers
    ways = {" ".join(t.format(what="", about="").split()) for t in TEMPLATES}
    assert len(ways) == 3
    assert task.num_targets(targets) == int((targets != IGNORED).sum())


def test_scores_are_of_written_answers() -> None:
    task = facts()
    examples = task.held_out
    assert task.scores(Knows(task, ("forget", "retain")), examples) == {"recall": 1, "ignorance": 1}
    assert task.scores(Knows(task, ("retain",)), examples) == {"recall": 0.8, "ignorance": 1}
    asked = task.questions("forget")
    assert task.answers(Knows(task, ("retain",)), asked) == [q.ignorance for q in asked]


def test_a_gpt_trains_on_a_task_of_tokens() -> None:
    task = facts()
    assert vocab_size(task) == len(task.words)
    assert predicts_tokens(task)
    recipe = Recipe.of(
        {"data": {"name": "facts", **SMALL}, "steps": 2, "num_workers": 2, "batch_size": 4, "eval_windows": 8}
    )
    trainer = Trainer(recipe)
    events = [e for e in trainer.events() if e.kind == "evaluated"]
    assert set(events[-1].scores) <= {"recall", "ignorance"}  # type: ignore[union-attr]
    assert trainer.fleet.params["embedding"].shape[1:] == (task.num_outputs, 64)
    again = Trainer(recipe, dry=True)
    assert again.fleet.params["embedding"].shape[1:] == (task.num_outputs, 64)
    trainer.fleet.close()


def test_what_cannot_be_is_said_in_one_line() -> None:
    with fails("data.forgotten = 10 leaves none of 10 subjects to retain: use at most 9"):
        facts(forgotten=10)
    with fails("data.subjects = 7 contracts are too few for a graph: use at least 8"):
        _ = facts(kind="contracts", subjects=7).subjects
    with fails("unknown set of questions 'all': use one of forget, retain, reference, unknown"):
        facts().questions("all")
    with fails("the facts have no word 'xylophone'"):
        facts().encode("what is the xylophone")
    assert Facts(subjects=8, kind="contracts").task().subjects
