"""A real JupyterLab: runs in the background, their pictures and buttons, and what the saved notebook holds in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from lab.events import Stepped
from lab.runs.folder import RunFolder
from lab.study.claims import MIME
from lab.study.predictions import KEPT, predictions
from lab.study.predictions import MIME as PREDICTED
from tests.support import ROOT, axe
from tests.support.browser import headless, needs_chromium
from tests.support.jupyter import JupyterLab, Notebook
from tests.support.stories import story
from widgets import View
from widgets.resting import MIME as MIME_AT_REST

pytestmark = [needs_chromium, pytest.mark.processes, pytest.mark.slow]

RESTING = {MIME_AT_REST, "image/svg+xml", "text/plain"}
REST, LIVE = ".isthmus-rest", ".isthmus-board:not(.isthmus-rest)"
START = """
import threading, time
from tests.support.pictures import endless
from widgets import Losses
go_on, view = threading.Event(), Losses()

def train():
    for k, event in enumerate(endless(1200)):
        view.add(event)
        if k % 40 == 39:
            time.sleep(0.02)
        while k == 800 and not go_on.wait(0.1):
            view.add()

thread = threading.Thread(target=train)
thread.start()
view
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    with headless() as chromium:
        server = JupyterLab(tmp_path_factory.mktemp("lab"), chromium)
        yield server
    server.close()


def kinds(outputs: list[dict[str, Any]]) -> list[set[str]]:
    return [set(output["data"]) for output in outputs]


@pytest.mark.parametrize("again", [False, True], ids=["watched", "loaded again"])
def test_live_then_at_rest(lab: JupyterLab, again: bool) -> None:
    """Other cells run meanwhile; a page that is loaded again is complete; the cell ends as one picture without a widget."""
    nb = lab.open(f"run-{again}.ipynb", [START, "1 + 1", "go_on.set(); thread.join()"])
    nb.run(0)
    nb.page.wait_for_selector("canvas")
    nb.run(1)
    assert nb.outputs(1)[0]["data"]["text/plain"] == "2"
    nb.until_held(380)
    if again:
        nb.save()
        nb.reload()
        nb.until_held(380)
    nb.page.locator(".isthmus-controls select").select_option("bytes")
    nb.page.wait_for_function("() => document.querySelector('canvas').ariaLabel.includes('bytes')")
    nb.run(2)
    nb.page.wait_for_selector(LIVE, state="detached")
    (output,) = kinds(nb.outputs(0))
    assert output == RESTING
    nb.page.wait_for_selector(f".jp-OutputArea {REST} canvas")
    saved = nb.save()
    assert "widgets" not in saved.metadata
    assert set(saved.cells[0].outputs[0]["data"]) == RESTING
    assert len(Path(nb.file).read_bytes()) < 100_000
    nb.close()
    reopened = lab.browser.new_page()
    reopened.goto(f"http://127.0.0.1:{lab.port}/lab/tree/{nb.file.name}?reset", wait_until="domcontentloaded")
    reopened.wait_for_selector(f".jp-OutputArea {REST} canvas", timeout=90_000)
    reopened.close()


RUN = """
import json, lab, lab.runs.live
from tests.support.recipes import recipe
from widgets import CommunicationBudget, Drift, Losses, SyncCalendar, Workers
before = globals().get("run")
method = {"name": "des_loc", "sync_every": {"params": 4, "exp_avg": 8}}
run = lab.start(recipe(method, steps=STEPS, eval_every=50, checkpoint_every=100, seed=SEED), name=NAME)
run.panel(Losses(), CommunicationBudget(run.recipe), SyncCalendar(run.recipe), Drift(), Workers(run.recipe))
"""
TELL = """
alive = [r.name for r in lab.runs.live._RUNS if not r.finished.is_set()]
turned = [[e.step, e.knob, e.value] for e in run.columns.turned]
print(json.dumps([run.status, run.t, before and before.status, alive, turned, len(run.columns.step)]))
"""


def cells(name: str, *more: str, steps: int = 20_000) -> list[str]:
    """A run of its own for every name: two kernels do not write into one folder."""
    filled = RUN.replace("NAME", repr(name)).replace("STEPS", str(steps)).replace("SEED", str(len(name)))
    return [filled, TELL, *more]


def at_rest(nb: Notebook, k: int = 0) -> int:
    """Every output of this cell is text or a picture with all its forms; returns how many pictures there are."""
    saved = nb.save()
    shown = [set(output["data"]) for output in saved.cells[k].outputs]
    assert "widgets" not in saved.metadata
    assert all(forms in (RESTING, {"text/plain"}) for forms in shown), shown
    return shown.count(RESTING)


def test_steered_by_hand(lab: JupyterLab) -> None:
    """Start, pause, a knob, stop; start again from the same cell while the run goes on; interrupt who waits for it."""
    nb = lab.open("steered.ipynb", cells("class", "await run"))
    nb.run(0)
    nb.until_held(3)
    status, t, before, alive, turned, _ = nb.ask(1)
    assert (status, before, alive, turned) == ("running", None, ["class"], [])

    nb.press("Pause")
    nb.page.wait_for_function("() => document.querySelector('.isthmus-panel').textContent.includes('paused at step')")
    (_, at, *_), (_, later, *_) = nb.ask(1), nb.ask(1)
    assert at == later > t
    period = nb.page.locator(".isthmus-period input").first
    period.fill("16")
    period.press("Enter")
    nb.press("worker 1 up")
    nb.press("One step")
    nb.page.wait_for_function(
        f"() => document.querySelector('.isthmus-panel').textContent.includes('paused at step {at + 1:,}')"
    )
    status, t, _, _, turned, _ = nb.ask(1)
    assert (status, t) == ("paused", at + 1)
    knobs = {knob: (step, value) for step, knob, value in turned if knob != "paused"}
    assert knobs == {"sync_every": (at + 1, {"params": 16, "exp_avg": 8}), "down": (at + 1, [1])}

    nb.press("Go on")
    nb.run(0)  # the same cell again: the run that goes on is stopped first, and goes on from there
    nb.until_held(at + 3)
    status, t, before, alive, *_ = nb.ask(1)
    assert (status, before, alive) == ("running", "stopped", ["class"])
    assert t > at
    assert nb.page.locator(".isthmus-board").count() == 5

    nb.begin(2)
    nb.wait("busy")
    nb.page.wait_for_timeout(500)
    nb.command("notebook:interrupt-kernel")
    nb.wait("idle")
    (error,) = nb.outputs(2)
    assert error["ename"] == "Interrupted"
    assert error["traceback"] == [f"Interrupted: {error['evalue']}"]
    assert "goes on from there" in error["evalue"]
    status, t, _, alive, _, num_rows = nb.ask(1)
    assert (status, alive, num_rows) == ("stopped", [], t)
    nb.page.wait_for_selector(LIVE, state="detached")
    assert at_rest(nb) == 5
    nb.close()


def test_two_notebooks_at_once(lab: JupyterLab) -> None:
    """Each has a kernel, runs and pictures of its own; what is stopped in one goes on in the other."""
    both = [lab.open(f"{name}.ipynb", cells(name)) for name in ("left", "right")]
    for nb in both:
        nb.begin(0)
    for nb in both:
        nb.until_held(3)
    left, right = both
    left.press("Stop")
    left.page.wait_for_selector(LIVE, state="detached")
    assert left.ask(1)[0] == "stopped"
    status, t, *_ = right.ask(1)
    assert status == "running"
    right.until_held(t + 3)
    for nb in both:
        nb.close()


REPLAY = """
import lab
from widgets import Drift, Knobs, Losses, SyncCalendar
again = lab.replay(STORED, 1.0, name="stored run")
again.panel(Losses(networks={}), SyncCalendar(), Drift(), Knobs())
"""
PLACES = """() => {
  const of = (found) => [...document.querySelectorAll(found)].map((el) => el.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom]);
  const [sides] = [[...document.querySelectorAll('.isthmus-board')].map((b) => JSON.stringify(b.held.panels[0].time?.sides))];
  return { boards: of('.isthmus-board'), knobs: of('.isthmus-knobs')[0], status: of('.isthmus-status')[0], notebook: of('.jp-WindowedPanel-outer')[0], sides };
}"""


def test_cause_and_effect_on_one_screen(lab: JupyterLab) -> None:
    """What the classroom replays: buttons beside pictures that stand above each other on one time axis, all within 1400 × 900; in
    a narrow page one column; the line that says how far it is stays in sight.
    """
    nb = lab.open("screen.ipynb", [REPLAY.replace("STORED", repr(str(STORED))).strip()])
    nb.page.set_viewport_size({"width": 1400, "height": 900})
    nb.run(0)
    nb.page.wait_for_function(
        "() => [...document.querySelectorAll('.isthmus-board')].filter((b) => b.held.panels[0]?.time).length === 4"
    )
    nb.press("Pause")
    seen = nb.js(PLACES)
    assert len({*seen["sides"]}) == 1
    assert len({(board[0], board[2]) for board in seen["boards"]}) == 1
    assert seen["knobs"][2] <= seen["boards"][0][0]
    assert seen["boards"][0][1] >= seen["status"][3] - 1
    assert seen["boards"][-1][3] <= seen["notebook"][3]
    part = "[...document.querySelectorAll('.isthmus-board .isthmus-panel')].map(({ picture }) => picture.axes.x).map((x) => [x.low, x.high])"
    nb.page.locator("canvas").nth(2).focus()
    (whole,) = {tuple(ends) for ends in nb.js(part)}
    nb.page.keyboard.press("+")  # a part of one picture is that part of all
    nb.page.wait_for_function(
        f"whole => {{ const now = {part}; return new Set(now.map(String)).size === 1 && now[0][0] > whole[0]; }}",
        arg=whole,
    )
    nb.page.locator("canvas").nth(2).focus()
    nb.page.keyboard.press("ArrowRight")
    nb.page.keyboard.press("Escape")
    nb.page.wait_for_function(f"whole => {part}.every((ends) => String(ends) === String(whole))", arg=whole)
    nb.page.set_viewport_size({"width": 800, "height": 900})
    nb.page.wait_for_function(f"() => {{ const p = ({PLACES})(); return p.boards[0][1] >= p.knobs[3] - 1; }}")
    nb.js("() => document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 350)")
    nb.page.wait_for_function(f"() => {{ const p = ({PLACES})(); return Math.abs(p.status[1] - p.notebook[1]) < 2; }}")
    nb.press("Stop")
    nb.page.wait_for_selector(LIVE, state="detached")
    assert at_rest(nb) == 4
    nb.close()


def test_the_cockpit(lab: JupyterLab) -> None:
    """Its controls stay in the page; what is saved while nothing runs holds words and pictures."""
    source = "import widgets\nfrom tests.support.recipes import recipe\nwidgets.cockpit(recipe(steps=60))"
    nb = lab.open("cockpit.ipynb", [source])
    nb.run(0)
    nb.press("Start")
    nb.page.wait_for_selector("canvas")
    nb.page.wait_for_selector(LIVE, state="detached")
    nb.page.wait_for_selector(f".jp-OutputArea {REST} canvas")
    assert at_rest(nb) == 2
    assert nb.file.stat().st_size < 300_000
    assert "done at step 60 of 60" in nb.save().cells[0].outputs[0]["data"]["text/plain"]
    assert nb.page.locator(".isthmus-panel button", has_text="Start").first.is_enabled()
    nb.close()


def test_two_runs_in_the_cockpit(lab: JupyterLab) -> None:
    """What is typed stays and is answered under the name that stands beside it; what is chosen is forecast, never what was
    chosen before; two runs at once have a picture in common and one each, which stay.
    """
    source = "import widgets\nfrom tests.support.recipes import recipe\nwidgets.cockpit(recipe(steps=100_000, checkpoint_every=1000), recipe('ddp', steps=100_000))"
    nb = lab.open("two.ipynb", [source])
    nb.run(0)
    page = nb.page
    says = "words => document.querySelector('.jp-OutputArea .isthmus-panel').textContent.includes(words)"
    forecast = "() => document.querySelectorAll('.isthmus-panel table').length === 2"
    page.wait_for_function(forecast)
    workers = page.get_by_label("workers", exact=True).first
    for typed, said in (("3.7", "workers = 3.7 is no whole number"), ("0", "workers = 0 is not allowed")):
        workers.fill(typed)
        workers.press("Enter")
        page.wait_for_function(says, arg=said)
        assert workers.input_value() == typed
    workers.fill("3e0")
    workers.press("Enter")
    page.get_by_label("method", exact=True).first.select_option("diloco")
    page.wait_for_function(says, arg="counting what it sends")
    page.wait_for_function(forecast)
    start = page.locator(".isthmus-panel button", has_text="Start")
    start.nth(0).click()
    page.wait_for_selector("canvas")
    start.nth(1).click()
    page.wait_for_function("() => document.querySelectorAll('.isthmus-board').length === 3")
    nb.until_held(10)
    titles = page.locator(".isthmus-board h3").all_text_contents()
    assert titles == ["Does it learn?", "A: diloco · What does it send?", "B: ddp · What does it send?"]
    for k in (0, 1):
        page.locator(".isthmus-panel button", has_text="Stop").nth(k).click()
    page.wait_for_selector(LIVE, state="detached")
    page.wait_for_function("() => document.querySelectorAll('.isthmus-rest').length === 3")
    legend = page.locator(REST).first.evaluate(
        "el => el.held.panels[0].series.filter((s) => !s.faint).map((s) => s.name)"
    )
    assert legend == ["A: diloco", "B: ddp"]
    assert at_rest(nb) == 3
    assert "dropped" not in json.dumps(nb.save().cells[0].outputs)
    nb.close()


OWN = ROOT / "notebooks/11_your_own.ipynb"
LONGER = {"steps: int = 256": "steps: int = 20_000", "processes: int = 2": "processes: int = 1", '"../runs"': '"runs"'}
OWN_TELL = """
import json
turned = [[e.step, e.knob, e.value] for e in live.columns.turned if e.knob != "paused"]
print(json.dumps([live.status, live.t, turned, [w.message for w in live.columns.warnings], recipe.id]))
"""


def test_parts_of_ones_own_from_cells(lab: JupyterLab) -> None:
    """The notebook as it is: its run is paused, steered, stopped, and goes on from its checkpoint although the cell of its method was
    run again; the page is loaded again meanwhile. Then all of it with few steps, down to its claims.
    """
    notebook = nbformat.read(OWN, as_version=4)
    for old, new in LONGER.items():
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in (OWN_TELL, "steps = 16")]
    nbformat.write(notebook, lab.folder / OWN.name)
    *code, tell, few = (k for k, cell in enumerate(notebook.cells) if cell.cell_type == "code")

    def at(words: str) -> int:
        (k,) = (k for k in code if words in notebook.cells[k].source)
        return k

    method, recipe, live = at("class Tailwind"), at("recipe = lab.Recipe("), at('name="tailwind"')
    nb = lab.open(OWN.name)
    for k in code[: code.index(live) + 1]:
        nb.run(k)
    nb.until_held(3)
    nb.press("Pause")
    nb.page.wait_for_function("() => document.querySelector('.isthmus-panel').textContent.includes('paused at step')")
    (status, paused_at, turned, *_), (_, later, *_) = nb.ask(tell), nb.ask(tell)
    assert (status, turned) == ("paused", [])
    assert paused_at == later
    period = nb.page.locator(".isthmus-period input").first
    period.fill("4")
    period.press("Enter")
    nb.press("Go on")
    nb.until_held(paused_at + 3)
    nb.save()
    nb.reload()
    nb.until_held(paused_at + 6)
    status, _, turned, notes, name = nb.ask(tell)
    assert (status, turned, notes) == ("running", [[paused_at + 1, "sync_every", 4]], [])

    nb.press("Stop")
    nb.page.wait_for_selector(LIVE, state="detached")
    status, stopped_at, *_ = nb.ask(tell)
    assert status == "stopped"
    for k in (method, recipe, live):
        nb.run(k)
    nb.until_held(stopped_at + 3)
    status, t, _, notes, again = nb.ask(tell)
    assert (status, again) == ("running", name)
    assert t > stopped_at
    assert f"resumed after step {stopped_at}" in notes
    nb.press("Stop")
    nb.page.wait_for_selector(LIVE, state="detached")
    assert at_rest(nb, live) == 3

    nb.run(few)
    for k in code[code.index(recipe) :]:
        nb.run(k)
    claims = nb.outputs(code[-1])[0]["data"][MIME]
    assert [row["verdict"] for row in claims["rows"]] == ["exact"] * 7 + ["not tested", "inconclusive"]
    assert at_rest(nb, live) == 3
    nb.close()


def test_the_same_numbers_everywhere(lab: JupyterLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminal, papermill and JupyterLab, there with every view open: the same events, bit for bit."""
    nb = lab.open("same.ipynb", cells("same", "columns = await run", "print(run.folder.path.resolve())", steps=60))
    nb.run(0)
    nb.run(2)
    nb.run(3)
    folders = [Path(nb.outputs(3)[0]["text"].strip())]
    assert nb.page.locator(f".jp-OutputArea {REST} canvas").count() > 0
    nb.close()

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import papermill

    done = papermill.execute_notebook(nb.file, tmp_path / "out.ipynb", cwd=tmp_path, progress_bar=False)
    folders.append(Path(done.cells[3].outputs[0]["text"].strip()))
    assert [set(o["data"]) for o in done.cells[0].outputs].count(RESTING) == 5

    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RunFolder(folders[0]).recipe().to_dict()))
    command = [sys.executable, "-m", "lab", "run", str(recipe), "--runs", str(tmp_path / "terminal")]
    subprocess.run(command, check=True, capture_output=True)
    folders += (tmp_path / "terminal").iterdir()

    in_lab, *others = [story(RunFolder(folder).events()) for folder in folders]
    assert len({*folders}) == 3
    assert sum(isinstance(e, Stepped) for e in in_lab) == 60
    for other in others:
        assert other == in_lab


ASK = """
from widgets import Bars, Question
places = {f"K = {k}": Bars("How many?", "bytes", ["DDP", "other"], [8, k], ["8 B", f"{k} B"]) for k in (1, 2, 4)}
Question("How many?", "period", places, "K = 2", 2.0, "B")
"""
STORED = ROOT / "notebooks/stored/turned"
AT_REST = (
    f"from widgets import Losses; from lab.runs.folder import RunFolder; Losses.of(RunFolder({str(STORED)!r}).events())"
)
TALL = "k => document.querySelectorAll('.isthmus-rest canvas')[k].clientHeight"


CHOOSE = """
import widgets
from tests.support.recipes import recipe
from IPython.display import display
display(widgets.cockpit(recipe(steps=60)))
display(widgets.Question("Which?", "period", {"K = 1": widgets.Bars("?", "bytes", ["a"], [1], ["1 B"])}, "K = 1", "two", options=["one", "two"]))
"""
NAMED = """() => {
  const at = document.activeElement;
  return at.labels?.[0]?.textContent.trim() || at.getAttribute("aria-label") || at.textContent.trim();
}"""


def test_keyboard_and_screen_reader(lab: JupyterLab) -> None:
    """Tab goes through buttons, knobs, switches and menus, each with its name; they work without a mouse. axe-core finds nothing serious
    in panel, pictures, cockpit and questions, in either theme.
    """
    nb = lab.open("keys.ipynb", [*cells("keyboard"), ASK, CHOOSE])
    nb.run(0)
    nb.until_held(3)
    nb.run(2)
    nb.run(3)
    keys = nb.page.keyboard
    nb.page.locator(".isthmus-knobs button").first.focus()
    keys.press("Enter")
    nb.page.wait_for_function("() => document.querySelector('.isthmus-status').textContent.includes('paused at step')")
    _, at, *_ = nb.ask(1)
    nb.page.locator(".isthmus-knobs button").first.focus()
    reached = [nb.js(NAMED)]
    for _ in range(30):
        keys.press("Tab")
        reached.append(nb.js(NAMED))
    assert reached[:4] == ["Pause", "Go on", "One step", "To next sync"]
    needed = [
        "Stop",
        "lr ×",
        "link",
        "params every",
        "exp_avg every",
        "worker 0 up",
        "worker 1 up",
        "against",
        "show",
        "network",
        "budget",
    ]
    assert [name for name in needed if not any(r.startswith(name) for r in reached)] == []
    nb.page.get_by_label("lr ×").focus()
    keys.press("ArrowDown")
    nb.page.locator(".isthmus-knobs button", has_text="worker 1").focus()
    keys.press("Space")
    nb.page.locator(".isthmus-knobs button", has_text="One step").focus()
    keys.press("Enter")
    nb.page.wait_for_function(
        f"() => document.querySelector('.isthmus-status').textContent.includes('paused at step {at + 1:,}')"
    )
    _, _, _, _, turned, _ = nb.ask(1)
    assert [(knob, value) for _, knob, value in turned if knob != "paused"] == [("lr", 2**0.5), ("down", [1])]
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        nb.js("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        nb.page.wait_for_function(
            "dark => (document.body.dataset.jpThemeLight === 'false') === dark", arg="Dark" in theme
        )
        nb.page.wait_for_timeout(500)
        assert axe.serious(nb.page, ".jp-Cell-outputWrapper") == []
    nb.press("Stop")
    nb.close()


def test_predict_then_move_the_slider(lab: JupyterLab) -> None:
    """Enter in the field brings the picture in place of the widget; slider and menus at rest work and keep their height.

    Saved before, there are words: no dead widget.
    """
    nb = lab.open("ask.ipynb", [ASK, AT_REST])
    nb.run(0)
    nb.page.wait_for_selector(".isthmus-question input")
    (output,) = nb.save().cells[0].outputs
    assert output["data"] == {"text/plain": "How many?\nNo prediction yet: run this cell to predict."}
    nb.wait("idle")  # a key that is pressed while the cell still runs on a busy machine can be lost
    nb.page.locator(".isthmus-question input").fill("3")
    nb.page.locator(".isthmus-question input").press("Enter")
    slider = nb.page.locator(f"{REST} input[type=range]")
    slider.wait_for()
    nb.page.wait_for_function(AT_SLIDER)  # the keyboard goes on there, and with it which cell is active
    nb.run(1)
    menu = nb.page.locator(f"{REST} select")
    menu.wait_for()
    before = [nb.js(TALL, k) for k in (0, 1, 2)]
    slider.focus()
    slider.press("End")
    says = "words => [...document.querySelectorAll('.isthmus-rest canvas')].some((c) => c.ariaLabel.includes(words))"
    nb.page.wait_for_function(says, arg="other: 4 B")
    assert slider.get_attribute("aria-valuetext") == "K = 4"
    menu.select_option("bytes")
    nb.page.wait_for_function(says, arg="payload sent")
    assert [nb.js(TALL, k) for k in (0, 1, 2)] == before
    assert min(before) > 180
    saved = nb.save()
    assert "widgets" not in saved.metadata
    assert [set(cell.outputs[0]["data"]) for cell in saved.cells] == [RESTING | {PREDICTED}, RESTING]
    nb.page.close()


WHICH = """
from widgets import Bars, Question
places = {f"K = {k}": Bars("Which?", "bytes", ["a"], [k], [f"{k} B"]) for k in (1, 2)}
Question("Which?", "period", places, "K = 1", "two", options=["one", "two"])
"""
SAID = "words => document.getElementById('isthmus-said')?.textContent.includes(words)"
AT_SLIDER = "() => document.activeElement.type === 'range' && document.activeElement.closest('.jp-OutputArea')"


def tab_to(nb: Notebook, name: str) -> None:
    """Press Tab until what has this name has the focus."""
    for _ in range(40):
        nb.page.keyboard.press("Tab")
        if nb.js(NAMED).startswith(name):
            return
    raise AssertionError(f"{name} is not reached")


def test_a_question_is_answered_by_keys_and_kept(lab: JupyterLab) -> None:
    """Named fields, answers that are announced, the keyboard where the pictures are; saved, closed and opened again the answer is there;
    run again it is offered, and a second prediction is another one. axe-core finds nothing serious before or after.
    """
    nb = lab.open("kept.ipynb", [ASK, WHICH])
    keys = nb.page.keyboard
    nb.run(0)
    nb.run(1)
    nb.page.wait_for_function("() => document.querySelectorAll('.isthmus-question').length === 2")
    nb.wait("idle")
    assert axe.serious(nb.page, ".jp-Notebook .isthmus-question") == []
    nb.page.locator(".isthmus-question input").first.focus()
    assert nb.js(NAMED).startswith("Your prediction")
    keys.type("many")
    keys.press("Enter")
    alert = nb.page.locator(".isthmus-question [role=alert]").first
    nb.page.wait_for_function("() => document.querySelector('.isthmus-question [role=alert]').textContent")
    assert "no number greater than 0" in alert.text_content()
    assert nb.js("() => document.activeElement.getAttribute('aria-invalid')") == "true"
    keys.press("Control+a")
    keys.type("4")
    tab_to(nb, "Predict, then look")
    keys.press("Enter")
    nb.page.wait_for_function(SAID, arg="How many?: your prediction is 2 times too high.")
    nb.page.wait_for_function(AT_SLIDER)
    keys.press("ArrowRight")
    assert nb.js("() => document.activeElement.getAttribute('aria-valuetext')") == "K = 4"
    assert nb.js("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex") in (0, 1)

    tab_to(nb, "one")
    keys.press("ArrowDown")
    assert nb.js("() => document.activeElement.value") == "two"
    tab_to(nb, "Predict, then look")
    keys.press("Space")
    nb.page.wait_for_function(SAID, arg="Which?: right: you said two, the lab finds two.")
    nb.page.wait_for_function("() => document.querySelectorAll('.isthmus-rest').length === 2")
    assert axe.serious(nb.page, ".jp-Cell-outputWrapper") == []
    saved = nb.save()
    assert [p.said for p in predictions(saved)[0]] == [4.0, "two"]
    assert {*saved.metadata[KEPT]} == {"How many?", "Which?"}
    nb.close()

    nb = lab.open("kept.ipynb")
    nb.page.wait_for_function("() => document.querySelectorAll('.isthmus-rest').length === 2")
    assert nb.js("() => document.querySelector('.isthmus-rest canvas').ariaLabel").startswith(
        "K = 2: your prediction is 2 times too high"
    )
    nb.begin(0)
    again = nb.page.locator(".isthmus-question button", has_text="Look at it again")
    again.wait_for()
    nb.wait("idle")
    assert "You predicted 4 B on" in nb.page.locator(".isthmus-question").inner_text()
    again.focus()
    nb.page.keyboard.press("Enter")
    nb.page.wait_for_function(AT_SLIDER)
    assert len(nb.save().metadata[KEPT]["How many?"]) == 1
    nb.run(0)
    field = nb.page.locator(".isthmus-question input").first
    field.wait_for()
    nb.wait("idle")
    field.fill("2")
    field.press("Enter")
    nb.page.wait_for_function(SAID, arg="your prediction is right")
    nb.page.wait_for_function(AT_SLIDER)
    nb.command("notebook:clear-all-cell-outputs")
    saved = nb.save()
    assert [p.said for p in predictions(saved)[0]] == [4.0, "two", 2.0]
    nb.close()


# Every view, and every kind of picture that stands alone, at rest; the last cells run while another tab is in front.
MANY = """
import sys, time, lab
from tests.support.pictures import PICTURES, TABLES, audited, branched, compared, by_client, federation, iterated, levelled, masked, orchestrated, pseudo_labelled, routing, unlearned, weighed
from tests.support.recipes import recipe
from lab.runs.folder import RunFolder
from widgets import *
turned = list(RunFolder(STORED).events())
def late(show, *given):
    time.sleep(3)
    return show(*given)
"""
SHOWN = {
    "Losses": "Losses.of(turned)",
    "CommunicationBudget": "CommunicationBudget.of(turned)",
    "SyncCalendar": "SyncCalendar.of(turned)",
    "Drift": "Drift.of(turned)",
    "Workers": "Workers.of(turned)",
    "Knobs": "Knobs.of(turned)",
    "RoutingStability": "RoutingStability.of(routing())",
    "RankSegments": "RankSegments.of(federation())",
    "Fairness": "Fairness.of(by_client())",
    "MaskAgreement": "MaskAgreement.of(masked())",
    "Underperformers": "Underperformers.of(compared())",
    "Iterations": "Iterations.of(iterated())",
    "SampleWeights": "SampleWeights.of(weighed())",
    "AgentGraph": "AgentGraph.of(orchestrated())",
    "Unlearning": "Unlearning.of(unlearned())",
    "StyleLeak": "StyleLeak.of(audited())",
    "PseudoLabels": "PseudoLabels.of(pseudo_labelled())",
    "PrivacyLevels": "PrivacyLevels.of(levelled('by:person+sensor', groups=True))",
    "FederationTree": "FederationTree.of(branched())",
    "Lines": "PICTURES['losses']",
    "Bars": "PICTURES['bytes']",
    "Calendar": "PICTURES['calendar']",
    "Matrix": "TABLES['bands']",
    "Grid": "TABLES['table']",
    "Note": "TABLES['words']",
    "Question": "Question('How many?', 'K', {f'K = {k}': Bars('?', 'bytes', ['a'], [k], [f'{k} B']) for k in (1, 2)}, 'K = 1', 1.0, 'B', prediction=3)",
    "late Bars": "late(lambda: PICTURES['bytes'])",
    "late panel": "run = lab.start(recipe(steps=40), keep=False); run.panel(Losses(), Drift()); await run",
}
# Of every picture at rest in a cell: is it as wide as its place, how high, what it says, and whether anything is drawn.
LOOK = """(k) => [...(window.jupyterapp.shell.currentWidget.content.widgets[k]?.node.querySelectorAll('.isthmus-rest canvas') ?? [])].map((c) => ({
  fits: Math.abs(c.clientWidth - c.parentElement.clientWidth) < 2 && c.width === Math.round(c.clientWidth * window.devicePixelRatio),
  height: c.clientHeight,
  words: c.ariaLabel,
  inked: c.width > 0 && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, i) => i % 4 === 3 && v),
}))"""


@pytest.mark.parametrize("windowing", ["none", "contentVisibility", "full"])
def test_pictures_at_rest_stay_as_they_are(lab: JupyterLab, windowing: str) -> None:
    """Same height and content: run in a hidden tab, without the sidebar, from 600 to 2,500 pixels, after another tab, in both
    themes, and when the notebook is opened again, however JupyterLab treats cells out of sight.
    """
    nb = lab.open(f"rest-{windowing}.ipynb", [MANY.replace("STORED", repr(str(STORED))), *SHOWN.values()], windowing)
    nb.command("notebook:run-all-cells")
    nb.page.wait_for_function("() => document.querySelectorAll('.isthmus-rest').length >= 3")
    nb.away()
    nb.page.wait_for_function("num => document.querySelectorAll('.isthmus-rest').length >= num", arg=len(SHOWN) + 1)
    nb.back()
    nb.wait("idle")
    boards = [
        [
            json.loads(output["data"][MIME_AT_REST]["packed"])
            for output in nb.outputs(k)
            if MIME_AT_REST in output["data"]
        ]
        for k in range(1, len(SHOWN) + 1)
    ]
    assert [len(each) for each in boards] == [1] * (len(SHOWN) - 1) + [2]  # the panel has two
    shown = [[made["boards"][(made["control"] or {"value": ""})["value"]] for made in each] for each in boards]
    panels = [[panel for board in each for panel in board["panels"]] for each in shown]
    heights = [[panel["height"] for panel in each] for each in panels]
    words = [[panel["kind"] == "note" for panel in each] for each in panels]  # of which a narrow page makes more lines

    def settled() -> list[dict[str, Any]]:
        """Once every picture is as high as it was made, and as wide as its place where JupyterLab tells it of its place."""
        seen = []
        for k, high in enumerate(heights, start=1):
            if windowing == "full":
                nb.js("k => window.jupyterapp.shell.currentWidget.content.scrollToItem(k)", k)
            ready = f"([k, high, words, any]) => {{ const now = ({LOOK})(k); return now.length === high.length && now.every((p, i) => "
            ready += "(p.height === high[i] || words[i] && p.height > high[i]) && (p.fits && p.inked || any)); }"
            try:
                nb.page.wait_for_function(ready, arg=[k, high, words[k - 1], windowing != "none"], timeout=60_000)
            except Exception as error:
                raise AssertionError(f"{list(SHOWN)[k - 1]}, made {high} high: {nb.js(LOOK, k)}") from error
            seen += nb.js(LOOK, k)
        return [p["words"] for p in seen]

    first = settled()
    assert all(first)
    nb.command("application:toggle-left-area")
    assert settled() == first
    for width in (600, 2500, 1280):
        nb.page.set_viewport_size({"width": width, "height": 1000})
        assert settled() == first
    nb.away()
    nb.back()
    assert settled() == first
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        nb.js("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        assert settled() == first
    nb.save()
    nb.reload()
    assert settled() == first
    nb.close()


def test_no_view_is_left_out() -> None:
    """Whoever adds a view has it tried at rest above."""
    import widgets

    views = {
        name for name in widgets.__all__ if isinstance(it := getattr(widgets, name), type) and issubclass(it, View)
    }
    assert views - {"View"} <= set(SHOWN)
