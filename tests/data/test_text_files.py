"""Laws of files of text: finding them, knowing them again, reading and tokenising them little at a time, odd ones."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.data import files, load_corpus, load_tokenizer, tokenizer
from lab.data.cache import read_corpus
from lab.data.corpora import hold_out, open_source
from lab.data.files import Finder, Scan, expanded, scan, scans, settled, stamp, text_of
from lab.data.hub import folder as hub_folder
from lab.data.tokenizer import bare, cut_up, stretched
from tests.support import ROOT
from tests.support.texts import fails, make_tokenizer, run, write_texts

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps,",
    "over",
    "a",
    "lazy",
    "dog;",
    "while",
    "1234",
    "rivers",
    "run",
    "(slow)",
    "and",
    "cold\n\n",
    "",
    "under",
    "bridges.",
    "ÄÖ",
    "ñandú",
    "你好世界",
]


def prose(words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "\n"


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are known by their stamps at once, as if they had been left alone for a while."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))


# --- tokens of long texts ---------------------------------------------------------------------------------------------


def tokenizers_of_all_kinds(folder: Path) -> dict[str, str]:
    """Files of tokenizers that treat white space, beginnings and unknown characters in different ways."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    text = [prose(400, seed) for seed in range(5)]
    out: dict[str, str] = {}

    def save(name: str, made: Tokenizer, trainer: Any) -> None:
        made.train_from_iterator(text, trainer)
        out[name] = str(folder / f"{name}.json")
        made.save(out[name])

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain: dict[str, Any] = {"vocab_size": 330, "show_progress": False}
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save("as gpt2", made, trainers.BpeTrainer(initial_alphabet=alphabet, **plain))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    save("space before", made, trainers.BpeTrainer(initial_alphabet=alphabet, **plain))
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    save("as llama", made, trainers.BpeTrainer(special_tokens=["<unk>"], **plain))
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    save("as t5", made, trainers.UnigramTrainer(special_tokens=["<unk>"], unk_token="<unk>", **plain))
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    save("as bert", made, trainers.WordPieceTrainer(special_tokens=["[UNK]"], **plain))
    return out


def test_a_text_in_pieces_has_the_tokens_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "CUT", 400)
    monkeypatch.setattr(tokenizer, "AROUND", 64)
    texts = {
        "prose": prose(3000, 7),
        "no spaces": prose(1500, 8).replace(" ", ""),
        "one letter": "a" * 3000,
        "white": "word" + " " * 1500 + "\n" * 1500 + "word",
        "short": "x",
        "nothing": "",
    }
    for kind, file in tokenizers_of_all_kinds(tmp_path).items():
        loaded = load_tokenizer(file)
        for name, text in texts.items():
            if name in ("one letter", "white") and kind != "as gpt2":
                continue  # one word of a Unigram or WordPiece has no place for a cut
            chunks = [text[i : i + 333] for i in range(0, len(text), 333)]
            parts = list(cut_up(iter(chunks), loaded))
            assert "".join(part.text for part in parts) == text
            assert all(len(part.text) <= 2 * 400 for part in parts)
            whole = bare(loaded, [text])[0]
            assert np.array_equal(np.concatenate(stretched(parts, loaded)), whole), (kind, name)
            if name == "prose":
                assert len(parts) > 20
    loaded = load_tokenizer("bytes")
    parts = list(cut_up(iter([texts["prose"]]), loaded))
    assert np.array_equal(np.concatenate(stretched(parts, loaded)), bare(loaded, [texts["prose"]])[0])


def test_a_word_without_end_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "CUT", 400)
    for file in tokenizers_of_all_kinds(tmp_path).values():
        loaded = load_tokenizer(file)
        parts = list(cut_up(iter(["a" * 5000]), loaded))
        assert "".join(part.text for part in parts) == "a" * 5000
        assert len(parts) > 5
        assert stretched(parts, loaded)


def test_a_corpus_does_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long file, and many: the same tokens whether they are read and cut in small pieces or whole."""
    make_tokenizer(tmp_path / "bpe.json", "<|endoftext|>")
    write_texts(tmp_path / "many", 30)
    (tmp_path / "long.txt").write_text(prose(4000), encoding="utf-8")
    for spec in (f"text:{tmp_path / 'many'}", f"text:{tmp_path / 'long.txt'}"):
        for cut_by in ("bytes", str(tmp_path / "bpe.json")):
            one = load_corpus(spec, tokenizer=cut_by, cache=tmp_path / "whole")
            with monkeypatch.context() as small:
                small.setattr(files, "CHUNK", 101)
                small.setattr(tokenizer, "CUT", 300)
                small.setattr("lab.data.cache.BATCH", 1000)
                two = load_corpus(spec, tokenizer=cut_by, cache=tmp_path / "pieces")
            assert two.fingerprint == one.fingerprint
            assert two.bytes_per_token == one.bytes_per_token


def test_files_are_held_out_as_texts_are(tmp_path: Path) -> None:
    """The plan that is made from scans is that of `hold_out`, which sees the texts themselves."""
    for count in (1, 3, 19, 20, 50):
        folder = tmp_path / str(count)
        write_texts(folder, count)
        (folder / "part0" / "one.txt").write_text("x")  # nothing of it can be held out
        source = open_source(f"text:{folder}")
        assert source.files is not None
        docs = list(source.documents())
        whole: dict[str, str] = {}
        for doc in docs:
            whole[doc.name] = whole.get(doc.name, "") + doc.text
        first = {doc.name: doc._replace(text=whole[doc.name], held_out=False) for doc in reversed(docs)}
        assert docs == list(hold_out(first[name] for name in dict.fromkeys(doc.name for doc in docs)))


CHILD = """
import resource, sys
from pathlib import Path
import lab.data.cache, lab.data.tokenizer, tokenizers, tqdm, numpy
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
corpus = lab.data.load_corpus("text:" + sys.argv[1], tokenizer=sys.argv[2], cache=Path(sys.argv[3]))
print(peak() - before, len(corpus.train.ids) + len(corpus.validation.ids))
"""


@pytest.mark.processes
@pytest.mark.parametrize("cut_by", ["bytes", "bpe"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, cut_by: str) -> None:
    """A constant, whatever the size of the file; `ISTHMUS_TEXT_MB` tries a larger one than these 8 MB."""
    size = int(os.environ.get("ISTHMUS_TEXT_MB", "8")) * 1_000_000
    make_tokenizer(tmp_path / "bpe.json", "<|endoftext|>")
    name = cut_by if cut_by == "bytes" else str(tmp_path / "bpe.json")
    block = prose(100_000).encode()
    with open(tmp_path / "long.txt", "wb") as file:
        while file.tell() < size:
            file.write(b"%d " % file.tell() + block)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "long.txt", name, tmp_path / "cache"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak, tokens = map(int, done.stdout.split())
    assert tokens > size / 8
    assert peak < 200e6  # when texts were tokenised whole, a hundred times the size of the file


# --- knowing files again ----------------------------------------------------------------------------------------------


def test_same_size_and_time_but_other_content(tmp_path: Path) -> None:
    """A file whose size and time of change are what they were is read again all the same: its inode's time is not."""
    file = tmp_path / "one.txt"
    file.write_text("black sheep " * 300)
    before = os.stat(file)
    spec = f"text:{file}"
    first = load_corpus(spec, cache=tmp_path / "cache")
    file.write_text("white sheep " * 300)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(file)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = load_corpus(spec, cache=tmp_path / "cache")
    assert second.decode(second.train.ids).startswith("white")
    assert second.fingerprint != first.fingerprint


def test_a_replaced_file_is_another(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x")
    b.write_text("y")
    assert stamp(a)[1:] != stamp(b)[1:]
    before = stamp(a)
    os.utime(b, ns=(before[2], before[2]))
    os.replace(b, a)
    assert stamp(a) != before


def test_only_what_changed_is_read_again(tmp_path: Path, no_clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path / "in", 9)
    read: list[str] = []

    def counted(path: Path, *rest: Any) -> Scan:
        read.append(Path(path).name)
        return scan(path, *rest)

    monkeypatch.setattr(files, "scan", counted)
    spec = f"text:{tmp_path / 'in'}"
    first = read_corpus(spec, cache=tmp_path / "cache")
    assert len(read) == 9
    assert read_corpus(spec, cache=tmp_path / "cache").fingerprint == first.fingerprint
    assert len(read) == 9
    (tmp_path / "in" / "part0" / "3.txt").write_text("something else " * 50)
    assert read_corpus(spec, cache=tmp_path / "cache").fingerprint != first.fingerprint
    assert read[9:] == ["3.txt"]
    for known in (tmp_path / "cache" / "memo").iterdir():
        known.write_text('{"torn')
    read_corpus(spec, cache=tmp_path / "cache")
    assert len(read) == 19


def test_what_changed_just_now_is_not_trusted(tmp_path: Path) -> None:
    """A clock has ticks: two changes within one leave the same stamp."""
    file = tmp_path / "new.txt"
    file.write_text("x")
    assert not settled([stamp(file)])
    assert settled([("old", 1, 0, 0, 0)])
    assert scans([file], tmp_path / "memory") == [scan(file)]
    assert json.loads((tmp_path / "memory").read_text()) == {}


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")
    known = scan(file)
    for other in ("after!", "longer than before", "", "b\xe9fore"):
        file.write_bytes(other.encode("latin-1"))
        with fails("changed while it was read"):
            list(text_of(file, known))


# --- encodings --------------------------------------------------------------------------------------------------------

ODD = {
    "latin1.txt": ("caf\xe9 " * 60).encode("latin-1"),
    "cp1252.txt": "“quoted” ".encode("cp1252") * 60,
    "utf16.txt": ("plain " * 60).encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + ("plain " * 60).encode("utf-16-be"),
    "nul.txt": b"plain \0 words " * 60,
    "cut.txt": ("plain words " * 60 + "é").encode()[:-1],
}


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    write_texts(folder, 3)
    for name, data in ODD.items():
        (folder / name).write_bytes(data)
    (folder / "empty.txt").write_text(" \n")
    spec, cache = f"text:{folder}", tmp_path / "cache"
    with pytest.warns(
        UserWarning, match=r"6 of 10 files are left out.*cp1252.txt' \(not UTF-8 \(byte 0x93\)\).* 3 more$"
    ):
        corpus = load_corpus(spec, cache=cache)
    assert {Path(name).name for name in corpus.left_out} == set(ODD)  # nothing of the empty one is lost
    assert "UTF-16" in corpus.left_out[str(folder / "utf16.txt")]
    assert "zero bytes" in corpus.left_out[str(folder / "nul.txt")]
    with pytest.warns(UserWarning, match="6 of 10"):  # from the cache too
        assert load_corpus(spec, cache=cache).fingerprint == corpus.fingerprint
    for name in ODD:
        with fails(f"{name}' is empty or is not UTF-8 text .*iconv"):
            load_corpus(f"text:{folder / name}", cache=cache)
    with fails(r"has no text to read: 1 of 1 files are left out.*latin1.txt' \(not UTF-8 \(byte 0xe9\)\)"):
        load_corpus(f"text:{folder}/lat*.txt", cache=cache)
    (folder / "utf16.txt").unlink()
    with pytest.warns(UserWarning, match="5 of 9"):  # the same texts, so the same entry, and another note
        assert load_corpus(spec, cache=cache).folder == corpus.folder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(f"text:{folder}/part*/*.txt", cache=cache)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Ä word " * 90, encoding="utf-8")
    (tmp_path / "mark.txt").write_text("Ä word " * 90, encoding="utf-8-sig")
    (tmp_path / "only.txt").write_bytes(b"\xef\xbb\xbf")
    plain, mark = (load_corpus(f"text:{tmp_path}/{n}.txt", cache=tmp_path / "cache") for n in ("plain", "mark"))
    assert mark.decode(mark.train.ids).startswith("Ä word")
    assert np.array_equal(mark.train.ids, plain.train.ids)
    with fails("is empty"):
        load_corpus(f"text:{tmp_path}/only.txt", cache=tmp_path / "cache")


# --- odd paths --------------------------------------------------------------------------------------------------------


def test_finder_is_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import glob

    for name in (
        "a.txt",
        "b.md",
        "sub/a.txt",
        "sub/deep/c.txt",
        "sub/.hidden/d.txt",
        ".e.txt",
        "sub2/f[1].txt",
        "x/y/z/a.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "sub2")
    monkeypatch.chdir(tmp_path)
    for pattern in ("*", "**", "**/*.txt", "*/*.txt", "sub/**/c.txt", "s?b*/[a-f]*.txt", "**/.hidden/*", ".*", "*/f[[]1].txt",
                    f"{tmp_path}/**/a.txt", "sub/../*.md", "nothing/*", "link/*", "*.txt/*"):  # fmt: skip
        wanted = {os.path.realpath(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
        assert {os.path.realpath(p) for p in Finder("test").fits(pattern)} == wanted, pattern
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert {p.name for p in Finder("test").fits("**/c.txt")} == {"c.txt"}  # and it comes to an end
    monkeypatch.setattr(files, "MOST", 5)
    for spec in ("text:**", "text:.", f"text:{tmp_path}", "text:**/*.txt", f"hub:{tmp_path}"):
        with fails("has more than 5 files and folders to look at: name a smaller folder"):
            open_source(spec)


def test_the_whole_file_system_is_no_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.MOST == 250_000  # three seconds on a quiet machine
    monkeypatch.setattr(files, "MOST", 10_000)
    with fails("has more than 10,000 files and folders"):
        load_corpus("text:/**")


def test_homes_that_there_are_not(tmp_path: Path) -> None:
    for spec in ("text:~nobody-of-that-name/x", "hub:~nobody-of-that-name/x"):
        with fails("no home of '~nobody-of-that-name': write the path in full"):
            load_corpus(spec, cache=tmp_path)
    with fails("tokenizer: '~nobody-of-that-name'"):
        load_tokenizer("~nobody-of-that-name")
    assert expanded("~/x", "test") == Path.home() / "x"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/d\xe9"
    os.mkdir(folder)
    for name in (b"caf\xe9.txt", b"plain.txt"):
        Path(os.fsdecode(folder + b"/" + name)).write_text("some words " * 60, encoding="utf-8")
    Path(os.fsdecode(folder + b"/\xff.bin")).write_bytes(b"\0")
    corpus = read_corpus(f"text:{os.fsdecode(folder)}", cache=tmp_path / "cache")
    assert len(corpus.train.doc_start) == 2
    assert corpus.domains == ("d\udce9",)
    assert "\\udcff.bin" in corpus.note
    assert corpus.note.encode()
    again = read_corpus(f"text:{os.fsdecode(folder)}", cache=tmp_path / "cache")
    assert again.fingerprint == corpus.fingerprint


def test_commas_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "a", "c.txt", "d, e/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"this is {name} " * 40)

    def names(spec: str) -> list[str]:
        found = open_source(spec).files
        assert found is not None
        return sorted(name for _, name, _ in found.entries)

    assert names("text:a,b.txt") == ["a,b.txt"]  # that is there as it stands
    assert names(r"text:a\,b.txt") == ["a,b.txt"]
    assert names(r"text:a\,b.txt, c.txt,a") == ["a", "a,b.txt", "c.txt"]
    assert names(r"text:d\, e,c.txt") == ["c.txt", "d, e/f.txt"]
    assert names("text:a?b.txt") == ["a,b.txt"]
    assert names("text:a,c.txt") == ["a", "c.txt"]
    with fails(r"'b.txt' does not exist.*a comma in a name is written \\,"):
        names("text:a,b.txt,c.txt")


# --- odd tokenizers ---------------------------------------------------------------------------------------------------


def tokenizer_file(path: Path, model: dict[str, Any], **changes: Any) -> str:
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    whole = {"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": model} | changes
    path.write_text(json.dumps(whole), encoding="utf-8")
    return str(path)


BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
BPE |= {"fuse_unk": False, "byte_fallback": False, "merges": []}
WORDS_ALONE = {"pre_tokenizer": {"type": "Whitespace"}}
WITHOUT_UNKNOWN = {
    "word level": {"type": "WordLevel", "vocab": {"some": 0, "fox": 1}, "unk_token": "nope"},
    "word piece": {
        "type": "WordPiece", "vocab": {"some": 0}, "unk_token": "nope", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    },
    "unigram": {"type": "Unigram", "unk_id": None, "vocab": [["s", -1.0], ["o", -2.0]]},
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHOUT_UNKNOWN)
def test_tokenizers_without_an_unknown_token(tmp_path: Path, kind: str) -> None:
    from lab.data.tasks import load_task

    name = tokenizer_file(tmp_path / "t.json", WITHOUT_UNKNOWN[kind], **WORDS_ALONE)
    (tmp_path / "a.txt").write_text("some other words " * 50)
    with fails("has no tokens for this text .*nknown|unk.*: use one with an unknown token"):
        load_corpus(f"text:{tmp_path / 'a.txt'}", tokenizer=name, cache=tmp_path / "cache")
    with fails("has no tokens for this text"):
        load_task("packages", context=64, num_workers=2, tokenizer=name)
    if kind == "word level":  # it knows all the words of these
        (tmp_path / "known").mkdir()
        for i in range(20):
            (tmp_path / "known" / f"{i}.txt").write_text("some fox " * (i + 1) + "some " * 10)
        corpus = load_corpus(f"text:{tmp_path / 'known'}", tokenizer=name, cache=tmp_path / "cache")
        assert len(corpus.train.ids) + len(corpus.validation.ids) == 2 * 210 + 200


def test_odd_tokenizers(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    for model, message in (
        (BPE | {"vocab": {}}, "has no tokens at all"),
        (BPE | {"vocab": {"a": 0, "b": 2_000_000_000}}, "token 'b' has the id 2,000,000,000, and there are 2 tokens"),
        ({"type": "WordLevel", "vocab": {"[UNK]": 2**31}, "unk_token": "[UNK]"}, "has the id 2,147,483,648"),
        ({"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}, "cannot read tokenizer"),
        ({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}, "cannot read tokenizer"),
        (BPE | {"vocab": {"a": 0}, "merges": ["a b"]}, "cannot read tokenizer"),
        ([], "cannot read tokenizer"),
        (None, "cannot read tokenizer"),
    ):
        name = tokenizer_file(file, model)  # type: ignore[arg-type]
        with fails(message):
            load_corpus("grammar?tokens=6000&dialects=1&symbols=8", tokenizer=name, cache=tmp_path / "cache")
    for content in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 5000):
        file.write_bytes(content)
        with fails("cannot read tokenizer .*it is to be a tokenizer.json"):
            load_tokenizer(str(file))
    gaps = {"[UNK]": 5, **{w: 10 + 3 * i for i, w in enumerate("abcdefgh")}}
    name = tokenizer_file(file, {"type": "WordLevel", "vocab": gaps, "unk_token": "[UNK]"}, **WORDS_ALONE)
    assert load_tokenizer(name).vocab_size == 32  # gaps are fine


def test_dropout_of_a_tokenizer_is_turned_off(tmp_path: Path) -> None:
    model = BPE | {"dropout": 0.5, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    loaded = load_tokenizer(tokenizer_file(tmp_path / "t.json", model))
    assert loaded.encode(["ab" * 400])[0].tolist() == [2] * 400


# --- the hub ----------------------------------------------------------------------------------------------------------


def saved(folder: Path, labels: list[int | None], names: list[str] | None = None) -> str:
    import datasets

    kind = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    rows = {"text": [f"sentence number {i}" for i in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return f"hub:{folder}?domain=label"


@pytest.mark.parametrize("streaming", ["", "&streaming=true"])
def test_rows_without_a_label(tmp_path: Path, streaming: str) -> None:
    for missing in (-1, None):
        spec = saved(tmp_path / f"classes{missing}", [0, 1, missing] * 10, ["neg", "pos"])
        with fails(f"column 'label' of split 'train' has no label in row 2 \\(it is {missing}\\): choose another"):
            load_corpus(spec + streaming, cache=tmp_path / "cache")
    spec = saved(tmp_path / "words", ["a", None, "b"] * 10)  # type: ignore[list-item]
    with fails("has no label in row 1"):
        load_corpus(spec + streaming, cache=tmp_path / "cache")
    assert load_corpus(spec.partition("?")[0] + f"?{streaming}", cache=tmp_path / "cache").domains == ("all",)


def test_columns_with_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "signs"
    folder.mkdir()
    row = {"c++ code": "plus", "a&b": "and", "50%": "percent", "x=y": "equals"}
    (folder / "train.jsonl").write_text(
        "\n".join(json.dumps({k: f"{v} {i} " * 9 for k, v in row.items()}) for i in range(30))
    )
    for column, word in (
        ("c++ code", "plus"),
        ("c%2B%2B%20code", "plus"),
        ("a%26b", "and"),
        ("50%", "percent"),
        ("x=y", "equals"),
    ):
        corpus = load_corpus(f"hub:{folder}?column={column}", cache=tmp_path / "cache")
        assert corpus.decode(corpus.train.ids).startswith(word)


def test_hub_never_leads_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a name is one, or a folder below; elsewhere only by a whole path."""
    (tmp_path / "in" / "own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in")
    for target in ("../..", "..", "./..", "own/..", "own/../..", "own/../../in", "../in/own", "nothing/../.."):
        with fails("leads out of .*: give owner/name, a folder below it, or the whole path of a folder"):
            open_source(f"hub:{target}")
    for target in ("a b", "a/b/c", "a//b", "https://x.org/y", "-x", "a\0b", ""):
        with fails("is no name on the hub|names nothing to read"):
            open_source(f"hub:{target}")
    assert hub_folder("own") == Path.cwd() / "own"
    assert hub_folder(f"{tmp_path}/in/../in/own") is not None
    assert hub_folder("./own") is not None
    assert hub_folder("owner/name") is None
    with fails("cannot read tokenizer 'hub:../..'"):
        load_tokenizer("hub:../..")


@pytest.mark.processes
def test_a_cache_of_the_hub_that_cannot_be_written(tmp_path: Path) -> None:
    """It is not the network that is to be checked then."""
    (tmp_path / "file").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "words and words"}\n' * 40)
    out = run(
        f"""
from pathlib import Path
from lab.data import load_corpus
from lab.ground.errors import RecipeError
try:
    load_corpus("hub:{tmp_path}/data", cache=Path({str(tmp_path / "cache")!r}))
except RecipeError as error:
    print(error)
""",
        HF_HOME=str(tmp_path / "file" / "below"),
    )
    assert "\n" not in out
    assert f"at '{tmp_path}/file" in out
    assert "HF_HOME names another folder" in out
    assert "check the name" not in out
