"""Each defence by itself: numbers worked by hand, and what has to hold by construction."""

from __future__ import annotations

import difflib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lab.data.tasks.authors import Authors, Message, messages
from lab.data.tasks.task import IGNORED
from lab.ground.seeds import numpy_generator
from lab.systems.imitation.detection import Looks, curvature, detected, likelihood_ratio, looks, perturbed
from lab.systems.imitation.provenance import Signed, Signer, accepted
from lab.systems.imitation.similarity import Copied, bleu, chrf, divergence
from lab.systems.imitation.verification import Features, Verifier, threshold_at
from lab.systems.imitation.watermark import Watermark, false_alarms_of
from tests.support.texts import fails

# --- verification -----------------------------------------------------------------------------------------------------

MINE = messages(8, 60, 0)


def texts(author: int, part: str) -> list[str]:
    return [m.text for m in MINE[author] if m.part == part]


def others(author: int, part: str) -> list[str]:
    return [t for a in range(8) if a != author for t in texts(a, part)]


FEATURES = Features([t for a in range(8) for t in texts(a, "train")])


@pytest.mark.parametrize("author", range(3))
def test_authors_are_told_apart(author: int) -> None:
    verifier = Verifier.fitted(FEATURES, texts(author, "train"), others(author, "train"), others(author, "calibration"))
    assert verifier.accepts(texts(author, "test")).mean() > 0.6
    assert verifier.accepts(others(author, "test")).mean() < 0.2
    assert verifier.accepts(others(author, "calibration")).sum() == 3  # of 70, at 5 %


@given(st.integers(1, 400), st.floats(0, 0.99), st.integers(0, 9))
def test_a_threshold_accepts_as_many_impostors_as_it_is_set_for(num: int, rate: float, seed: int) -> None:
    scores = numpy_generator(seed, "scores").permutation(num).astype(float)
    assert (scores > threshold_at(scores, rate)).sum() == int(rate * num + 1e-9)


def test_a_threshold_with_ties_accepts_no_more() -> None:
    assert threshold_at(np.array([1.0, 1.0, 1.0, 0.0]), 0.5) == 1.0
    with fails("of 0 impostors"):
        threshold_at(np.array([]), 0.05)


# --- likelihood -------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Logits that do not depend on what came before."""

    def __init__(self, logits: list[float]):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits.expand(*ids.shape, -1)


def test_log_likelihood_and_log_rank_by_hand() -> None:
    """Probabilities 1/2, 1/3, 1/6 of three tokens; the second row has one target that counts."""
    model = Fixed([math.log(3), math.log(2), math.log(1)])
    targets = torch.tensor([[0, 1, 2, 0], [IGNORED, 2, IGNORED, IGNORED]])
    seen = looks(model, torch.zeros(2, 4, dtype=torch.int64), targets)
    np.testing.assert_allclose(
        seen.log_p, [-(2 * math.log(2) + math.log(3) + math.log(6)) / 4, -math.log(6)], rtol=1e-6
    )
    np.testing.assert_allclose(seen.log_rank, [(math.log(2) + math.log(3)) / 4, math.log(3)], rtol=1e-6)


def test_likelihood_ratio_by_hand() -> None:
    own, base = Looks(np.array([-1.0, -3.0]), np.zeros(2)), Looks(np.array([-2.0, -1.0]), np.zeros(2))
    assert likelihood_ratio(own, base).tolist() == [1.0, -2.0]


def test_curvature_is_the_drop_around_a_text() -> None:
    """For a model to which a is likelier than b, b than c, words of a lie on a peak and words of c in a valley."""
    logits = [-30.0] * 256
    for token, x in (("a", 4.0), ("b", 2.0), ("c", 0.0), (" ", 0.0), ("\0", 0.0)):
        logits[ord(token)] = x
    found = [Message(0, "test", "x", text) for text in ("aa aa aa", "cc cc cc")]
    encode = Authors(authors=2, messages=6).encoder
    high, low = curvature(Fixed(logits), found, encode, ["bb"], times=2)
    # one word of three is another: two of nine bytes (the end counts) go from 4 to 2, or from 0 to 2
    assert (high, low) == (pytest.approx(4 / 9, rel=1e-5), pytest.approx(-4 / 9, rel=1e-5))
    changed = perturbed(found, ["bb"], 0.5, 3, 2)
    assert [m.text.count("bb") for m in changed] == [2, 2, 2, 2]
    assert changed == perturbed(found, ["bb"], 0.5, 3, 2)


def test_detected_by_hand() -> None:
    """Three pairs of four in the right order; at no false alarm one of two is found."""
    seen = detected(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    assert (seen.auroc, seen.found) == (0.75, 0.5)


# --- watermark --------------------------------------------------------------------------------------------------------


def test_z_by_hand() -> None:
    mark = Watermark(gamma=0.25)
    assert mark.z(np.array([34.0, 25.0]), np.array([100.0, 100.0])).tolist() == [9 / math.sqrt(18.75), 0.0]
    assert mark.z(np.array([0.0]), np.array([0.0])).tolist() == [0.0]
    assert false_alarms_of(0.0) == 0.5
    assert false_alarms_of(1.6449) == pytest.approx(0.05, abs=1e-4)


def test_green_lists() -> None:
    """Exactly γ·V tokens, others after each context, others with each key, and each token about equally often."""
    mark, contexts = Watermark(gamma=0.5), torch.randint(256, (2000, 3), generator=torch.Generator().manual_seed(0))
    green = mark.green(contexts, 256)
    assert green.sum(1).eq(128).all()
    assert torch.equal(green, mark.green(contexts, 256))
    assert abs(float((green == replace(mark, key=1).green(contexts, 256)).float().mean()) - 0.5) < 0.01
    assert abs(float((green[:1] == green[1:]).float().mean()) - 0.5) < 0.01
    assert (green.float().mean(0) - 0.5).abs().max() < 5 * 0.5 / 2000**0.5
    only_last = Watermark(width=1).green(torch.tensor([[7], [7], [8]]), 256)
    assert torch.equal(only_last[0], only_last[1])
    assert not torch.equal(only_last[1], only_last[2])


def drawn(mark: Watermark | None, num: int = 40, length: int = 100) -> tuple[Tensor, Tensor]:
    """Rows of tokens that are all equally likely, with or without a mark."""
    g, ids = torch.Generator().manual_seed(1), torch.randint(64, (num, 3), generator=torch.Generator().manual_seed(2))
    for _ in range(length):
        logits = torch.zeros(num, 64)
        p = (mark.biased(logits, ids) if mark else logits).softmax(1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=g)], 1)
    targets = ids[:, 1:].clone()
    targets[:, :2] = IGNORED
    return ids[:, :-1], targets


def test_a_mark_is_found_where_there_is_one() -> None:
    """With δ = 2 and γ = ½ a token is green with e²/(1 + e²): after 100 of them z is 7.6 ± 0.65. Without one, or with another key, 0 ± 1."""
    mark = Watermark()
    green = math.exp(2) / (1 + math.exp(2))
    expected = (green - 0.5) * math.sqrt(100) / 0.5
    z = mark.scores(*drawn(mark), 64)
    assert abs(z.mean() - expected) < 5 * 2 * math.sqrt(green * (1 - green)) / math.sqrt(40)
    for without in (mark.scores(*drawn(None), 64), Watermark(key=5).scores(*drawn(mark), 64)):
        assert abs(without.mean()) < 5 / math.sqrt(40)
        assert 0.5 < without.std() < 1.5


def test_what_is_repeated_counts_once() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]])
    hits, total = Watermark().counted(ids[:, :-1], ids[:, 1:], 64)
    assert total.tolist() == [4.0]  # four places in a circle
    assert hits[0] == int(hits[0])


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_signature_is_refused_when_a_byte_changes() -> None:
    signer, other = Signer(3), Signer(4)
    message = signer.sign("Hi,\nI will call. Größe!")
    assert accepted(message, signer.public)
    raw = message.text.encode()
    for i in (0, 3, len(raw) - 1):
        changed = bytes([*raw[:i], raw[i] ^ 1, *raw[i + 1 :]]).decode(errors="replace")
        assert not accepted(message._replace(text=changed), signer.public)
    for i in (0, 63):
        wrong = bytes([*message.signature[:i], message.signature[i] ^ 1, *message.signature[i + 1 :]])
        assert not accepted(message._replace(signature=wrong), signer.public)
    assert not accepted(message._replace(author=4), signer.public)  # in another's name
    assert not accepted(message, other.public)
    assert not accepted(Signed(3, message.text, other.sign(message.text).signature), signer.public)
    assert not accepted(Signed(3, message.text, b""), signer.public)
    with fails("a public key of 3 bytes"):
        accepted(message, b"abc")


# --- similarity -------------------------------------------------------------------------------------------------------


def test_longest_common_substring_by_hand() -> None:
    copied = Copied(["the cat sat", "a dog ran far"])
    assert [copied.longest(t) for t in ("a cat sat up", "zzz", "", "the cat sat", "dog the")] == [8, 0, 0, 11, 4]
    assert copied.shares(["xcat", "", "zz"]).tolist() == [0.75, 0.0, 0.0]
    assert Copied([]).longest("abc") == 0


@given(st.text("ab ", max_size=12), st.lists(st.text("ab ", max_size=12), max_size=3))
def test_longest_common_substring_is_that_of_difflib(text: str, known: list[str]) -> None:
    wanted = [difflib.SequenceMatcher(None, text, k, autojunk=False).find_longest_match().size for k in known]
    assert Copied(known).longest(text) == max(wanted, default=0)


def test_divergence_by_hand() -> None:
    """All alike, nothing in common, and half of one: p = (1/2, 1/2), q = (1, 0)."""
    assert divergence(["abc"], ["abc", "abc"]) == 0.0
    assert divergence(["aaa"], ["bbb"]) == pytest.approx(1.0)
    assert divergence(["ab", "ac"], ["ab"], n=2) == pytest.approx(
        0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)) + 0.5 * math.log2(1 / 0.75)
    )
    assert divergence(["a"], ["b"]) == 0.0  # too short for any


def test_overlap_with_what_was_written() -> None:
    said = "I will send the report on monday"
    assert bleu([said], [said]) == pytest.approx(1.0)
    assert bleu(["no word of it is here at all"], [said]) < 0.1
    assert (chrf([said], [said]), chrf([""], [said])) == (pytest.approx(1.0), 0.0)
    assert 0 < chrf(["I will move the report"], [said]) < 1
