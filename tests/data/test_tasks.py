"""Laws of the tasks: where examples come from, which tokens are targets, who gets what, and what the scores mean."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data.corpora import CorpusSource, Document
from lab.data.splits import partition
from lab.data.tasks import TASKS, Example, generate, load_task, stdlib, task_name
from lab.data.tasks.data import Encoder, TaskData
from lab.data.tasks.examples import Examples, Task, load_examples
from lab.data.tasks.scores import likeliest, nats, nats_of_rows, rouge_l
from lab.data.tasks.stdlib import PACKAGES, _described, snippets
from lab.data.tokenizer import load_tokenizer
from lab.ground.errors import LabError, RecipeError
from lab.ground.seeds import generator
from lab.models.gpt import GPT
from lab.models.lora import cut_to
from lab.runs.start import load_values, start_values_
from lab.runs.trainer import pretrained
from tests.support import ROOT


@contextlib.contextmanager
def fails(pattern: str, kind: type[Exception] = RecipeError) -> Iterator[None]:
    """Expects an error of one line."""
    with pytest.raises(kind, match=pattern) as info:
        yield
    assert "\n" not in str(info.value)


@pytest.fixture(scope="module")
def packages() -> Examples:
    return load_examples("packages")


@pytest.fixture(scope="module")
def docstrings() -> Examples:
    return load_examples("docstrings")


def toy(labels: bool, count: int = 40, held: int = 12) -> Task:
    """Small examples of four domains: the label is the letter of the domain, or the completion counts."""

    def rows() -> Iterator[tuple[str, str, str, bool]]:
        for i in range(count + held):
            domain = "abcd"[i % 4]
            yield f"{domain} {i}", domain.upper() if labels else f"number {i}", domain, i >= count

    return Task("a toy", labels, lambda: [labels, count, held], rows)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "toy-labels", toy(True))
    monkeypatch.setitem(TASKS, "toy-text", toy(False))


def load(name: str, tmp_path: Path, context: int = 24, num_workers: int = 2, **options: object) -> TaskData:
    return load_task(name, context=context, num_workers=num_workers, cache=tmp_path, **options)


# --- where examples come from -----------------------------------------------------------------------------------------


def test_packages_are_balanced_and_give_nothing_away(packages: Examples) -> None:
    names = re.compile("|".join(PACKAGES), re.IGNORECASE)
    statement = re.compile(r"^\s*(>>> )?(import|from)\s", re.MULTILINE)
    for part, least in ((packages.train, 1000), (packages.held_out, 100)):
        count = {name: sum(e.domain == name for e in part) for name in PACKAGES}
        assert len(set(count.values())) == 1
        assert count["asyncio"] >= least
        for example in part:
            assert not names.search(example.prompt)
            assert not statement.search(example.prompt)
            assert example.prompt.isascii()
            assert 20 < len(example.prompt) <= 160
            assert example.completion == "ABCD"[PACKAGES.index(example.domain)]
    assert not {e.prompt for e in packages.train} & {e.prompt for e in packages.held_out}
    assert len({e.prompt for e in packages.train}) == len(packages.train)


@pytest.mark.processes
def test_examples_are_the_same_in_another_process(packages: Examples, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from lab.data.tasks.examples import load_examples;"
        f"print(load_examples('packages', Path({str(tmp_path)!r})).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == packages.fingerprint, done.stderr


def test_snippets_leave_out_imports_and_names() -> None:
    """Also the later lines of an import, and a name inside a word; the rest keeps its order and its shape."""
    text = "import os, \\\n    sys\nfrom x import (\n    secret,\n)\n\nclass UnitTestThing:\n" + "".join(
        f"    value_{i} = {i}  # a line of code\n" if i % 5 else f"    call_{i}(asyncio_{i})\n" for i in range(30)
    )
    found = "\n".join(snippets(text))
    assert "secret" not in found
    assert "sys" not in found
    assert "UnitTestThing" not in found
    assert "call" not in found
    assert re.findall(r"^value_(\d+) = \1  # a line of code$", found, re.MULTILINE)[:4] == ["1", "2", "3", "4"]
    assert list(snippets("def broken(:\n")) == []


def test_docstrings_are_first_lines_of_functions(docstrings: Examples) -> None:
    assert len(docstrings.train) > 1000
    assert len(docstrings.held_out) > 50
    for example in docstrings.train[::50] + docstrings.held_out:
        assert re.match(r"(async )?def \w+", example.prompt)
        assert 10 <= len(example.completion) <= 64
        assert '"""' + example.completion not in example.prompt
        assert example.prompt.isascii()
        assert example.completion.isascii()
    assert not {e.prompt for e in docstrings.train} & {e.prompt for e in docstrings.held_out}


def test_a_docstring_is_cut_out_of_its_function() -> None:
    import ast

    text = '''
class A:
    @property
    def size(self, unit="bytes"):
        # why
        """How large it is, in a unit.

        More.
        """
        if unit:
            return 1
        return 2

    def alone(self):
        """Nothing but a docstring stands here."""

    def short(self): """On one line."""; return 1
'''
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    got = [_described(f, text.split("\n")) for f in functions]
    wanted = 'def size(self, unit="bytes"):\n    # why\n    if unit:\n        return 1\n    return 2'
    assert got == [(wanted, "How large it is, in a unit."), None, None]


def test_docstrings_hold_out_what_the_corpus_holds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a base model reads are to train on; the others are for validation, alone."""
    function = 'def name(argument):\n    """Says what it does."""\n    return argument + {}\n'
    docs = [Document(f"f{i}.py", "modules", function.format(i), held_out=i > 1) for i in range(3)]
    docs.append(Document("bad.py", "modules", "def broken(:\n"))
    monkeypatch.setattr(stdlib, "open_source", lambda spec: CorpusSource([spec], lambda: iter(docs)))
    prompt = "def name(argument):\n    return argument + {}"
    assert list(stdlib.docstrings()) == [(prompt.format(i), "Says what it does.", "modules", i > 1) for i in range(3)]


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_damaged_entry_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_examples("toy-text", tmp_path)
    (file,) = tmp_path.glob("toy-text-*.examples")
    monkeypatch.setitem(TASKS, "toy-text", Task("read", False, TASKS["toy-text"].identity, lambda: iter(())))
    assert load_examples("toy-text", tmp_path) == first  # nothing is read again
    monkeypatch.undo()
    monkeypatch.setitem(TASKS, "toy-text", toy(False))
    whole = file.read_bytes()
    for damaged in (whole[:-3], whole.replace(b"number 7", b"number 8")):
        file.write_bytes(damaged)
        assert load_examples("toy-text", tmp_path) == first
        assert file.read_bytes() == whole
    file.with_suffix(".json").unlink()
    assert load_examples("toy-text", tmp_path) == first
    monkeypatch.setitem(TASKS, "toy-text", toy(False, count=20))  # another source: another entry
    assert load_examples("toy-text", tmp_path).fingerprint != first.fingerprint
    assert len(list(tmp_path.glob("*.examples"))) == 2


def test_cache_and_name_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "here"))
    assert load_task("task:toy-text", context=24, num_workers=2).name == "toy-text"
    assert list((tmp_path / "here" / "tasks").glob("toy-text-*.examples"))
    (tmp_path / "file").touch()
    with fails("ISTHMUS_CACHE names another folder"):
        load_examples("toy-text", tmp_path / "file" / "below")
    assert task_name("task:packages") == "packages"
    assert task_name("stdlib") is None
    for wrong in ("task:package", "task:"):
        with fails("unknown task .*use one of packages, docstrings, arithmetic, pointers, dolly, alpaca, 20newsgroups"):
            task_name(wrong)
    with fails("did you mean 'docstrings'"):
        load("docstring", tmp_path)
    monkeypatch.setitem(TASKS, "empty", Task("none", False, list, lambda: iter([("a", "b", "c", False)])))
    with fails("task 'empty' has no examples for validation"):
        load("empty", tmp_path)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    """Bytes, context 8: a completion with its end takes 3, so a prompt has 8 + 1 - 1 - 3 = 5 bytes; \x1f separates."""
    rows = Encoder(load_tokenizer("bytes"), context=8, longest=3).rows(
        [Example("abcdefg", "XY", ""), Example("pq", "Z", ""), Example("pq", "TOO LONG", "")]
    )
    ids, targets = rows.tensors(np.array([0, 1, 2]))
    none = -100
    assert bytes(ids[0].tolist()) == b"cdefg\x1fXY"
    assert targets[0].tolist() == [none] * 5 + [ord("X"), ord("Y"), 0]
    assert bytes(ids[1].tolist()) == b"pq\x1fZ\0\0\0\0"
    assert targets[1].tolist() == [none, none, ord("Z"), 0, none, none, none, none]
    assert bytes(ids[2].tolist()) == b"pq\x1fTOO\0\0"  # cut: no end
    assert targets[2].tolist() == [none, none, *b"TOO", none, none, none]
    assert ids.dtype == targets.dtype == torch.int64
    assert [bytes(p.tolist()) for p in rows.prompts(np.array([0, 1]))] == [b"cdefg\x1f", b"pq\x1f"]


def test_loss_is_the_mean_over_completion_tokens(tmp_path: Path) -> None:
    task = load("toy-text", tmp_path)
    model = GPT(dim=16, num_layers=1, num_heads=1).build(task.vocab_size, task.context, 3).double()
    ids, targets = task.batches(5, 0).get(1, 1)
    log_p = F.log_softmax(model(ids), -1)
    wanted = []
    for b in range(5):
        text = bytes(ids[b].tolist())
        start = text.index(b"\x1f")  # predicts the first byte of the completion
        stop = text.index(b"\0") if b"\0" in text else len(text)
        completion = [*text[start + 1 : stop], 0]
        assert completion == [t for t in targets[b].tolist() if t >= 0]
        wanted += [-log_p[b, start + i, token] for i, token in enumerate(completion)]
    assert torch.allclose(model.loss(ids, targets), torch.stack(wanted).mean(), rtol=1e-12)
    assert nats(model, [(ids, targets)])[1] == len(wanted)
    assert nats_of_rows(model, ids, targets).sum().item() == pytest.approx(torch.stack(wanted).sum().item(), rel=1e-12)


def make_tokenizer(path: Path, end: str | None) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[end] if end else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["number 1 number 22"] * 9, trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize("end", ["<|endoftext|>", None])
def test_other_tokenizers(tmp_path: Path, end: str | None) -> None:
    task = load("toy-text", tmp_path, tokenizer=make_tokenizer(tmp_path / "t.json", end))
    tokenizer = load_tokenizer(str(tmp_path / "t.json"))
    assert task.vocab_size == tokenizer.vocab_size
    ids, targets = task.validation(4, 12)[0]
    for row, target, example in zip(ids, targets, task.held_out, strict=False):
        completion = [t for t in target.tolist() if t >= 0]
        assert tokenizer.decode(completion) == example.completion + (end or "")
        assert len(completion) < 8  # "number" is one token
        assert tokenizer.decode(row.tolist()).startswith(f"{example.prompt}\x1f{example.completion}")


def test_context_must_have_room(tmp_path: Path) -> None:
    with fails("no room for a prompt: set context higher"):
        load("toy-labels", tmp_path, context=2)
    task = load("toy-text", tmp_path, context=8)  # completions get half: 4 bytes
    assert task.encoder.longest == 4
    assert bytes(t for t in task.validation(1, 1)[0][1][0].tolist() if t >= 0) == b"numb"


# --- dealing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["iid", "domain", "dirichlet:0.5", "size:1"])
def test_splits_deal_all_examples(tmp_path: Path, split: str) -> None:
    task = load("toy-labels", tmp_path, split=split)
    assert sum(task.samples_W) == len(task.train) == 40
    assert sorted(i for shard in task.shards for i in shard) == list(range(40))
    of = [{task.train[i].domain for i in shard} for shard in task.shards]
    if split == "domain":
        assert not of[0] & of[1]
    if split == "size:1":
        assert task.samples_W == [27, 13]
    again = load("toy-labels", tmp_path, split=split)
    assert all(np.array_equal(a, b) for a, b in zip(task.shards, again.shards, strict=True))


def test_split_errors(tmp_path: Path) -> None:
    with fails("unknown split 'idd'.*did you mean 'iid'"):
        load("toy-labels", tmp_path, split="idd")
    with fails("worker 40 would get no data: there are 40 examples for 41 workers: use fewer workers"):
        load("toy-labels", tmp_path, num_workers=41)
    with fails("worker 4 would get no data.*another split"):
        load("toy-labels", tmp_path, num_workers=5, split="domain")
    assert [x.tolist() for x in partition(np.array([1, 0, 1, 1]), 2, "domain")] == [[0, 2, 3], [1]]


def test_batches_have_no_cursor(tmp_path: Path) -> None:
    task = load("toy-text", tmp_path)
    one, other = task.batches(8, 5), load("toy-text", tmp_path).batches(8, 5)
    there = {(w, t): one.get(w, t) for w in (0, 1) for t in range(1, 12)}
    for w, t in [(1, 9), (0, 3), (1, 1), (0, 11)]:
        assert all(torch.equal(a, b) for a, b in zip(other.get(w, t), there[w, t], strict=True))
    assert not torch.equal(task.batches(8, 6).get(0, 1)[0], there[0, 1][0])
    for w, shard in enumerate(task.shards):  # 20 examples each: five batches of 8 are two epochs
        ids = torch.cat([there[w, t][0] for t in range(1, 6)])
        mine = sorted(task.train[i].prompt for i in shard)
        seen = [bytes(row.tolist()).split(b"\x1f")[0].decode() for row in ids]
        assert sorted(seen[:20]) == sorted(seen[20:]) == mine
        assert seen[:20] != seen[20:]
    assert there[0, 1][0].shape == there[0, 1][1].shape == (8, 24)


def test_validation_is_fixed_and_has_every_domain(tmp_path: Path) -> None:
    task = load("toy-labels", tmp_path)
    pairs = task.validation(3, 8)
    assert [len(ids) for ids, _ in pairs] == [3, 3, 2]
    letters = [bytes(t for t in row.tolist() if t >= 0).strip(b"\0").decode() for _, y in pairs for row in y]
    assert letters == list("AABBCCDD")
    assert sum(len(ids) for ids, _ in task.validation(5, 1000)) == 12
    with fails("at least 1 example"):
        task.validation(3, 0)
    with fails("batch size must be at least 1"):
        task.validation(0, 3)


# --- scores -----------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Says after every token that the upper-case form of the row's first byte is likely; ``wrong`` of the domains lie."""

    def __init__(self, wrong: str = "", vocab_size: int = 256):
        super().__init__()
        self.wrong, self.vocab_size = wrong, vocab_size

    def forward(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, self.vocab_size)
        for b, first in enumerate(ids[:, 0].tolist()):
            letter = first - 32 if chr(first) not in self.wrong else ord("A") + (first - 96) % 4
            logits[b, :, letter] = 2.0
            logits[b, :, ord("z")] = 9.0  # not a label: does not count
        return logits


def test_accuracy_is_the_share_of_right_labels(tmp_path: Path) -> None:
    task = load("toy-labels", tmp_path)
    assert task.num_labels == 4
    assert task.labels == ("A", "B", "C", "D")
    assert task.domains == ("a", "b", "c", "d")
    assert task.scores(Reader(), batch_size=5) == {"accuracy": 1.0}
    assert task.scores(Reader(wrong="bcd")) == {"accuracy": 0.25}
    assert task.scores(Reader(wrong="b"), num_examples=8) == {"accuracy": 0.75}


def test_labels_of_one_token_and_of_several_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood of the whole completion picks what one argmax picks; and longer labels work."""
    task = load("toy-labels", tmp_path)
    table = torch.randn(256, 256, generator=generator(0, "table"))

    class Sums(nn.Module):
        """A causal model whose guesses differ from prompt to prompt."""

        def forward(self, ids: Tensor) -> Tensor:
            return table[ids.cumsum(1) % 256]

    model = Sums()
    index = np.arange(12)
    ids, _ = task.held_out_rows.tensors(index)
    at = torch.from_numpy(task.held_out_rows.first - 1)
    fast = likeliest(model, ids, at, torch.tensor([65, 66, 67, 68]))
    assert task._likeliest(model, index) == fast
    assert len(set(fast)) > 1

    words = {"a": "cat", "b": "dog", "c": "cow", "d": "owl"}

    def rows() -> Iterator[tuple[str, str, str, bool]]:
        yield from ((p, words[d], d, held) for p, _, d, held in toy(True).rows())

    monkeypatch.setitem(TASKS, "words", Task("words", True, lambda: ["words"], rows))
    task = load("words", tmp_path)

    class Speller(nn.Module):
        """Likes o after the separator and g after that: of the four words, dog has both o and g, in other places."""

        def forward(self, ids: Tensor) -> Tensor:
            logits = torch.zeros(*ids.shape, 256)
            logits[ids == 0x1F] = (
                F.one_hot(torch.tensor(ord("d")), 256) * 1.0 + F.one_hot(torch.tensor(ord("o")), 256) * 1.2
            )
            logits[ids == ord("o")] = F.one_hot(torch.tensor(ord("g")), 256) * 2.0
            return logits

    # owl: 1.2 for its o, nothing after; dog: 1.0 for its d and 2.0 for the g after its o
    assert task._likeliest(Speller(), index) == [task.labels.index("dog")] * 12
    assert task.scores(Speller()) == {"accuracy": 0.25}


def test_perplexity_of_a_uniform_model_is_the_vocabulary(tmp_path: Path) -> None:
    class Uniform(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return torch.zeros(*ids.shape, 256)

    task = load("toy-text", tmp_path)
    assert task.scores(Uniform()) == {"perplexity": pytest.approx(256)}
    model = GPT(dim=16, num_layers=1, num_heads=1).build(256, 24, 1)
    with torch.no_grad():
        (ids, targets), (more, last) = task.validation(7, 12)
        counts = [int((y >= 0).sum()) for y in (targets, last)]
        mean = (float(model.loss(ids, targets)) * counts[0] + float(model.loss(more, last)) * counts[1]) / sum(counts)
    assert task.scores(model)["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_losses_weigh_every_target_alike(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have different numbers of targets: the loss of a run, at every rank too, is the mean over all of them."""
    from lab.events import Evaluated, Truncated
    from lab.recipes.recipe import Recipe
    from lab.runs.trainer import Trainer

    def rows() -> Iterator[tuple[str, str, str, bool]]:
        for i in range(40):
            yield f"{'ab'[i % 2]} {i}", "mnopqrstu"[: i % 9 + 1], "ab"[i % 2], i >= 28

    monkeypatch.setitem(TASKS, "uneven", Task("a toy", False, lambda: ["uneven"], rows))
    changes = {"model": "nano", "start": "", "corpus": "task:uneven", "context": 24, "steps": 1, "eval_windows": 12}
    changes |= {"num_workers": 2, "lora": {"ranks": [4, 2]}, "batch_size": batch_size, "seed": 3, "schedule": {}}
    trainer = Trainer(Recipe.of("prelort").but(**changes))
    trainer.fleet.constants["embedding"].mul_(30)  # one row's loss is far from another's
    events = list(trainer.events())
    (evaluated,) = (e for e in events if isinstance(e, Evaluated))
    (truncated,) = (e for e in events if isinstance(e, Truncated))
    pairs = load_task("uneven", context=24, num_workers=2).validation(1, 12)
    assert len({int((targets >= 0).sum()) for _, targets in pairs}) > 1
    model = trainer.fleet.whole_model(trainer.world.sync_server_state(trainer.state.shared["params"]))

    def mean() -> float:
        total, count = nats(model, pairs)
        return total / count

    by_rank = []
    for rank in truncated.bounds_M:
        with cut_to(model, rank):
            by_rank.append(mean())
    assert evaluated.loss == pytest.approx(mean(), rel=1e-6)
    assert truncated.loss_M == pytest.approx(by_rank, rel=1e-6)
    assert truncated.aurac["loss"] == pytest.approx(sum(by_rank) / 2, rel=1e-6)  # the trapezoid of two
    assert math.log(evaluated.scores["perplexity"]) == pytest.approx(evaluated.loss, rel=1e-6)


def test_generate_equals_the_naive_loop() -> None:
    """One prompt at a time, one token at a time, without any filling."""
    model = GPT(dim=16, num_layers=2, num_heads=2).build(12, 24, 4).eval()
    with torch.no_grad():
        model.embedding.mul_(40)
    prompts = [torch.arange(n) % 12 for n in (3, 9, 1, 6)]

    def naive(prompt: Tensor, end: int | None) -> list[int]:
        ids = prompt.tolist()
        with torch.no_grad():
            for _ in range(10):
                token = int(model(torch.tensor([ids]))[0, -1].argmax())
                if token == end:
                    break
                ids.append(token)
        return ids[len(prompt) :]

    free = [naive(p, None) for p in prompts]
    assert [x.tolist() for x in generate(model, prompts, 10)] == free
    assert len({tuple(f) for f in free}) > 1
    end = free[1][4]
    stopped = [naive(p, end) for p in prompts]
    assert [x.tolist() for x in generate(model, prompts, 10, end)] == stopped
    assert len(stopped[1]) <= 4
    assert len({len(s) for s in stopped}) > 1


def test_rouge_l_by_hand(tmp_path: Path) -> None:
    """Longest common subsequence of words over lengths: 'the cat sat' / 'the big cat sat down': 3, P = 1, R = 3/5."""
    assert rouge_l(["the cat sat"], ["The big cat sat down."]) == pytest.approx(2 * 1 * 0.6 / 1.6)
    assert rouge_l(["sat cat the"], ["the cat sat"]) == pytest.approx(1 / 3)
    assert rouge_l(["", "same words"], ["something", "same words"]) == pytest.approx(0.5)

    class Parrot(nn.Module):
        """Writes 'number' and the end, whatever it reads."""

        def forward(self, ids: Tensor) -> Tensor:
            after = dict(zip(b"\x1fnumber", b"number\0", strict=True))
            return F.one_hot(ids.apply_(lambda i: after.get(i, 0)), 256).float()

    task = load("toy-text", tmp_path)
    assert task.complete(Parrot(), [0, 5]) == ["number", "number"]
    assert task.rouge_l(Parrot(), num_examples=6, batch_size=4) == pytest.approx(2 / 3)  # one word of two: P 1, R 1/2


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The true names and columns, on small data sets in memory."""
    import datasets

    calls = []
    tables = {
        "databricks/databricks-dolly-15k": {
            "instruction": [f"Do {i}" for i in range(60)],
            "context": ["", "Given this."] * 30,
            "response": [f"Done {i}" for i in range(60)],
            "category": ["open_qa", "brainstorming", "closed_qa"] * 20,
        },
        "tatsu-lab/alpaca": {
            "instruction": [f"Do {i}" for i in range(60)],
            "input": ["", "Given this."] * 30,
            "output": [f"Done {i}" for i in range(59)] + [""],
            "text": ["Below is an instruction."] * 60,
        },
        "SetFit/20_newsgroups": {
            "text": [f"Post {i} about a thing" for i in range(60)],
            "label": [i % 3 for i in range(60)],
            "label_text": ["sci.space", "alt.atheism", "rec.autos"] * 20,
        },
    }

    def load_dataset(path, name, *, split, **options):
        calls.append((path, split))
        rows = datasets.Dataset.from_dict(tables[path])
        return rows if split == "train" else rows.select(range(6)).map(lambda r: {"text": "Unlike " + r["text"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dolly = load("dolly", tmp_path, split="domain", num_workers=3)
    assert dolly.domains == ("brainstorming", "closed_qa", "open_qa")
    assert dolly.num_labels == 0
    assert Example("Do 3\n\nGiven this.", "Done 3", "open_qa") in dolly.train + dolly.held_out
    assert len(dolly.train) + len(dolly.held_out) == 60
    assert 0 < len(dolly.held_out) < 12
    alpaca = load("alpaca", tmp_path)
    assert alpaca.domains == ("all",)
    assert Example("Do 2", "Done 2", "all") in alpaca.train + alpaca.held_out
    assert len(alpaca.train) + len(alpaca.held_out) == 59  # one has no answer
    news = load("20newsgroups", tmp_path)
    assert news.domains == ("alt.atheism", "rec.autos", "sci.space")
    assert news.labels == ("A", "B", "C")
    assert Example("Post 0 about a thing", "C", "sci.space") in news.train
    assert [e.prompt for e in news.held_out if e.completion == "A"] == [
        "Unlike Post 1 about a thing",
        "Unlike Post 4 about a thing",
    ]
    assert calls == [(path, split) for path, split in zip(
        [*tables, "SetFit/20_newsgroups"], ["train", "train", "train", "test"], strict=True)]  # fmt: skip
    load("dolly", tmp_path)
    assert len(calls) == 4  # cached


def test_hub_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def dropped(*_args, **_options):
        raise ConnectionError("the line\nwent dead")

    monkeypatch.setattr(datasets, "load_dataset", dropped)
    for name, path in {"dolly": "databricks/databricks-dolly-15k", "20newsgroups": "SetFit/20_newsgroups"}.items():
        with fails(f"{path}.*the line went dead.*offline.*task:packages and task:docstrings need none"):
            load(name, tmp_path)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    )
    with fails("unknown column of SetFit/20_newsgroups 'label_text': use one of text, label"):
        load("20newsgroups", tmp_path)


# --- the base model ---------------------------------------------------------------------------------------------------

TINY = {"steps": 3, "context": 16, "batch_size": 2, "corpus": "grammar?tokens=20000&dialects=2&symbols=8"}


def test_pretrained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = pretrained("nano", **TINY, cache=tmp_path)
    assert "3/3" in capsys.readouterr().err
    values = load_values(path)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["recipe"]["steps"] == 3
    model = GPT(dim=64, num_layers=2, num_heads=2).build(256, 16, 0)
    named = dict(model.named_parameters())
    assert {k: v.shape for k, v in values.items()} == {k: p.shape for k, p in named.items()}
    assert not torch.equal(values["embedding"], named["embedding"])  # it has moved
    other = pretrained("nano", **TINY | {"steps": 2}, cache=tmp_path, progress=False)
    assert other != path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    with fails("SHA-256.*remove it and call lab.runs.trainer.pretrained", LabError):
        load_values(path)
    assert pretrained("nano", **TINY, cache=tmp_path, progress=False) == path
    assert path.read_bytes() == whole  # the same values, bit for bit
    monkeypatch.setattr("lab.runs.trainer.Trainer", None)
    assert pretrained("nano", **TINY, cache=tmp_path) == path  # nothing is trained again
    with fails("it does not exist", LabError):
        load_values(tmp_path / "nothing.safetensors")


def test_pretrained_is_what_the_run_agreed_on(tmp_path: Path) -> None:
    """The file has the values of an ordinary run of the recipe that it names."""
    from lab.recipes.recipe import Recipe
    from lab.runs.trainer import Trainer

    path = pretrained("nano", **TINY, cache=tmp_path, progress=False)
    about = json.loads(path.with_suffix(".json").read_text())
    trainer = Trainer(Recipe.of(about["recipe"]))
    *_, evaluated, _ended = trainer.events()
    assert evaluated.loss == about["validation_loss"]
    for name, value in load_values(path).items():
        copies = trainer.state.local["params"][name]
        assert torch.equal(copies.mean(0), value)


def test_pretrained_of_a_shape(tmp_path: Path) -> None:
    """Width times layers where the size has no name; the values fill a model of that shape, and no other."""
    path = pretrained("8x3", **TINY, cache=tmp_path, progress=False)
    for layers, fits in ((3, contextlib.nullcontext()), (2, fails("blocks.2.*lacks"))):
        with fits:
            start_values_(GPT(dim=8, num_layers=layers, num_heads=2).build(256, 32), "pretrained:8x3", lambda _: path)
    with fails("dim must be an even multiple"):
        pretrained("7x1", **TINY, cache=tmp_path, progress=False)


def test_pretrained_errors(tmp_path: Path) -> None:
    with fails("unknown model 'micra'.*did you mean 'micro'"):
        pretrained("micra", cache=tmp_path)
    (tmp_path / "file").touch()
    with fails("ISTHMUS_CACHE names another folder"):
        pretrained("nano", **TINY, cache=tmp_path / "file" / "below", progress=False)
