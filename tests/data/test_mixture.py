"""The mixture of four domains: its chains, sizes and domains of windows; and anchors that are set apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lab.data import load_corpus
from lab.data.domains import MOST, OTHERS, set_apart, taken_off, told_apart
from lab.data.mixture import NAMES, Mixture
from lab.data.splits import window_documents, window_domains
from lab.ground.errors import RecipeError

SMALL = Mixture(target=3, related=2, noise=0, unrelated=4, symbols=6, length=8, held_out=5)


def test_chains_are_what_they_are_called() -> None:
    tables = Mixture(likeness=0.7).tables()
    assert [*tables] == [*NAMES]
    for table in tables.values():
        np.testing.assert_allclose(table.sum(1), 1)
        assert (table > 0).all()
    assert np.ptp(tables["noise"]) == 0
    other = Mixture(likeness=0.0).tables()["related"]
    np.testing.assert_allclose(tables["related"], 0.7 * tables["target"] + 0.3 * other)
    assert np.array_equal(Mixture(likeness=1.0).tables()["related"], tables["target"])
    entropies = Mixture().entropies()
    assert entropies["noise"] == pytest.approx(np.log(48))
    assert entropies["target"] < entropies["related"] < entropies["noise"]


def test_sequences_are_as_many_and_as_long_as_is_asked_for() -> None:
    documents = [*SMALL.documents()]
    found = {(name, held): [d for d in documents if d[1] == name and d[3] == held] for name in NAMES for held in (0, 1)}
    assert {name: len(found[name, 0]) for name in NAMES} == dict(zip(NAMES, SMALL.sizes, strict=True))
    assert all(len(found[name, 1]) == 5 for name in NAMES)
    assert {len(text) for _, _, text, _ in documents} == {7}, "and one token ends it"


def test_a_domain_does_not_depend_on_the_others() -> None:
    alone = list(Mixture(target=3, related=0, noise=0, unrelated=0, symbols=6, length=8, held_out=5).documents())
    assert [d for d in alone if d[1] == "target"] == [d for d in SMALL.documents() if d[1] == "target"]


def test_every_window_is_one_sequence(tmp_path: Path) -> None:
    corpus = load_corpus("mixture?target=3&related=2&noise=1&unrelated=4&symbols=6&length=8&held_out=5", cache=tmp_path)
    domains = [corpus.domains[d] for d in window_domains(corpus.train, 8)]
    assert [domains.count(name) for name in NAMES] == [3, 2, 1, 3], "the last one lacks its last target"
    assert window_documents(corpus.train, 8).tolist() == [*range(9)]
    texts = {
        text for _, _, text, held in Mixture(0, 3, 2, 1, 4, symbols=6, length=8, held_out=5).documents() if not held
    }
    assert corpus.decode(corpus.train.ids[:7]) in texts


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("target=0&related=0&noise=0&unrelated=0", "no domain has any sequences"),
        ("likeness=2", "likeness=2.0 is out of range"),
        ("symbols=1", "symbols=1 is out of range"),
        ("held_out=1", "held_out=1 is out of range"),
        ("targets=3", "target"),
    ],
)
def test_what_is_no_mixture_says_so_in_one_line(options: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        load_corpus(f"mixture?{options}", cache=tmp_path)
    assert "\n" not in str(error.value)


def test_anchors_of_held_out_samples_and_what_is_scored_share_no_document() -> None:
    of = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
    document = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])  # those of domain 0: 0, 1, 3, 4
    anchors, scored = set_apart(of, document, 0, 3, "x")
    assert {*document[anchors]} <= {0, 3}
    assert not {0, 3} & {*document[scored]}
    assert len(anchors) == 3
    assert {*scored} == {2, 3, 4, 5, 8, 9}
    with pytest.raises(RecipeError, match="'x' has 4 held-out samples for anchors"):
        set_apart(of, document, 0, 5, "x")


def test_anchors_of_one_document_are_its_first_half() -> None:
    anchors, scored = set_apart(np.zeros(6, int), np.zeros(6, int), 0, 3, "x")
    assert anchors.tolist() == [0, 1, 2]
    assert scored.tolist() == [3, 4, 5]


def test_anchors_taken_off_what_is_trained_on() -> None:
    of = np.array([1, 0, 1, 0, 1, 1])
    assert {*taken_off(of, 1, 2, "x")} <= {0, 2, 4, 5}
    with pytest.raises(RecipeError, match="'x' has 2 samples"):
        taken_off(of, 0, 2, "x")


def test_many_domains_are_told_as_a_few() -> None:
    names = [f"d{i}" for i in range(30)]
    of = np.repeat(np.arange(30), np.arange(1, 31))
    told, place = told_apart(names, of, ["d0"])
    assert len(told) == MOST
    assert told[-1] == OTHERS
    assert {"d0", "d29", "d16"} <= {*told}
    assert told[place[0]] == "d0"
    assert told[place[1]] == OTHERS
    assert told_apart(names[:3], of[of < 3], [])[0] == ("d0", "d1", "d2")
