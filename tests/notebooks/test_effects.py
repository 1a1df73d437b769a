"""Effects of paired runs and the verdicts on them: worked by hand, against scipy, and as often wrong as they say."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import nct, t, ttest_1samp, ttest_rel

from lab.study.claims import MIME, Claim, Claims, claims_in
from lab.study.effects import Effect, holm, paired_seeds, seeds_in

INF, NAN = math.inf, math.nan


def test_a_paired_t_by_hand() -> None:
    """Differences −3, −1, −2: mean −2, standard deviation 1, t(0.975; 2) = 4.302653; so −2 ± 4.302653 / √3."""
    effect = Effect((1.0, 4.0, 3.0), (4.0, 5.0, 5.0), 0.0)
    assert effect.pairs == (-3, -1, -2)
    assert effect.middle == -2
    assert effect.spread == 1
    low, high = effect.line_interval or (0, 0)
    assert low == pytest.approx(-2 - 4.302653 / 3**0.5, abs=1e-6)
    assert high == pytest.approx(-2 + 4.302653 / 3**0.5, abs=1e-6)
    assert effect.verdict == "inconclusive"  # the interval ends at +0.484
    assert effect.p == pytest.approx(float(ttest_rel(effect.treated, effect.control).pvalue), rel=1e-9)
    assert effect.measured == "−2.0 (−4.5 … +0.5), 3 pairs"


@pytest.mark.parametrize(
    ("says", "better", "margin", "verdict"),
    [
        ("better", "lower", 0.0, "holds"),  # the interval is −1.0 ± 0.23
        ("better", "lower", 0.7, "holds"),
        ("better", "lower", 1.0, "inconclusive"),
        ("better", "lower", 1.3, "contradicted"),  # lower, but not by what counts
        ("better", "higher", 0.0, "contradicted"),
        ("no worse", "lower", 0.0, "holds"),
        ("no worse", "higher", 0.7, "contradicted"),
        ("no worse", "higher", 1.0, "inconclusive"),
        ("no worse", "higher", 1.3, "holds"),
        ("equal", "lower", 1.3, "holds"),
        ("equal", "higher", 1.3, "holds"),
        ("equal", "lower", 1.0, "inconclusive"),
        ("equal", "lower", 0.7, "contradicted"),
    ],
)
def test_the_side_on_which_the_interval_lies(says: Any, better: Any, margin: float, verdict: str) -> None:
    effect = Effect((1.0, 1.1, 0.9, 1.15, 0.85, 1.0), (2.0, 2.2, 1.8, 2.0, 2.0, 2.0), margin, says, better)
    assert effect.verdict == verdict
    assert (effect.p < 0.05) == (verdict != "inconclusive")


def test_percent_and_times() -> None:
    """Percent of the control of the same seed; ratios by their logarithms, so that turning a ratio round turns its interval round."""
    percent = Effect((99.0, 202.0), (100.0, 200.0), 1.0, "no worse", scale="percent")
    assert percent.pairs == pytest.approx((-1, 1))
    ratios = Effect((20.0, 60.0, 24.0), (2.0, 4.0, 2.0), 5.0, better="higher", scale="times")
    assert math.exp(ratios.middle) == pytest.approx((10 * 15 * 12) ** (1 / 3))
    turned = Effect(ratios.control, ratios.treated, 5.0, better="lower", scale="times")
    assert [-x for x in reversed(turned.line_interval or ())] == pytest.approx(ratios.line_interval)
    assert (ratios.verdict, turned.verdict) == ("holds", "holds")
    assert ratios.what_counts == "more than 5 times higher"
    assert ratios.words(ratios.middle) == "12.2×"
    with pytest.raises(ValueError, match="above 0"):
        Effect((1.0,), (0.0,), 1.0, scale="percent")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((1.0,), (1.0, 2.0), 0.0), "no pairs"),
        (((), (), 0.0), "no pairs"),
        (((1.0,), (1.0,), -0.1), "margin"),
        (((1.0,), (1.0,), NAN), "margin"),
        (((1.0,), (1.0,), 0.5, "better", "lower", "times"), "margin"),
        (((1.0,), (1.0,), 0.0, "worse"), "use one of better, no worse, equal"),
    ],
)
def test_what_is_no_comparison(arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Effect(*arguments)


def test_what_has_no_interval_is_inconclusive_and_says_what_it_lacks() -> None:
    one = Effect((1.0,), (2.0,), 0.0)
    assert (one.verdict, one.line_interval, one.p) == ("inconclusive", None, 1)
    assert "one pair has no interval" in one.would_decide
    same = Effect((1.0, 2.0, 3.0), (2.0, 3.0, 4.0), 0.0)
    assert (same.verdict, same.line_interval) == ("inconclusive", None)
    assert "all 3 differences are the same" in same.would_decide
    rounded = Effect((0.3, 0.1), (0.2, 0.0), 0.0)  # 0.09999999999999998 and 0.1
    assert rounded.line_interval is None
    large = Effect((1e9 + 10, 1e9 + 30), (1e9, 1e9), 1, "equal", scale="times")  # the ratios differ by 2e-8
    assert large.line_interval is not None
    nothing = Effect((NAN, INF), (INF, NAN), 0.0)
    assert nothing.verdict == "inconclusive"
    assert "neither run of any pair gave a number" in nothing.would_decide
    assert "nan" not in nothing.measured


def test_a_run_that_diverged_is_worse_than_one_that_did_not() -> None:
    """Only signs count then: 5 pairs decide nothing, 6 do; the interval is that of the median; to be NaN is to have diverged."""
    five = Effect((1.0,) * 5, (INF, NAN, 2.0, 2.0, 2.0), 0.0)
    assert five.pairs == (-INF, -INF, -1, -1, -1)
    assert (five.verdict, five.line_interval) == ("inconclusive", None)
    assert "6 pairs" in five.would_decide
    six = Effect((1.0, 1.0, 1.0, 1.0, 1.0, 1.5), (INF, NAN, 2.0, 2.0, 2.0, 2.0), 0.25)
    assert six.line_interval == (-INF, -0.5)
    assert six.middle == -1
    assert six.verdict == "holds"
    assert six.p == 2 / 2**6
    assert six.measured == "median −1.00 (−∞ … −0.50), 6 pairs, 2 of 6 control runs without a number"
    against = Effect(six.control, six.treated, 0.0)
    assert (against.verdict, against.p) == ("contradicted", 2 / 2**6)
    one_tie = Effect((*six.treated[:-1], 2.0), six.control, 0.0)
    assert one_tie.verdict == "inconclusive"
    accuracy = Effect((NAN,) * 6, (0.5,) * 6, 0.0, better="higher")
    assert (accuracy.pairs, accuracy.verdict) == ((-INF,) * 6, "contradicted")
    left_out = Effect((1.0, INF, 1.2), (2.0, INF, 2.0), 0.0)
    assert len(left_out.pairs) == 2


def test_verdicts_err_as_often_as_they_promise() -> None:
    """Where the truth lies on the margin, one in twenty is decided, whatever is claimed; each interval covers it nineteen times."""
    rng = np.random.default_rng(0)
    for says, better, margin, truth in (
        ("better", "lower", 0.0, 0.0),
        ("better", "higher", 0.3, 0.3),
        ("no worse", "lower", 0.3, 0.3),
        ("equal", "lower", 2.0, -2.0),
    ):
        for num_pairs in (3, 5):
            control = rng.normal(3, 1, (2000, num_pairs))
            treated = control + truth + 0.4 * rng.standard_normal(control.shape)
            effects = [Effect(tuple(a), tuple(b), margin, says, better) for a, b in zip(treated, control, strict=True)]
            decided = sum(e.verdict != "inconclusive" for e in effects) / len(effects)
            assert 0.035 < decided <= 0.06, (says, num_pairs, decided)
            low, high = np.array([e.line_interval for e in effects]).T
            expected = ttest_1samp(treated - control, 0, axis=1).confidence_interval(0.95)
            np.testing.assert_allclose(low, expected.low, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(high, expected.high, rtol=1e-6, atol=1e-9)


def test_true_effects_are_found_as_often_as_computed() -> None:
    """Power: by simulation, by the noncentral t, and in the number of pairs that is asked for."""
    rng = np.random.default_rng(1)
    effect, spread, num_pairs = -0.5, 0.4, 6
    differences = effect + spread * rng.standard_normal((3000, num_pairs))
    found = [Effect(tuple(d), (0.0,) * num_pairs, 0.1).verdict for d in differences]
    away = (0.5 - 0.1) / spread * num_pairs**0.5
    power = 1 - nct.cdf(t.ppf(0.975, num_pairs - 1), num_pairs - 1, away)
    assert found.count("holds") / len(found) == pytest.approx(power, abs=0.03)
    assert found.count("contradicted") == 0

    seen = Effect((-0.9, -0.1, -0.5), (0.0,) * 3, 0.1)  # mean −0.5, spread 0.4
    assert seen.power(num_pairs) == pytest.approx(power)
    assert seen.num_pairs_to_decide == next(n for n in range(2, 99) if seen.power(n) >= 0.8) == 10
    assert "about 10 pairs" in seen.would_decide
    both = Effect((-0.9, -0.1, -0.5), (0.0,) * 3, 0.9, "equal")  # as far from the edge, and another edge far away
    assert both.power(num_pairs) == pytest.approx(power, abs=1e-3)
    hopeless = Effect((-0.9, -0.1, -0.5), (0.0,) * 3, 0.501)
    assert hopeless.num_pairs_to_decide is None
    assert "longer runs or a larger size" in hopeless.would_decide


def test_claims_of_several_effects() -> None:
    """All must hold; one that is contradicted contradicts, at 5 % divided by how many there are."""
    good = Effect((1.0, 1.1, 1.2), (2.0, 2.2, 2.1), 0.0, label="at 4")
    open_ = Effect((1.0, 3.0, 1.2), (2.0, 2.2, 2.1), 0.0, label="at 8")
    weak = Effect((3.0, 3.1, 3.4), (2.0, 2.5, 2.1), 0.0, label="at 16")  # p = 0.033
    strong = Effect((3.0, 3.2, 3.1), (2.0, 2.21, 2.1), 0.0, label="at 32")

    def of(*effects: Effect) -> Claim:
        return Claim.every("P", "a", "s", effects)

    assert of(good, good).verdict == "holds"
    assert of(good, open_).verdict == "inconclusive"
    assert "at 8: about" in of(good, open_).note
    assert "at 4" not in of(good, open_).note
    assert 0.025 < weak.p < 0.05
    assert [of(*x).verdict for x in ((weak,), (good, weak), (good, strong))] == [
        "contradicted",
        "inconclusive",
        "contradicted",
    ]
    assert "5 % for all of them together" in of(good, weak).note
    assert of(good, strong).p == pytest.approx(2 * strong.p)
    with pytest.raises(ValueError, match=r"Claim\.untested"):
        of()


def test_claims_of_several_effects_err_no_more_often() -> None:
    """Four effects, the truth of each on its margin: all must hold, or one be contradicted at a quarter of 5 %."""
    rng = np.random.default_rng(2)
    treated = 0.3 * rng.standard_normal((1500, 4, 5))
    verdicts = [
        Claim.every("P", "a", "s", [Effect(tuple(row), (0.0,) * 5, 0.0) for row in rows]).verdict for rows in treated
    ]
    assert 0.01 < verdicts.count("contradicted") / len(verdicts) < 0.04
    assert verdicts.count("holds") < 3


def test_counted_claims() -> None:
    assert Claim.exact("P", "a", "s", 16, 16).verdict == "exact"
    assert Claim.exact("P", "a", "s", 170.6667, 170.67, within=0.005).verdict == "exact"
    wrong = Claim.exact("P", "a", "s", 170.5, 170.67, within=0.005)
    assert (wrong.verdict, wrong.measured) == ("contradicted", "170.5, expected 170.67")
    assert Claim.exact("P", "a", "s", NAN, 1.0, within=1).verdict == "contradicted"
    assert Claim.exact("P", "a", "s", {"x": (1, 2)}, {"x": (1, 2)}, seen="all").measured == "all"
    assert Claim.exact("P", "a", "s", 1 < 2).verdict == "exact"
    assert Claim.untested("P", "a", "s", "no GPU").verdict == "not tested"
    with pytest.raises(ValueError, match="exact, holds, contradicted, inconclusive, not tested"):
        Claim("P", "a", "s", "m", "not reproduced")  # type: ignore[arg-type]


def test_many_looks_are_said() -> None:
    """Holm (1979) by hand: 0.01, 0.02, 0.03 of three become 0.03, 0.04, 0.04; a table says how many stay decided."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.6]) == [1, 1]
    rows = [
        Claim.effect("P", "a", "s", (1.0, 1.1, 1.6), (2.0, 2.2, 2.1), 0.0),  # p = 0.043
        Claim.effect("P", "b", "s", (1.0, 1.1, 1.2), (2.0, 2.11, 2.2), 0.0),
        Claim.effect("P", "c", "s", (1.0, 3.0, 1.2), (2.0, 2.2, 2.1), 0.0),
        Claim.effect("P", "d", "s", (1.0,), (2.0,), 0.0),
        Claim.exact("P", "e", "s", 1, 1),
    ]
    assert [c.verdict for c in rows] == ["holds", "holds", "inconclusive", "inconclusive", "exact"]
    looks = Claims("n", tuple(rows)).looks
    assert looks.startswith("3 claims are judged by 95 % intervals")
    assert "of the 2 that they decide, 1 stay decided after Holm's correction for 3 looks" in looks
    assert Claims("n", tuple(rows[3:])).looks == ""


def test_a_table_begins_with_its_answer() -> None:
    rows = (
        Claim.exact("P", "twice <as> few", "any", 2, 2),
        Claim.exact("P", "three times", "any", 2, 3),
        Claim.effect("P", "better", "any", [1.0, 1.1, 1.2], [2.0, 2.2, 2.1], 0),
        Claim.effect("P", "much better", "any", [1.0], [2.0], 0),
        Claim.untested("P", "faster", "GPUs", "no GPU"),
    )
    claims = Claims("n", rows)
    says = "So: of 5 claims 1 exact, 1 holds, 1 contradicted, 1 inconclusive, 1 not tested; not so: three times."
    assert claims.answer == claims.to_text().splitlines()[0] == says
    assert f"<b>{says}</b>" in claims.to_html()
    assert Claims("n", (Claim.exact("P", "a <b> c", "any", 2, 3),)).to_html().count("not so: a &lt;b&gt; c") == 1
    assert Claims("n", ()).answer == ""
    assert Claims("n", ()).to_text() == ""


def test_what_a_notebook_keeps_comes_back_and_what_it_kept_before_too() -> None:
    """Effects with runs that diverged are strict JSON; verdicts of earlier versions are inconclusive where they had no interval."""
    rows = (
        Claim.effect("P", "a", "s", (1.0, INF, 1.4), (2.0, 2.2, NAN), 0.1, claim="no worse", scale="percent", note="n"),
        Claim.every("P", "b", "s", [Effect((1.0, 1.1), (2.0, 2.2), 0.0, label="x"), Effect((1.0,), (2.0,), 3.0)]),
        Claim.exact("P", "c", "s", 1, 2),
    )
    kept = json.dumps(Claims("n", rows)._repr_mimebundle_()[MIME], allow_nan=False)
    found = claims_in({"cells": [{"outputs": [{"data": {MIME: json.loads(kept)}}]}]})
    assert found is not None
    assert [c.measured for c in found.rows] == [c.measured for c in rows]
    assert [[e.pairs for e in c.effects] for c in found.rows] == [[e.pairs for e in c.effects] for c in rows]
    assert found.to_html() == Claims("n", rows).to_html()

    def before(verdict: str) -> dict[str, str]:
        return {"paper": "P", "says": "a", "setting": "s", "measured": "m", "note": "", "verdict": verdict}

    old = [before(v) for v in ("exact", "holds", "not reproduced", "not tested here")]
    loaded = claims_in({"cells": [{"outputs": [{"data": {MIME: {"notebook": "n", "rows": old}}}]}]})
    assert loaded is not None
    assert [c.verdict for c in loaded.rows] == ["exact", "inconclusive", "inconclusive", "not tested"]
    assert loaded.rows[1].note == "judged without an interval then: holds"


def test_seeds_of_each_setting() -> None:
    assert paired_seeds("0,1,2", ["a", "b"]) == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert paired_seeds("5-7; 9,11-12", ["a", "b"]) == {"a": [5, 6, 7], "b": [9, 11, 12]}
    assert paired_seeds("4", ["a"]) == {"a": [4]}
    assert seeds_in("6-8, 3") == [6, 7, 8, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is none"),
        ("0,,1", "'' is none"),
        ("-3", "'-3' is none"),
        ("0,x", "'x' is none"),
        ("7-5", "each once, and a range from its lower end"),
        ("1,0-2", "each once"),
        ("0;1;2", "3 lists for 2 settings (a, b)"),
    ],
)
def test_what_is_no_list_of_seeds(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        paired_seeds(text, ["a", "b"])
