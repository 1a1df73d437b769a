"""Pictures: plotly accepts them, the SVG says the same, and what they show is what the events say."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import plotly.graph_objects as go
import pytest

from lab.costs.network import Network
from lab.events import Evaluated, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from tests.support.pictures import PICTURES, RUNS, made_up
from widgets import Losses, bytes_sent, losses, over_rounds
from widgets.pictures import MAX_POINTS, Lines, Series, bundle, thin


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
def test_every_form_is_well_formed(picture):
    """Plotly's own validation takes the figure, the SVG is XML, both bear the title, and all of it is strict JSON."""
    forms = bundle(picture)
    assert go.Figure(picture.plotly()).layout.title.text == picture.title
    texts = [e.text for e in ET.fromstring(forms["image/svg+xml"]).iter() if e.tag.endswith("text")]
    assert picture.title in texts
    assert picture.title in forms["text/plain"]
    json.dumps(forms, allow_nan=False)


def test_the_forms_agree_on_names_and_values():
    """Series in the legend, labels of bars and rows of a calendar are the same in plotly and in SVG."""
    lines = PICTURES["losses"]
    named = [t["name"] for t in lines.plotly()["data"] if t["showlegend"]]
    assert named == list(RUNS)
    svg = [e.text for e in ET.fromstring(lines.svg()).iter() if e.text]
    assert all(name in svg for name in named)
    bars = PICTURES["bytes"]
    svg = [e.text for e in ET.fromstring(bars.svg()).iter() if e.text]
    assert bars.plotly()["data"][0]["text"] == list(bars.labels)
    assert all(label in svg for label in bars.labels)


def test_axes_carry_what_was_sent():
    """Against bytes, a run's points stand at the payload of all workers so far; against seconds, at the priced time."""
    run = RUNS["rarely"]
    assert run.payload_bytes[18:20].tolist() == [0, 2 * 1024]
    assert run.payload_bytes[-1] == 2 * 2 * 1024
    (line,) = (s for s in losses({"a": run}, "bytes").series if s.name == "agreed model")
    assert list(line.x) == [0, 2048, 2048, 4096]
    net = Network(bits_per_second=8 * 1024)  # one payload takes a second on a ring of two
    (line,) = (
        s
        for s in losses(RUNS, "seconds", network=net, compute_seconds=0.5).series
        if (s.name, s.faint) == ("rarely", False)
    )
    assert list(line.x) == pytest.approx([5, 11, 16, 22])


def test_losses_of_runs_that_are_over_are_those_of_the_view():
    """The same lines on the same axes, but that means of several runs are smoothed; what is no axis is refused."""
    for runs in ({"a": RUNS["rarely"]}, RUNS):
        view = Losses("tokens")
        view.runs = dict(runs)
        (shown,) = view.pictures()
        still = losses(runs, "tokens", title=shown.title)
        for ours, theirs in zip(still.series, shown.series, strict=True):
            assert (ours.faint, ours.colour) == (theirs.faint, theirs.colour)
            if not ours.faint or len(runs) == 1:
                assert ours.name == theirs.name
                np.testing.assert_array_equal(ours.x, theirs.x)
                np.testing.assert_array_equal(ours.y, theirs.y)
    steps = 200
    long = Columns.of(
        [RUNS["rarely"].started, *(Stepped(t, [float(t % 2)] * 2, 1.0, 0.1) for t in range(1, steps + 1))]
    )
    (mean, *_) = losses({"a": long, "b": long}).series
    assert len(mean.x) == len(mean.y) == steps - 2
    assert set(np.round(mean.y, 6)) == {round(1 / 3, 6), round(2 / 3, 6)}
    assert not any(s.faint for s in losses(RUNS, "bytes").series)  # where many steps stand at the same place
    with pytest.raises(ValueError, match="needs a network"):
        losses(RUNS, "seconds")
    with pytest.raises(ValueError, match="use one of steps, tokens"):
        losses(RUNS, "miles")


def test_bars_show_the_busiest_worker_and_the_ratio():
    bars = bytes_sent(RUNS)
    assert list(bars.values) == [40 * 1024, 2 * 1024]
    assert bars.labels[1] == "2.05 kB, 20.0× fewer"


def test_mean_loss_leaves_out_workers_that_are_down():
    assert made_up(1).loss[2] == pytest.approx(5 - 3 / 20)
    assert made_up(1).loss[3] == pytest.approx(5.1 - 4 / 20)


def test_thinning_keeps_ends_and_extremes():
    """A spike of one point survives in a line of 100 000."""
    y = np.zeros(100_000)
    y[31_415], y[27_182] = 7, -3
    x, thinned = thin(range(len(y)), y)
    assert len(x) <= MAX_POINTS + 2
    assert (x[0], x[-1]) == (0, len(y) - 1)
    assert max(thinned) == 7
    assert min(thinned) == -3
    assert x[thinned.index(7)] == 31_415


def test_points_above_each_other_stay_there():
    """Two seeds that cost the same: plotly takes a step of 0 for 1, so every place is written out."""
    (trace,) = Lines("Spread?", "x", "y", [Series("a", [3.0, 3.0], [1.0, 2.0])]).plotly()["data"]
    assert trace["x"] == [3.0, 3.0]
    assert "dx" not in trace


def test_over_rounds_means_over_seeds_and_each_of_them():
    """Two settings with two seeds, rounds of ten steps: the mean has a name in the legend, seeds are thin lines of its colour."""

    def run(accuracies):
        recipe = Recipe.of("local_sgd", ["method.sync_every=10", "steps=40"])
        started = Started(1, recipe.to_dict(), 10, [10] * 4, 64, None, 1.0, {})
        looks = [Evaluated(20 * (k + 1), 1.0, 0.0, {"accuracy": x}) for k, x in enumerate(accuracies)]
        return Columns.of([started, *looks])

    runs = {("a", 0): run([0.1, 0.2]), ("a", 1): run([0.3, 0.6]), ("b", 0): run([0.5, 0.5]), ("b", 1): run([0.7, 0.9])}
    picture = over_rounds(runs, "accuracy", "Which is better?")
    assert picture.names == ["a", "b"]
    assert [list(s.x) for s in picture.series] == [[2.0, 4.0]] * 6
    assert [(s.colour, s.faint) for s in picture.series] == [
        (0, True),
        (0, True),
        (0, False),
        (1, True),
        (1, True),
        (1, False),
    ]
    assert np.allclose(picture.series[2].y, [0.2, 0.4])
    assert np.allclose(picture.series[5].y, [0.6, 0.7])
