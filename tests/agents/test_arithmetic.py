"""Copies of a small model that add: their task, their draws and tokens; questions and encoders of other kinds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.data.tasks import arithmetic
from lab.data.tasks.data import load_task
from lab.ground.errors import LabError, RecipeError
from lab.runs import trainer
from lab.systems.agents.agent import Call, Setting
from lab.systems.agents.arithmetic import LONGEST, Adders, Arithmetic, trained
from lab.systems.agents.encoders import Sentences, encoder
from lab.systems.agents.plans import play
from lab.systems.agents.questions import Listed, of_file, of_task
from lab.systems.agents.rivals import Rival


def test_every_sum_is_right_and_no_sum_is_in_both_parts() -> None:
    parts: dict[bool, set[str]] = {False: set(), True: set()}
    heard_right, heard = 0, 0
    for prompt, answer, domain, held_out in arithmetic.rows():
        told, _, sum_ = prompt.rpartition(";")
        assert eval(sum_) == int(answer)
        assert (domain == "heard") == bool(told)
        parts[held_out].add(sum_)
        answers = told.split(",") if told else []
        assert len(answers) <= arithmetic.HEARD
        heard += len(answers)
        heard_right += answers.count(answer)
    assert not parts[False] & parts[True]
    assert len(parts[False] | parts[True]) == arithmetic.BELOW**2
    assert 0.05 < len(parts[True]) / arithmetic.BELOW**2 < 0.15
    assert 0.4 < heard_right / heard < 0.6
    assert list(arithmetic.rows()) == list(arithmetic.rows())
    assert arithmetic.prompt("1+2", [str(k) for k in range(20)]) == "0,1,2,3,4,5;1+2"


@pytest.fixture(scope="module")
def adders(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Hardly trained: what they say is anything."""
    return Arithmetic(steps=12, size="nano").setting(tmp_path_factory.mktemp("cache"))


def test_a_call_depends_on_itself_alone(adders: Setting) -> None:
    """Other calls beside it change nothing, another agent or having heard somebody does; tokens are counted with their ends."""
    queries = adders.questions.queries(0, 6, held_out=False)
    calls = [Call(q, n, heard) for q in queries for n in range(4) for heard in ((), ("12", "3"))]
    together = adders.agents.answer(calls)
    assert together == [adders.agents.answer([call])[0] for call in calls]
    assert together == adders.agents.answer(calls)
    alone = [a.text for a, c in zip(together, calls, strict=True) if not c.heard]
    assert len({*alone}) > 6
    for call, a in zip(calls, together, strict=True):
        assert a.tokens_in == len(arithmetic.prompt(call.query.text, call.heard)) + 1
        assert 1 <= a.tokens_out <= LONGEST


def test_copies_draw_as_often_as_the_model_says(adders: Setting) -> None:
    """The first tokens of 600 copies against the softmax; next to no temperature is the likeliest."""
    (query,) = adders.questions.queries(3, 1, held_out=False)
    model = adders.agents.model
    task = load_task("task:arithmetic", context=28, num_workers=1)
    ids = torch.tensor([[*query.text.encode(), *task.encoder.separator]])
    with torch.no_grad():
        p = model(ids)[0, -1].softmax(0)
    hot = Adders(model, 1.0).answer([Call(query, n) for n in range(600)])
    first = np.array([a.text[:1] for a in hot])
    digit = int(p[48:58].argmax())
    assert np.mean(first == str(digit)) == pytest.approx(float(p[48 + digit]), abs=0.06)
    cold = Adders(model, 1e-4).answer([Call(query, n) for n in range(5)])
    assert len({a.text for a in cold}) == 1


def test_the_model_is_trained_once(adders: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Arithmetic(steps=2).recipe()
    first = trained(recipe, tmp_path)
    monkeypatch.setattr(trainer.Trainer, "events", lambda self: pytest.fail("trained again"))
    again = trained(recipe, tmp_path)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    monkeypatch.undo()
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])  # damaged: made anew
    assert torch.equal(next(trained(recipe, tmp_path).parameters()), next(first.parameters()))


def test_adders_answer_together(adders: Setting) -> None:
    """All the way through a full graph, with more agents than a prompt tells answers."""
    came = play(adders, Rival("full"), adders.questions.queries(0, 3, held_out=True), 9)
    assert came.calls == 3 * 17
    assert came.edges.sum() == 3 * 36


def test_questions_come_round_in_another_order() -> None:
    listed = Listed([(f"q{k}", f" {k} ") for k in range(7)], [("h", "1")])
    first, then = listed.queries(0, 7, held_out=False), listed.queries(7, 7, held_out=False)
    assert {q.text for q in first} == {q.text for q in then} == {f"q{k}" for k in range(7)}
    assert [q.text for q in first] != [q.text for q in then]
    assert len({q.number for q in (*first, *then, *listed.queries(0, 5, held_out=True))}) == 19
    assert {q.target for q in first} == set("0123456")
    assert listed.queries(3, 2, held_out=False) == first[3:5]
    with pytest.raises(RecipeError, match="no examples of the domain 'x'"):
        of_task("arithmetic", "x")


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 1 + 1 = 2", "2"), ("$1,234.50.", "1234.5"), ("-3", "-3"), ("none", ""), ("7.0", "7"), ("a2b\n\n12 ", "12")],
)
def test_the_last_number_is_the_answer(text: str, number: str) -> None:
    assert Listed([], [], "number").result(text) == number


def test_files_of_questions_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    with pytest.raises(RecipeError, match=r"there is no q.jsonl"):
        of_file(file)
    file.write_text('{"question": "a", "answer": 1}\n{"question": "a"}\n')
    with pytest.raises(RecipeError, match=r"line 2 is no \{"):
        of_file(file)
    file.write_text('{"question": "a", "answer": 1}\n')
    with pytest.raises(RecipeError, match="1 are too few"):
        of_file(file)


def test_ngrams_see_letters() -> None:
    """Equal texts are equal vectors of norm 1, texts with common n-grams are nearer than others, and nothing depends on neighbours."""
    texts = ["the answer is 42", "the answer is 43", "no", "the answer is 42", ""]
    z = encoder("ngrams").encode(texts)
    assert z.dtype == torch.float32
    assert torch.equal(z[0], z[3])
    assert z.norm(dim=1).tolist() == pytest.approx([1, 1, 1, 1, 0])
    assert z[0] @ z[1] > 0.5 > z[0] @ z[2]
    assert torch.equal(encoder("ngrams").encode(texts[1:2])[0], z[1])


def test_other_encoders_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=re.escape("use ngrams, or sentences:NAME")):
        encoder("words")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    assert encoder("sentences:all-MiniLM-L6-v2") == Sentences("all-MiniLM-L6-v2")
    with pytest.raises(LabError, match="pip install sentence-transformers, or use encoder=ngrams"):
        encoder("sentences:all-MiniLM-L6-v2").encode(["x"])
