"""Authors that nobody is: the same from the same seed, told apart by how they write and not by what they write about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.data.tasks.authors import (
    CONCENTRATION,
    NUM_SUBJECTS,
    WORDS,
    Authors,
    Habits,
    Messages,
    messages,
    rows,
    subject,
    written,
)
from lab.data.tasks.task import IGNORED
from lab.events import Evaluated
from lab.ground.seeds import numpy_generator
from lab.models.gpt import GPT
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from lab.runs.trainer import Trainer
from tests.support.texts import fails, run

ALL = messages(20, 60, 0)
CHANCE = 1 / 20


def test_the_same_from_the_same_seed_in_any_process() -> None:
    code = "from lab.data.tasks.authors import messages; m = messages(3, 8, 5); print(repr(m[2][7]))"
    assert run(code, PYTHONHASHSEED="7") == repr(messages(3, 8, 5)[2][7])
    assert messages(3, 8, 6)[2] != messages(3, 8, 5)[2]
    assert messages(4, 8, 5)[:3] == messages(3, 8, 5)  # who else there is changes nobody


def test_parts_and_subjects() -> None:
    for author, mine in enumerate(ALL):
        assert [m.part for m in mine] == ["train"] * 40 + ["calibration"] * 10 + ["test"] * 10
        assert {m.author for m in mine} == {author}
        assert len({m.asked for m in mine}) == 60  # nobody writes twice on one subject
    assert len({subject(i) for i in range(NUM_SUBJECTS)}) == NUM_SUBJECTS


def accuracy(what: str) -> float:
    """Of a linear model of words that says who has written it, on the last third of messages."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline

    texts, who = [[getattr(m, what) for m in mine] for mine in ALL], range(20)
    made = make_pipeline(TfidfVectorizer(token_pattern=r"[^ ]+", lowercase=False), RidgeClassifier())
    made.fit([t for of in texts for t in of[:40]], [w for w in who for _ in range(40)])
    return float(made.score([t for of in texts for t in of[40:]], [w for w in who for _ in range(20)]))


def test_subjects_tell_nothing_of_who_writes() -> None:
    """400 guesses at one in twenty: five standard deviations above chance is 0.104. By their texts authors are told apart."""
    assert accuracy("asked") < CHANCE + 5 * (CHANCE * (1 - CHANCE) / 400) ** 0.5
    assert accuracy("text") > 0.6


def test_habits_are_what_one_reads() -> None:
    """An author of whom every rate is 0 or 1 and every word is certain writes this."""
    first = {name: tuple(float(i == 0) for i in range(len(of))) for name, of in WORDS.items()}
    about, rng = ("send", "report", "monday", "budget", "call"), numpy_generator(0, "test")
    plain = Habits(first, contractions=0, hedges=0, exclamations=0, commas=0, typos=0, joined=0)
    assert (
        written(about, plain, rng)
        == "Hi,\nI will send the report on monday. The budget is not ready. Please call me.\nThanks"
    )
    rich = Habits(first, contractions=1, hedges=1, exclamations=1, commas=1, typos=0, joined=1)
    assert written(about, rich, rng) == (
        "Hi,\nI think, I'll send the report on monday, because the budget isn't ready, and please call me!\nThanks"
    )
    odd = written(about, Habits(first, 0, 0, 0, 0, typos=1, joined=0), rng).split("\n")[1].split(" ")
    straight = written(about, plain, rng).split("\n")[1].split(" ")
    assert all(sorted(a) == sorted(b) for a, b in zip(odd, straight, strict=True))
    assert sum(a != b for a, b in zip(odd, straight, strict=True)) > 5


def test_habits_are_drawn_as_it_says() -> None:
    """Rates are beta(½, ½), words Dirichlet: means of 1/2 and 1/n over many authors, within five standard errors."""
    drawn = [Habits.drawn(0, a) for a in range(400)]
    for rate in ("contractions", "hedges", "exclamations", "commas", "joined"):
        assert abs(np.mean([getattr(h, rate) for h in drawn]) - 0.5) < 5 * (1 / 8) ** 0.5 / 20
    n = len(WORDS["greeting"])
    spread = ((1 / n) * (1 - 1 / n) / (n * CONCENTRATION + 1)) ** 0.5
    assert abs(np.mean([h.words["greeting"][0] for h in drawn]) - 1 / n) < 5 * spread / 20


def test_rows_have_the_message_and_its_end_as_targets() -> None:
    options = Authors(authors=2, messages=6)
    (message,) = options.of(1, "test")
    inputs, targets = rows([message], options.encoder)
    counts = targets[0] != IGNORED
    assert bytes(targets[0][counts].tolist()).decode() == message.text + "\0"
    start = int(counts.nonzero()[0])
    assert bytes(inputs[0, : start + 1].tolist()).decode() == message.asked + "\x1f"
    assert torch.equal(inputs[0, 1:][counts[:-1]], targets[0, :-1][counts[:-1]])


def test_options_choose_authors_and_messages() -> None:
    task = Authors(authors=4, messages=12, only=(1, 3), first=2).task()
    assert task.train.columns["author"].tolist() == [1, 1, 3, 3]
    assert task.held_out.columns["author"].tolist() == [1, 1, 3, 3]
    assert Authors(authors=4, without=(0, 2)).chosen == (1, 3)
    with fails(r"data.only = \[4\]: there are authors 0 to 3"):
        Authors(authors=4, only=(4,))
    with fails("leave no author"):
        Authors(authors=2, without=(0, 1))
    with fails("leaves no room for a message"):
        Authors(context=60).task()


SMALL = {"name": "authors", "authors": 3, "messages": 12, "context": 96}
RECIPE = {
    "data": SMALL,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 1},
    "split": "by:author",
    "num_workers": 3,
    "steps": 2,
}


def test_loss_is_that_of_a_gpt_on_its_own() -> None:
    task = Authors(**{k: v for k, v in SMALL.items() if k != "name"}).task()  # type: ignore[arg-type]
    module = GPT(dim=16, num_layers=1, num_heads=1).module(Shape(256, 96), 0)
    inputs, targets = task.train.take(torch.arange(4))
    torch.testing.assert_close(task.loss(module, inputs, targets), module.loss(inputs, targets))  # type: ignore[operator]
    nats = task.by_example(module, *task.held_out.take(torch.arange(len(task.held_out))))["loss"]
    counts = (task.held_out.targets != IGNORED).sum(1)
    wanted = float(torch.exp((nats * counts).sum() / counts.sum()))
    assert task.scores(module, task.held_out)["perplexity"] == pytest.approx(wanted)
    with fails("use one that predicts tokens"):
        task.loss(torch.nn.Flatten(), inputs.float(), targets)


def test_a_gpt_learns_from_it_as_from_text() -> None:
    """Clients are authors; a plan knows the model's size before anything is read."""
    recipe = Recipe.of({"method": "fedit", "lora": {"ranks": [2]}, **RECIPE})
    trainer = Trainer(recipe)
    events = list(trainer.events())
    assert trainer.setup.data is not None
    assert trainer.setup.data.column_of is not None
    assert sorted(trainer.setup.data.column_of("author")) == [0, 1, 2]
    assert trainer.setup.data.vocab_size == 256
    assert [e for e in events if isinstance(e, Evaluated)][-1].scores.keys() == {"perplexity"}
    assert plan(recipe).num_params == trainer.started().num_params
    with fails("model MLP does not go with its data"):
        Trainer(Recipe.of({"method": "local_sgd", **RECIPE, "model": "mlp"}))


def test_it_is_made_once_per_options() -> None:
    assert isinstance(Authors(authors=2, messages=6).task(), Messages)
    assert messages(2, 6, 0) is messages(2, 6, 0)
