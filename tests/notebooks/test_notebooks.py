"""Notebooks run from top to bottom with tiny parameters, end with their claims, and become pages that need no network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.study.claims import claims_in
from widgets.resting import MIME

NOTEBOOKS = sorted(Path("notebooks").glob("[0-9]*.ipynb"))
TINY = {
    "00_start_here": ["steps=12", "sync_every=2", 'corpus="grammar?tokens=40000"'],
    "02_fomoe": [
        "steps=4",
        "period=2",
        'seeds="0"',
        "timing_rounds=1",
        "timing_dim=32",
        'corpus="grammar?tokens=40000"',
    ],
    "03_prelort": [
        "steps=4",
        "period=2",
        'seeds="0"',
        'ranks="4,2,2,1"',
        'start=""',
        "context=64",
        "examples=6",
        "toy_rounds=2",
        "toy_size=16",
    ],
    "01_des_loc": ["steps=4", "base=1", 'long="2,4"', 'seeds="0"', "toy_steps=384", 'corpus="grammar?tokens=40000"'],
    "04_mt_dao": ["steps=4", "period=2", "long=3", 'seeds="0"', "toy_rounds=12", 'corpus="grammar?tokens=40000"'],
    "05_lordo": ["steps=8", "period=2", 'ranks="4"', 'seeds="0"', "toy_rounds=6", 'corpus="grammar?tokens=40000"'],
    "06_photon": ["steps=8", "period=4", 'rates="0.003"', 'seeds="0"', 'corpus="grammar?tokens=40000"'],
    "08_federation": [
        "rounds=8",
        "local_steps=2",
        'seeds="1"',
        'few_seeds="1"',
        'rates="0.1,0.3"',
        "clients=24",
        'rows="2,4,6"',
        'few="8,4"',
        "wave_rounds=2",
        "wave_rows=3",
    ],
    "11_your_own": ["steps=8", "sync_every=2", "processes=1"],
    "10_lesson_1_rarely": ["steps=6", "live_steps=6", 'corpus="grammar?tokens=40000"'],
    "10_lesson_2_links": ["live_steps=6", 'corpus="grammar?tokens=40000"'],
    "10_lesson_3_less": [
        "steps=6",
        "period=2",
        'seeds="0,1"',
        "toy_rounds=2",
        "speed=200.0",
        'corpus="grammar?tokens=40000"',
    ],
    "10_lesson_4_who": ["rounds=4", 'seeds="1,2"', "clients=24", "rows=4", "speed=200.0"],
    "12_sparsyfed": [
        "steps=8",
        "period=2",
        'seeds="0"',
        "clients=12",
        "hidden=8",
        "examples=6",
        'sparsities="0.5"',
        "ramp=2",
    ],
    "13_worldlm": ["steps=4", "period=2", 'seeds="1"', 'noises="0.1"', "toy_rounds=2", "tokens=90000"],
    "14_fedanchor": ["steps=16", 'seeds="0"', 'few="2"', "labelled=3", "clients=12", "hidden=8", "toy_steps=8"],
    "15_fair_and_personal": [
        "image_steps=4",
        "text_steps=4",
        "period=2",
        'seeds="0"',
        'text_seeds="0"',
        "clients=12",
        "adapt_steps=1",
        "local_steps=2",
    ],
    "17_adapt": ["steps=4", 'seeds="1"', 'link_seeds="1"', "period=1", "dim=16", "anchors=4"],
    "19_lunar": [
        'seeds="1"',
        'overrides="data.subjects=6 data.attributes=2 data.repeats=4 data.references=8 model.dim=16 model.num_layers=2 model.num_heads=2 model.mlp_dim=64 '
        'batch_size=8 steps=6 schedule.warmup=0 eval_every=0"',
        'rivals="refusal"',
        "epochs=1",
        "deep=1",
        "clients=2",
    ],
    "18_abbie": ["steps=4", 'seeds="1"', 'link_seeds="1"', "period=1", "dim=16", 'corpus="grammar?tokens=40000"'],
    "22_nexa": [
        "updates=2",
        'seeds="1"',
        'prices="0,0.1,1"',
        "questions=16",
        'counts="5,10"',
        'adding_seeds="1"',
        "adding_questions=8",
        "adder_steps=10",
    ],
    "23_imitation_audit": [
        'targets="0,1,2"',
        'counts="0,2,4"',
        "texts=2",
        "dim=16",
        "steps=2",
        "most=1",
        "perturbations=1",
        "rounds=1",
        "local_steps=1",
        'noises="1.0"',
    ],
    "16_privacy_of_sensing": ["steps=4", "period=2", 'seeds="1"'],
    "21_for_real": ["steps=4", "first=0", 'rates="1000"', 'methods="DDP,DES-LOC"', "period=2", "batch=1"],
    "24_sites": ["steps=16", "first=0", "kill_after=4", "hold_after=4", "deadline=4.0", "batch=1"],
    "25_outside_evidence": ["steps=4", 'periods="1,2"', 'rates="0.1"', "dim=16", "context=16"],
    "26_scale": ['sizes="16x1"', "tokens=0.5", 'seeds="0"', "period=2", 'corpus="grammar?tokens=40000"', 'base=""'],
    "20_compare": [
        'methods="ddp,mt_dao,noloco"',
        "steps=16",
        'factors="1"',
        'seeds="1"',
        "copies=2",
        'corpus="grammar?tokens=40000"',
    ],
    "07_streaming_and_gossip": ["steps=8", "period=2", 'seeds="0"', "toy_rounds=4", 'corpus="grammar?tokens=40000"'],
}


def parsed(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_notebook_is_tested():
    assert {p.stem for p in NOTEBOOKS} == set(TINY)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_source_is_clean(path):
    """No outputs, no counts; a title with a question; one cell tagged ``parameters`` whose values are typed and explained."""
    cells = parsed(path)["cells"]
    assert all(not c.get("outputs") and not c.get("execution_count") for c in cells)
    assert "widgets" not in parsed(path)["metadata"]
    first = "".join(cells[0]["source"])
    assert first.startswith("# ")
    assert "**Question:**" in first
    assert "CPU cores" in first
    (parameters,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    for line in "".join(parameters["source"]).splitlines():
        assert re.match(r"\w+: (int|str|float|bool) = ", line), line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_is_judged_by_hand(path):
    """Every verdict comes from an interval, from counting, or from saying why there is none."""
    sources = ["".join(c["source"]) for c in parsed(path)["cells"]]
    assert re.findall(r"Claim\.(effect|every|exact)\(", sources[-1])
    assert not [s for s in sources if re.search(r"Claim\(|Claim\.judge", s)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem[:2] != "00" else pytest.mark.real_pages) for p in NOTEBOOKS],
)
def test_runs_ends_with_claims_and_makes_a_page(path, tmp_path):
    """Executed by `lab reproduce`; a second call does nothing; the page loads nothing from elsewhere."""
    arguments = ["reproduce", str(path), "--out", str(tmp_path / "out")]
    keeps = any("\nruns: str = " in "".join(cell["source"]) for cell in parsed(path)["cells"])
    for parameter in [*TINY[path.stem], *([f'runs="{tmp_path}/runs"'] if keeps else [])]:
        arguments += ["-p", parameter]
    out = CliRunner().invoke(main, arguments)
    assert out.exit_code == 0, out.output
    (executed,) = (tmp_path / "out").glob("*.ipynb")
    claims = claims_in(parsed(executed))
    assert claims is not None
    assert claims.notebook == path.stem
    assert f"what holds of the claims: {path.stem}" in out.output
    cells = parsed(executed)["cells"]
    assert "application/vnd.isthmus.claims+json" in cells[-1]["outputs"][0]["data"]
    assert not [o for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
    assert executed.stat().st_size < 400_000

    page = executed.with_suffix(".html").read_text()
    figures = sum(MIME in o.get("data", {}) for c in cells for o in c.get("outputs", []))
    assert figures >= 4
    assert page.count('<figure class="board">') == figures
    assert len(page.encode()) < 400_000
    assert not list(executed.parent.glob("*.js"))
    assert len(list(executed.parent.glob("*.svg"))) == figures
    outside = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert outside == []

    before = executed.read_bytes()
    again = CliRunner().invoke(main, arguments)
    assert "already done" in again.output
    assert executed.read_bytes() == before


@pytest.mark.slow
def test_a_failing_notebook_is_named_and_the_rest_goes_on(tmp_path):
    """Exit code 1 with notebook, cell and error; the next notebook is still executed. (Side by side: `test_sweep`.)"""

    def notebook(name: str, code: str) -> str:
        cell = {"cell_type": "code", "source": code, "metadata": {}, "outputs": [], "execution_count": None, "id": "a"}
        content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    bad, good = notebook("bad.ipynb", "1 / 0"), notebook("good.ipynb", "1 + 1")
    out = CliRunner().invoke(main, ["reproduce", bad, good, "--jobs", "1", "--out", str(tmp_path / "out")])
    assert out.exit_code == 1
    assert "bad: cell 1 raised ZeroDivisionError" in out.stderr
    assert "good: done" in out.output
