"""Laws of the corpora, the splits and the batches."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lab.data import (
    Batches,
    Tokens,
    count_windows,
    load_corpus,
    load_tokenizer,
    split_windows,
    validation_batches,
    validation_windows,
    window_domains,
)
from lab.data.corpora import open_source
from lab.data.grammar import ALPHABET, Grammar, entropy_rate, sample, stationary
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from tests.support import ROOT
from tests.support.texts import fails, make_tokenizer, run, write_texts

SMALL = "grammar?tokens=40000&dialects=2&symbols=8"


def make_tokens(length: int, documents: int = 7, domains: int = 3, seed: int = 0) -> Tokens:
    """Tokens that are their own position, so that a batch shows where it comes from."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, length), size=min(documents, length) - 1, replace=False))
    start = np.concatenate([[0], cuts]).astype(np.int64)
    return Tokens(np.arange(length, dtype=np.uint32), start, rng.integers(domains, size=len(start)).astype(np.int32))


# --- splits ---------------------------------------------------------------------------------------------------------

HOWS = st.one_of(
    st.just("iid"),
    st.just("domain"),
    st.floats(0.05, 100).map(lambda a: f"dirichlet:{a}"),
    st.floats(0, 3).map(lambda a: f"size:{a}"),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), HOWS, st.integers(-5, 5), st.integers(2, 600))
def test_split_is_a_partition(workers: int, context: int, how: str, seed: int, length: int) -> None:
    assume(length > context)
    tokens = make_tokens(length)
    try:
        shards = split_windows(tokens, workers, context, how, seed)
    except RecipeError:
        with fails("would get no data"):
            split_windows(tokens, workers, context, how, seed)
        return
    total = count_windows(tokens, context)
    assert len(shards) == workers
    assert all(len(s) and s.dtype == np.int64 for s in shards)
    assert all((np.diff(s) > 0).all() for s in shards)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(total))  # disjoint, and all of them
    assert total * context < length <= (total + 1) * context
    again = split_windows(tokens, workers, context, how, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))
    sizes = [len(s) for s in shards]
    if how == "iid":
        assert max(sizes) - min(sizes) <= 1
    if how.startswith("size"):
        assert sizes == sorted(sizes, reverse=True)


def test_iid_depends_on_the_seed() -> None:
    tokens = make_tokens(5000)
    first, second = (split_windows(tokens, 4, 10, seed=s)[0] for s in (0, 1))
    assert not np.array_equal(first, second)


def test_domains_stay_whole_and_are_balanced() -> None:
    tokens = make_tokens(100_000, documents=400, domains=30)
    domains = window_domains(tokens, 16)
    shards = split_windows(tokens, 4, 16, "domain")
    owners = [set(domains[s].tolist()) for s in shards]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 30
    assert max(map(len, shards)) < 1.15 * min(map(len, shards))


def test_dirichlet_interpolates() -> None:
    tokens = make_tokens(200_000, documents=400, domains=5)
    domains = window_domains(tokens, 16)

    def skew(how: str) -> float:
        shares = [np.bincount(domains[s], minlength=5) / len(s) for s in split_windows(tokens, 4, 16, how)]
        return float(np.mean([np.abs(s - np.bincount(domains) / len(domains)).sum() for s in shares]))

    assert skew("dirichlet:0.3") > 3 * skew("dirichlet:100") > 0
    assert skew("dirichlet:100000") < 0.02


def test_window_domain_is_that_of_its_first_token() -> None:
    tokens = Tokens(np.zeros(21, np.uint8), np.array([0, 4, 11]), np.array([2, 0, 1], np.int32))
    assert window_domains(tokens, 5).tolist() == [2, 0, 0, 1]  # windows start at 0, 5, 10, 15


def test_split_errors() -> None:
    tokens = make_tokens(50, domains=2)
    with fails("worker 2 would get no data.*fewer workers"):
        split_windows(tokens, 5, 20)
    with fails("would get no data"):
        split_windows(tokens, 3, 2, "domain")
    with fails("needs 51 tokens but there are 50.*at most 49"):
        split_windows(tokens, 1, 50)
    with fails("unknown split 'idd'.*did you mean 'iid'"):
        split_windows(tokens, 1, 5, "idd")
    for how in ("dirichlet", "dirichlet:x", "dirichlet:0", "size:-1", "dirichlet:nan"):
        with fails("with a number"):
            split_windows(tokens, 1, 5, how)
    with fails("at least 1"):
        split_windows(tokens, 0, 5)
    with fails("at least 1"):
        split_windows(tokens, 1, 0)
    assert len(split_windows(tokens, 1, 49)[0]) == 1


# --- batches --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9), st.integers(0, 3), st.integers(60, 200))
def test_epochs_are_without_replacement(workers: int, context: int, batch: int, seed: int, length: int) -> None:
    tokens = make_tokens(length)
    shards = split_windows(tokens, workers, context, seed=seed)
    batches = Batches(tokens, shards, batch, context, seed)
    for worker, shard in enumerate(shards):
        steps = -(-3 * len(shard) // batch)  # three epochs
        seen = []
        for t in range(1, steps + 1):
            x, y = batches.get(worker, t)
            assert x.shape == y.shape == (batch, context)
            assert x.dtype == y.dtype == torch.int64
            assert x.is_contiguous()
            assert y.is_contiguous()
            assert torch.equal(y, x + 1)  # tokens are positions: a target is the next token
            seen += (x[:, 0] // context).tolist()
        epochs = [seen[i * len(shard) : (i + 1) * len(shard)] for i in range(3)]
        assert all(sorted(e) == shard.tolist() for e in epochs)
        if len(shard) > 12:
            assert epochs[0] != epochs[1] != epochs[2]


BATCH_CODE = """
import numpy as np
from lab.data import Batches, Tokens, split_windows
tokens = Tokens(np.arange(3000, dtype=np.uint16), np.array([0]), np.array([0], np.int32))
batches = Batches(tokens, split_windows(tokens, 3, 8, seed=4), 5, 8, 7)
"""


@pytest.mark.processes
def test_batches_are_pure() -> None:
    """The same (seed, worker, t) is the same tensor in another process, another object, another order."""
    scope: dict = {}
    exec(BATCH_CODE, scope)
    batches, tokens = scope["batches"], scope["tokens"]
    wanted = [(2, 1), (0, 77), (1, 26), (0, 1)]
    there = run(BATCH_CODE + f"print([batches.get(w, t)[0].tolist() for w, t in {wanted}])", PYTHONHASHSEED="5")
    assert json.loads(there) == [batches.get(w, t)[0].tolist() for w, t in wanted]
    for t in range(1, 60):
        batches.get(0, t)
    assert json.loads(there)[1] == batches.get(0, 77)[0].tolist()
    other = Batches(tokens, batches.shards, 5, 8, 8)
    assert other.get(0, 1)[0].tolist() != batches.get(0, 1)[0].tolist()


def test_batches_from_threads() -> None:
    tokens = make_tokens(4000)
    shards = split_windows(tokens, 4, 8)
    one, many = (Batches(tokens, shards, 6, 8, 0) for _ in range(2))
    expected = {(w, t): one.get(w, t)[0] for w in range(4) for t in range(1, 80)}
    wrong: list = []

    def work(worker: int) -> None:
        wrong.extend(t for t in range(1, 80) if not torch.equal(many.get(worker, t)[0], expected[worker, t]))

    threads = [threading.Thread(target=work, args=(w,)) for w in (0, 1, 2, 3, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_batches_are_fast_and_check_their_arguments() -> None:
    tokens = Tokens(np.zeros(1_000_000, np.uint8), np.array([0]), np.array([0], np.int32))
    batches = Batches(tokens, split_windows(tokens, 2, 128), 16, 128, 0)
    batches.get(0, 1)
    best = min(_timed(lambda: batches.get(0, 2)) for _ in range(50))
    assert best < 1e-3  # about 40 microseconds where nothing else runs
    with fails("batch size"):
        Batches(tokens, [np.arange(3)], 0, 128, 0)
    with fails("worker 0 has no data"):
        Batches(tokens, [np.empty(0, np.int64)], 1, 128, 0)
    with pytest.raises(IndexError):
        batches.get(0, 0)
    with pytest.raises(IndexError):
        batches.get(2, 1)


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 60))
def test_validation_batches_are_fixed_and_evenly_spaced(context: int, batch: int, wanted: int) -> None:
    tokens = make_tokens(300)
    total = count_windows(tokens, context)
    pairs = validation_batches(tokens, context, batch, wanted)
    first = torch.cat([x[:, 0] for x, _ in pairs]).numpy() // context
    assert np.array_equal(first, validation_windows(tokens, context, wanted))
    assert len(first) == min(wanted, total)
    assert first[0] == 0
    gaps = np.diff([*first, total])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert all(torch.equal(y, x + 1) and len(x) <= batch for x, y in pairs)
    with fails("at least 1"):
        validation_batches(tokens, context, batch, 0)


# --- grammar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symbols", "order"), [(2, 1), (3, 1), (3, 2), (2, 3)])
def test_entropy_rate_is_the_limit_of_block_entropies(symbols: int, order: int) -> None:
    """Against H(n + 1) - H(n) over all strings of n symbols, started from a context that is far from stationary."""
    table = numpy_generator(0, "test table").dirichlet(np.ones(symbols), size=symbols**order)
    blocks = {(0,) * order: 1.0}  # context -> probability, after many steps: the chain forgets its start
    for _ in range(400):
        after: dict = {}
        for context, p in blocks.items():
            row = table[int(sum(c * symbols ** (order - 1 - i) for i, c in enumerate(context)))]
            for symbol in range(symbols):
                key = (*context, symbol)[1:]
                after[key] = after.get(key, 0.0) + p * row[symbol]
        blocks = after
    entropies = []
    for _ in range(4):  # strings of order, order + 1, ... symbols
        p = np.array(list(blocks.values()))
        entropies.append(-(p * np.log2(p)).sum())
        blocks = {
            (*block, symbol): p
            * table[int(sum(c * symbols ** (order - 1 - i) for i, c in enumerate(block[-order:])))][symbol]
            for (block, p), symbol in itertools.product(blocks.items(), range(symbols))
        }
    assert np.allclose(np.diff(entropies), entropy_rate(table, order), rtol=0, atol=1e-10)


def test_stationary_solves_the_linear_system() -> None:
    grammar = Grammar(symbols=12, order=2)
    for table in grammar.tables():
        assert np.allclose(table.sum(axis=1), 1)
        assert table.min() > 0
        contexts = len(table)
        move = np.zeros((contexts, contexts))
        for c, s in itertools.product(range(contexts), range(12)):
            move[c, c * 12 % contexts + s] += table[c, s]
        system = np.vstack([move.T - np.eye(contexts), np.ones(contexts)])
        solved = np.linalg.lstsq(system, np.append(np.zeros(contexts), 1.0), rcond=None)[0]
        assert np.allclose(stationary(table, 2), solved, rtol=0, atol=1e-12)


def test_true_model_has_the_floor_as_its_loss(tmp_path: Path) -> None:
    """The loss of the true conditional probabilities on the text, read back from its bytes, is near the floor."""
    grammar = Grammar()
    corpus = load_corpus("grammar", cache=tmp_path)
    assert corpus.floor_bits is not None
    assert corpus.domain_floor_bits == grammar.floors()
    assert corpus.floor_bits == pytest.approx(np.mean(list(grammar.floors().values())), abs=1e-12)
    symbol_of = np.full(256, -1)
    symbol_of[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(len(ALPHABET))
    tables = grammar.tables()
    bits: dict[int, list[np.ndarray]] = {d: [] for d in range(4)}
    ends = np.append(corpus.train.doc_start[1:], len(corpus.train.ids)) - 1
    for start, end, domain in zip(corpus.train.doc_start, ends, corpus.train.doc_domain, strict=True):
        assert corpus.train.ids[end] == 0
        s = symbol_of[corpus.train.ids[start:end]]
        assert s.min() >= 0
        assert s.max() < 32
        bits[domain].append(-np.log2(tables[domain][s[:-2] * 32 + s[1:-1], s[2:]]))
    for domain, name in enumerate(corpus.domains):
        assert np.concatenate(bits[domain]).mean() == pytest.approx(grammar.floors()[name], abs=0.02)
    other = np.mean([-np.log2(tables[1][s, t]).mean() for s, t in [_pairs(corpus, symbol_of)]])
    assert other > corpus.floor_bits + 0.5  # dialects differ


def _pairs(corpus, symbol_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = symbol_of[corpus.train.ids[: corpus.train.doc_start[1] - 1]]
    return s[:-2] * 32 + s[1:-1], s[2:]


def test_samples_start_stationary_and_are_seeded() -> None:
    table = Grammar(symbols=4, order=2).tables()[0]
    drawn = sample(table, 2, 200_000, 3, numpy_generator(0, "test"))
    seen = np.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16) / 200_000
    assert np.allclose(seen, stationary(table, 2), atol=0.005)
    later = np.bincount(drawn[:, 1] * 4 + drawn[:, 2], minlength=16) / 200_000
    assert np.allclose(later, stationary(table, 2), atol=0.005)
    texts = [[d[2] for d in Grammar(seed=s, tokens=6000, dialects=1).documents()] for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_similarity_is_the_share_of_common_rows() -> None:
    for similarity in (0.0, 0.5, 1.0):
        one, two = Grammar(dialects=2, similarity=similarity).tables()
        same = (one == two).all(axis=1).mean()
        assert same == pytest.approx(similarity**2, abs=0.05)


def test_dialects_of_a_family_are_nearer_to_each_other() -> None:
    """Rows in common: 0.2 of all with everybody, and 0.7 of the others with those of the family; without families as ever."""
    tables = Grammar(dialects=6, families=3, similarity=0.2, kinship=0.7, symbols=12).tables()

    def common(a: int, b: int) -> float:
        return float((tables[a] == tables[b]).all(1).mean())

    assert common(0, 1) == pytest.approx(0.2**2 + (0.8 * 0.7) ** 2, abs=0.12)
    assert common(1, 2) == pytest.approx(0.2**2, abs=0.08)
    plain = Grammar(dialects=6, similarity=0.2, symbols=12)
    assert np.array_equal(
        plain.tables()[0], Grammar(dialects=6, families=3, kinship=0.0, similarity=0.2, symbols=12).tables()[0]
    )
    assert "families" not in plain.key
    assert "families=3" in Grammar(dialects=6, families=3).key
    with pytest.raises(RecipeError, match="families=7 is out of range"):
        Grammar(dialects=6, families=7)


def test_grammar_corpus(tmp_path: Path) -> None:
    start = time.perf_counter()
    corpus = load_corpus(SMALL, cache=tmp_path)
    assert time.perf_counter() - start < 20
    assert corpus.domains == ("dialect00", "dialect01")
    assert corpus.vocab_size == 256
    assert corpus.bytes_per_token == 1
    assert set(window_domains(corpus.validation, 32)) == {0, 1}
    assert corpus.decode(corpus.train.ids[:50]).isprintable()
    assert len(corpus.train.ids) + len(corpus.validation.ids) == pytest.approx(40_000, rel=0.01)
    for bad in ("symbols=1", "order=9", "symbols=90&order=4", "similarity=2", "tokens=10", "dialects=0", "order=1.5"):
        with fails("grammar: "):
            load_corpus(f"grammar?{bad}", cache=tmp_path)


# --- stdlib, cache --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stdlib_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("stdlib")
    load_corpus("stdlib", cache=cache)
    return cache


def test_stdlib(stdlib_cache: Path) -> None:
    corpus = load_corpus("stdlib", cache=stdlib_cache)
    assert 3e6 < len(corpus.train.ids) < 2e7
    assert corpus.floor_bits is None
    assert corpus.domain_floor_bits is None
    assert {"asyncio", "json", "modules"} < set(corpus.domains)
    assert "test" not in corpus.domains
    assert 0.02 < len(corpus.validation.ids) / len(corpus.train.ids) < 0.12
    assert isinstance(corpus.train.ids, np.memmap)
    assert corpus.train.ids.dtype == np.uint8
    assert corpus.train.doc_start.dtype == np.int64
    assert corpus.train.doc_domain.dtype == np.int32
    for split in (corpus.train, corpus.validation):
        assert split.doc_start[0] == 0
        assert (np.diff(split.doc_start) > 0).all()
        assert (split.ids[split.doc_start[1:] - 1] == 0).all()
        assert split.ids[-1] == 0
        assert (np.diff(split.doc_domain) >= 0).all()
    text = corpus.decode(corpus.train.ids)
    assert "class JSONDecoder" in text or "class JSONDecoder" in corpus.decode(corpus.validation.ids)
    assert "tokens of uint8" in repr(corpus)
    assert len(repr(corpus)) < 2000


def test_stdlib_split_is_by_file() -> None:
    docs = list(open_source("stdlib").documents())
    train, held_out = ({d.name for d in docs if d.held_out == side} for side in (False, True))
    assert len(train) + len(held_out) == len(docs)
    assert not train & held_out
    part = list(open_source("stdlib?max_bytes=2000000").documents())
    assert 1_500_000 < sum(len(d.text.encode()) for d in part) <= 2_000_000
    assert {d.name for d in part if d.held_out} <= held_out  # the side of a file does not depend on the others
    assert {d.name for d in part if not d.held_out} <= train
    assert [(d.domain, d.name) for d in docs] == sorted((d.domain, d.name) for d in docs)


@pytest.mark.processes
def test_warm_start_is_fast_and_light(stdlib_cache: Path) -> None:
    out = run(
        "import sys, time; from pathlib import Path; from lab.data import load_corpus; start = time.perf_counter();"
        f"load_corpus('stdlib', cache=Path({str(stdlib_cache)!r}));"
        "print(time.perf_counter() - start, [m for m in ('datasets', 'tokenizers', 'torch') if m in sys.modules])"
    )
    seconds, _, modules = out.partition(" ")
    assert modules == "[]"
    assert float(seconds) < 0.25


def test_truncated_or_missing_cache_is_rebuilt(tmp_path: Path) -> None:
    corpus = load_corpus(SMALL, cache=tmp_path)
    ids = np.array(corpus.train.ids)
    for file in ("train.tokens", "validation.documents", "meta.json"):
        path = corpus.folder / file
        path.write_bytes(path.read_bytes()[:-5])
        again = load_corpus(SMALL, cache=tmp_path)
        assert np.array_equal(again.train.ids, ids)
        assert again.fingerprint == corpus.fingerprint
    (corpus.folder / "train.tokens").unlink()
    assert np.array_equal(load_corpus(SMALL, cache=tmp_path).train.ids, ids)
    for memo in (tmp_path / "memo").iterdir():
        memo.write_text("torn")
    assert load_corpus(SMALL, cache=tmp_path).fingerprint == corpus.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([corpus.folder.name, "memo"])  # nothing left behind


@pytest.mark.processes
def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from lab.data import load_corpus
print(load_corpus({SMALL!r}, cache=Path({str(tmp_path)!r})).fingerprint)
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    prints = {process.communicate(timeout=60)[0] for process in both}
    assert prints == {f"{load_corpus(SMALL, cache=tmp_path).fingerprint}\n".encode()}


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "here"))
    assert load_corpus(SMALL).folder.parent == tmp_path / "here" / "corpora"
    (tmp_path / "file").touch()
    with fails("ISTHMUS_CACHE"):
        load_corpus(SMALL, cache=tmp_path / "file" / "below")


# --- text -----------------------------------------------------------------------------------------------------------


def test_text_folder_splits_by_file(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 60)
    (tmp_path / "in" / "image.png").write_bytes(b"\x89PNG\xff\0")
    (tmp_path / "in" / ".hidden").write_text("no")
    corpus = load_corpus(f"text:{tmp_path / 'in'}", cache=tmp_path / "cache")
    assert corpus.domains == ("part0", "part1", "part2")
    train, held_out = (corpus.decode(s.ids).split("\0")[:-1] for s in (corpus.train, corpus.validation))
    assert len(train) + len(held_out) == 60
    assert held_out
    assert not set(train) & set(held_out)
    assert corpus.train.doc_start[-1] + len(train[-1].encode()) + 1 == len(corpus.train.ids)
    moved = load_corpus(f"text:{tmp_path}/in/*/*.txt", cache=tmp_path / "cache")
    assert moved.fingerprint == corpus.fingerprint
    assert moved.folder == corpus.folder


def test_few_texts_hold_out_their_ends(tmp_path: Path) -> None:
    texts = {"a": "Ä one " * 200, "b": "two " * 300}
    for name, text in texts.items():
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    corpus = load_corpus(f"text:{tmp_path}/b.md, {tmp_path}/a.md", cache=tmp_path / "cache")
    assert corpus.domains == ("a", "b")
    train, held_out = (corpus.decode(s.ids).split("\0")[:-1] for s in (corpus.train, corpus.validation))
    assert [t + v for t, v in zip(train, held_out, strict=True)] == list(texts.values())
    assert len(corpus.validation.ids) == pytest.approx(0.05 * 2600, abs=10)


def test_key_follows_content(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 3)
    spec, cache = f"text:{tmp_path / 'in'}", tmp_path / "cache"
    first = load_corpus(spec, cache=cache)
    changed = tmp_path / "in" / "part1" / "1.txt"
    text = changed.read_text()
    os.utime(changed, ns=(1, 1))
    assert load_corpus(spec, cache=cache).folder == first.folder  # touched: the same text
    changed.write_text(text.replace("text", "TEXT"))
    second = load_corpus(spec, cache=cache)
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint
    assert "TEXT" in second.decode(second.train.ids)
    changed.write_text(text)
    os.utime(changed, ns=(2, 2))
    third = load_corpus(spec, cache=cache)
    assert third.folder == first.folder
    assert third.fingerprint == first.fingerprint


def test_text_errors(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    (tmp_path / "empty").mkdir()
    for spec, message in {
        f"text:{tmp_path}/nothing.txt": "nothing.txt' does not exist",
        f"text:{tmp_path}/*.rst": "rst' does not exist",
        f"text:{tmp_path}/binary": "binary' is empty or is not UTF-8",
        f"text:{tmp_path}/empty": "empty' has no files",
        f"text:{tmp_path}/bin*": "has no text to read",
        "text:": "names nothing to read",
        "text": "names nothing to read",
        "stdlip": "unknown corpus 'stdlip'.*did you mean 'stdlib'",
        "stdlib:x": "takes no path",
        "stdlib?max_byte=3": "unknown option of stdlib 'max_byte'.*did you mean 'max_bytes'",
        "stdlib?max_bytes=many": "not a whole number",
        "stdlib?max_bytes=-1": "not a whole number",
        "stdlib?max_bytes=0": "no source text",
        "": "unknown corpus ''",
    }.items():
        with fails(message):
            load_corpus(spec, cache=tmp_path / "cache")


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_tokenizer_file(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 30)
    spec, cache, file = f"text:{tmp_path / 'in'}", tmp_path / "cache", tmp_path / "tokenizer.json"
    make_tokenizer(file, "<|endoftext|>")
    as_bytes = load_corpus(spec, cache=cache)
    corpus = load_corpus(spec, tokenizer=str(file), cache=cache)
    assert 256 < corpus.vocab_size <= 400
    assert corpus.train.ids.dtype == np.uint16
    assert corpus.bytes_per_token > 2
    assert load_tokenizer(str(file)).vocab_size == corpus.vocab_size
    assert load_tokenizer("bytes").vocab_size == as_bytes.vocab_size
    assert corpus.bytes_per_token * len(corpus.validation.ids) == pytest.approx(len(as_bytes.validation.ids))
    texts = corpus.decode(corpus.train.ids)
    assert texts.replace("<|endoftext|>", "\0") == as_bytes.decode(as_bytes.train.ids)
    assert len(texts.split("<|endoftext|>")) - 1 == len(corpus.train.doc_start)
    make_tokenizer(file, None, 300)
    other = load_corpus(spec, tokenizer=str(file), cache=cache)
    assert other.folder != corpus.folder
    assert other.fingerprint != corpus.fingerprint
    assert other.decode(other.train.ids) == as_bytes.decode(as_bytes.train.ids).replace("\0", "")
    assert corpus.decode(corpus.train.ids) == texts  # an opened corpus keeps the tokenizer it was made with
    floor = load_corpus(SMALL, tokenizer=str(file), cache=cache).floor_bits
    assert floor is None  # a token is not a symbol


def test_tokenizer_errors(tmp_path: Path) -> None:
    with fails("tokenizer 'nope.json' is not a file: use bytes"):
        load_corpus(SMALL, tokenizer="nope.json", cache=tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with fails("cannot read tokenizer"):
        load_corpus(SMALL, tokenizer=str(tmp_path / "bad.json"), cache=tmp_path)


@pytest.mark.processes
def test_hub_names_offline(tmp_path: Path) -> None:
    """In a fresh process, because the hub's library reads HF_HUB_OFFLINE on import."""
    out = run(
        f"""
from pathlib import Path
from lab.data import load_corpus
from lab.ground.errors import RecipeError
for spec, tokenizer in (("hub:a/b", "bytes"), ("hub:a/b?streaming=true", "bytes"), ("{SMALL}", "hub:no/model")):
    try:
        load_corpus(spec, tokenizer=tokenizer, cache=Path({str(tmp_path)!r}))
    except RecipeError as error:
        print(error)
""",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    data, streamed, model = out.splitlines()
    for line in (data, streamed):
        assert "'a/b'" in line
        assert "offline" in line
        assert "'stdlib' works without a network" in line
    assert "'hub:no/model'" in model
    assert "offline" in model
    assert "bytes" in model


# --- hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets on disk: one split, several splits, and a folder of JSON lines."""
    import datasets

    root = tmp_path_factory.mktemp("saved")
    rows = {
        "body": [f"Story number {i}, told again and again. " for i in range(50)] + [None, ""],
        "number": list(range(52)),
        "topic": [i % 2 for i in range(52)],
    }
    features = datasets.Features(
        {"body": datasets.Value("string"), "number": datasets.Value("int64")}
        | {"topic": datasets.ClassLabel(names=["sea", "land"])}
    )
    one = datasets.Dataset.from_dict(rows, features=features)
    one.save_to_disk(str(root / "one"))
    datasets.DatasetDict({"train": one, "dev": one.select(range(3))}).save_to_disk(str(root / "many"))
    (root / "jsonl").mkdir()
    lines = [json.dumps({"text": f"Line {i} of a file. ", "lang": "en" if i < 15 else "fr"}) for i in range(30)]
    (root / "jsonl" / "train.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_hub_reads_a_saved_data_set(saved: Path, tmp_path: Path, streaming: str) -> None:
    spec = f"hub:{saved}/one?column=body&domain=topic&streaming={streaming}"
    corpus = load_corpus(spec, cache=tmp_path)
    assert corpus.domains == ("land", "sea")
    texts = [corpus.decode(s.ids).split("\0")[:-1] for s in (corpus.train, corpus.validation)]
    assert len(texts[0]) + len(texts[1]) == 50
    assert texts[1]
    assert set(texts[0] + texts[1]) == {f"Story number {i}, told again and again. " for i in range(50)}
    few = load_corpus(f"{spec}&max_documents=25", cache=tmp_path)
    assert len(few.train.doc_start) + len(few.validation.doc_start) == 25
    named = load_corpus(
        f"hub:{saved}/many?column=body&validation=dev&streaming={streaming}", cache=tmp_path, progress=True
    )
    assert len(named.train.doc_start) == 50
    assert len(named.validation.doc_start) == 3
    assert named.domains == ("all",)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_hub_reads_a_folder_of_files(
    saved: Path, tmp_path: Path, streaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(saved)
    corpus = load_corpus(f"hub:./jsonl?domain=lang&streaming={streaming}", cache=tmp_path)
    assert corpus.domains == ("en", "fr")
    assert len(corpus.train.doc_start) + len(corpus.validation.doc_start) == 30
    with fails("unknown column of ./jsonl 'txt': use one of text, lang.*did you mean 'text'"):
        load_corpus(f"hub:./jsonl?column=txt&streaming={streaming}", cache=tmp_path)
    with fails("cannot read split 'dev' of './jsonl'"):
        load_corpus(f"hub:./jsonl?split=dev&streaming={streaming}", cache=tmp_path)


def test_hub_arguments_reach_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(path, name, **options):
        calls.append((path, name, options))
        return datasets.Dataset.from_dict({"text": [f"remote text {i}" for i in range(40)]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = "hub:some/one?config=en&split=train&streaming=true&revision=v1"
    corpus = load_corpus(spec, cache=tmp_path)
    assert calls == [("some/one", "en", {"split": "train", "streaming": True, "revision": "v1"})]
    assert load_corpus(spec, cache=tmp_path).fingerprint == corpus.fingerprint
    assert len(calls) == 1

    def dropped(*_args, **_options):
        raise ConnectionError("the line\nwent dead")

    monkeypatch.setattr(datasets, "load_dataset", dropped)
    with fails("'other/one'.*the line went dead.*'stdlib' works without a network"):
        load_corpus("hub:other/one", cache=tmp_path)
    assert load_corpus(spec, cache=tmp_path).fingerprint == corpus.fingerprint  # no network needed


def test_hub_errors(saved: Path, tmp_path: Path) -> None:
    for spec, message in {
        f"hub:{saved}/one": "unknown column of .*'text': use one of body, number, topic",
        f"hub:{saved}/one?column=body&domain=topics": "did you mean 'topic'",
        f"hub:{saved}/one?column=number": "holds int, not text",
        f"hub:{saved}/one?column=body&validation=test": "unknown split of .* 'test': use one of train",
        f"hub:{saved}/many?column=body&split=deu": "did you mean 'dev'",
        f"hub:{saved}/one?column=body&streaming=maybe": "not true or false",
        "hub:./not/here": "'./not/here' does not exist",
        "hub:": "names nothing to read",
        f"hub:{saved}/one?colum=body": "unknown option of hub 'colum'.*did you mean 'column'",
    }.items():
        with fails(message):
            load_corpus(spec, cache=tmp_path)
