"""The panel of a run: buttons, knobs, one line that says how far it is, and pictures, in the cell that asks for it.

In front of a person the buttons and knobs are there while the run goes on; when it is over, one line of text takes their
place, so that a saved notebook holds no dead widget. Where a program executes the notebook there is only the line.
"""

from __future__ import annotations

import contextlib
import html
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anywidget
import ipywidgets
from IPython.display import display, update_display

from lab.costs.network import NETWORKS, human
from lab.events import Ended, Event, KnobChanged, WorkersChanged
from lab.ground.errors import LabError, RecipeError
from lab.runs.knobs import named_network, periods, validate_knob
from lab.runs.live import EventSink, Run
from lab.runs.progress import Progress, report
from widgets.answers import percent, plural
from widgets.communication_budget import Budget, CommunicationBudget
from widgets.forecasts import forecast
from widgets.moments import Moments
from widgets.routing_stability import RoutingStability
from widgets.time_axis import BAND, KNOB, OUTAGE
from widgets.training_losses import Losses
from widgets.view import BATCH, View, surroundings

STYLE = """<style>
.isthmus-panel { border-top: 1px solid var(--jp-border-color2, #ccc); padding: 4px 0; }
.isthmus-panel .widget-html-content { color: var(--jp-ui-font-color1, inherit); line-height: 1.4; }
.isthmus-panel td, .isthmus-panel th { padding-right: 12px; text-align: right; }
.isthmus-panel td:first-child, .isthmus-panel th:first-child { text-align: left; }
.isthmus-status { position: sticky; top: 0; z-index: 5; overflow: visible; background: var(--jp-layout-color0, Canvas); color: var(--jp-ui-font-color1, CanvasText);
  border-bottom: 1px solid var(--jp-border-color2, #ccc); }
.isthmus-status .widget-html, .isthmus-status .widget-html-content { height: auto; width: 100%; }
.isthmus-status progress { display: block; width: 100%; height: 6px; accent-color: var(--jp-brand-color1, #1976d2); }
.isthmus-knobs { overflow: visible; gap: 4px; }
.isthmus-key .widget-html-content { font-size: 13px; }
.isthmus-key i { display: inline-block; width: 12px; height: 12px; margin: 0 5px -2px 0; }
/* A panel and the pictures of its cell: how far it is above all, knobs at the left, pictures at the right; one column where the cell is narrow.
   What JupyterLab puts around the panel has no box of its own, so that its parts have places in the grid of the cell. */
.jp-Cell-outputWrapper:has(.isthmus-steering), .isthmus-cockpit { container-type: inline-size; }
.jp-OutputArea:has(> .jp-OutputArea-child .isthmus-steering) { display: grid; grid-template-columns: minmax(0, 1fr); align-items: start; overflow: visible; }
.jp-OutputArea-child.jp-OutputArea-child:has(.isthmus-steering), .jp-OutputArea-child > :has(.isthmus-steering),
  .jp-OutputArea-child :has(> .isthmus-steering), .jp-OutputArea-child .isthmus-steering { display: contents; }
.jp-OutputArea-child:has(.isthmus-steering) ~ .jp-OutputArea-child > .jp-OutputPrompt, .jp-OutputArea-child:has(.isthmus-steering) > .jp-OutputPrompt { display: none; }
.jp-OutputArea:has(> .jp-OutputArea-child .isthmus-steering) .jp-OutputArea-promptOverlay { display: none; }
.jp-OutputArea-child:has(.isthmus-cockpit), .jp-OutputArea-output:has(.isthmus-cockpit), .isthmus-cockpit, .isthmus-columns { overflow: visible; }
.isthmus-columns { display: grid; grid-template-columns: minmax(0, 1fr); }
@container (min-width: 780px) {
  .jp-OutputArea:has(> .jp-OutputArea-child .isthmus-steering), .isthmus-columns {
    grid-template-columns: 300px minmax(0, 1fr); column-gap: 8px; align-items: start; }
  .jp-OutputArea:has(> .jp-OutputArea-child .isthmus-steering) > .jp-OutputArea-child { grid-column: 2; }
  .isthmus-steering > .isthmus-status { grid-column: 1 / -1; grid-row: 1; }
  .isthmus-steering > .isthmus-knobs { grid-column: 1; grid-row: 2 / span 40; position: sticky; top: 46px; }
  .isthmus-columns > * { position: sticky; top: 46px; }
}
.isthmus-problem .widget-html-content { color: var(--jp-error-color1, #b00020); }
.isthmus-panel button:focus-visible, .isthmus-panel input:focus-visible, .isthmus-panel select:focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.isthmus-large, .isthmus-large .widget-html-content, .isthmus-large .widget-label, .isthmus-large button,
.isthmus-large input, .isthmus-large select, .isthmus-large table, .isthmus-large .widget-readout { font-size: 20px !important; }
.isthmus-large .jupyter-button, .isthmus-large input, .isthmus-large select { height: 40px; line-height: 36px; }
.isthmus-large .widget-inline-hbox { height: auto; }
.isthmus-large .isthmus-board { zoom: 1.5; }
.isthmus-large .isthmus-board select, .isthmus-large .isthmus-board input { font-size: 12px !important; height: auto; line-height: normal; }
.isthmus-large .isthmus-field { width: 430px !important; }
.isthmus-large .isthmus-field .widget-label { width: 200px !important; height: auto; }
.isthmus-large .isthmus-period { width: auto !important; }
.isthmus-large .isthmus-period input { min-width: 90px; }
</style>"""
# JupyterLab takes arrows and letters for commands of the notebook, whatever in it has the focus, unless that says that it wants them.
KEYS = """export default { render({ el }) {
  const own = (e) => e.target.setAttribute?.("data-lm-suppress-shortcuts", "true");
  const place = setInterval(() => {
    const panel = el.isConnected && el.closest(".isthmus-panel");
    if (!panel) return;
    panel.addEventListener("focusin", own);
    clearInterval(place);
  }, 50);
  return () => clearInterval(place);
} };"""
MOST_TOGGLES = 16  # workers with a switch each; of more, the one to kill is typed


class OwnKeys(anywidget.AnyWidget):
    """Nothing to be seen: within the panel that it is part of, keys belong to the field that has the focus."""

    _esm = KEYS


# What recipes call a thing, and what the screen calls it; in this order.
LABELS = (
    (r"(?:method\.)?sync_every\.(\w+)", r"\1 every"),
    (r"method\.sync_every", "params every"),
    (r"num_workers", "workers"),
    (r"(?<!local )\bsteps\b", "local steps"),
)


class Whole(ipywidgets.Text):
    """A field for a whole number, which keeps what was typed. A number field of the browser's drops signs: 3.7 becomes 37."""

    def __init__(self, number: int, **options: Any):
        super().__init__(str(number), continuous_update=False, **options)

    @property
    def number(self) -> int:
        """Also of ``1e3``, ``1_000`` and ``1,000``.

        Raises
        ------
        RecipeError
            if it is no whole number.
        """
        words = self.value.strip()
        digits = re.sub(r"[_, ]", "", words) if re.fullmatch(r"[+-]?\d{1,3}(([_, ])\d{3})(\2\d{3})*", words) else words
        if re.fullmatch(r"[+-]?\d+", digits):
            return int(digits)
        if re.fullmatch(r"[+-]?\d+\.?\d*([eE]\+?\d{1,2})?", digits) and float(digits).is_integer():
            return int(float(digits))
        raise RecipeError(f"{self.description} = {words or 'nothing'} is no whole number: write one, for example 8")


def on_screen(error: Exception) -> str:
    """An error in one line that names fields as the screen does, as HTML for a screen reader to say."""
    words = str(error)
    for name, label in LABELS:
        words = re.sub(name, label, words)
    return f'<span role="alert">{html.escape(words)}</span>'


class Refusals:
    """A line for what is refused, ``line``; empty while nothing is."""

    def __init__(self) -> None:
        self.line = ipywidgets.HTML()
        self.line.add_class("isthmus-problem")

    def attempt(self, do: Callable[[], None]) -> bool:
        """Do it; what is refused is said in the line."""
        try:
            do()
        except LabError as error:
            self.line.value = on_screen(error)
            return False
        self.line.value = ""
        return True


class Status:
    """A fold of events into the line that says how far a run is."""

    def __init__(self, run: Run):
        self.run, self.progress = run, Progress(run.recipe.steps)
        self.foreseen = 0  # bytes of all workers, by the dry run; 0 while not known
        self.views: Sequence[EventSink] = ()  # among them those with a budget

    @classmethod
    def of(cls, run: Run) -> Status:
        status = cls(run)
        status.add(*run.events)
        return status

    def add(self, *events: Event) -> None:
        for event in events:
            self.progress(event)

    @property
    def ended(self) -> Ended | None:
        return self.progress.ended

    def text(self) -> str:
        word = self.ended.status if self.ended is not None else self.run.status
        return f"{self.run.name}: {word} at {self.progress.text()}"

    def foresee(self) -> threading.Thread:
        """Count in a thread what the recipe will send; until that is known, and where it cannot be, nothing is said of it."""

        def count() -> None:
            with contextlib.suppress(Exception):  # the run says what is wrong with its recipe
                self.foreseen = sum(record.bytes_all for record in forecast(self.run.recipe).sent)

        thread = threading.Thread(target=count, name="forecast", daemon=True)
        thread.start()
        return thread

    def beyond(self) -> list[str]:
        """What the line does not say: steps left, and bytes against the forecast and the budget."""
        sent, left = self.progress.bytes_sent, self.progress.steps - self.progress.step
        said = [f"{plural(left, 'step')} left"] if left and self.ended is None else []
        if self.foreseen:
            said.append(f"{percent(sent / self.foreseen)} of {human(self.foreseen)} foreseen")
        for view in self.views:
            budget = Budget.of(view.budget) if isinstance(view, CommunicationBudget) else None
            if budget is not None and budget.in_bytes:
                said.append(f"{percent(sent / budget.amount)} of the budget of {budget.words}")
        return said

    def html(self) -> str:
        """All of it for a page, above a bar of the steps."""
        step, steps = self.progress.step, self.progress.steps
        words = html.escape(" · ".join([self.text(), *(part.replace(" ", "\u00a0") for part in self.beyond())]))
        label = html.escape(f"steps of {self.run.name}", quote=True)
        return f'{words}<progress value="{step}" max="{steps}" aria-label="{label}"></progress>'


KEY = (
    f'<i style="border-left: 2px dashed {KNOB}"></i>a knob was turned<br><i style="background: {BAND}; outline: 1px solid {OUTAGE}; outline-offset: -1px"></i>a worker is down<br>'
    '<i style="border-left: 1px solid currentColor; height: 6px; margin-bottom: 0"></i>a sync'
)  # of the marks in all pictures


class Controls:
    """Buttons and knobs of one run, ``steering``, and the line that says how far it is, ``line``; ``widget`` has both. Feed it with the run's events.

    Its callbacks may come from any thread: they only leave word with the run. What the run refuses is said in one line.
    """

    def __init__(self, run: Run, network: str | None = None):
        self.run, self._link = run, network  # what views price on at first
        self.status = Status(run)
        self.line = ipywidgets.HTML(self.status.html())
        self.refusals = Refusals()
        self.problem = self.refusals.line
        self._quiet = False  # a knob is being put back: no word to the run
        self.buttons = {
            "pause": self._button("Pause", "pause", "Wait before the next local step", run.pause),
            "resume": self._button("Go on", "play", "Go on after a pause", run.resume),
            "step": self._button("One step", "step-forward", "One local step, then pause", run.step),
            "sync": self._button(
                "To next sync", "fast-forward", "Go on up to the next sync, then pause", run.step_sync
            ),
            "stop": self._button("Stop", "stop", "End here and keep everything; starting again goes on", run.stop),
        }
        self.periods: dict[str, Whole] = {}
        self.workers: list[ipywidgets.ToggleButton] = []
        knobs = [] if run.is_replay else self._knobs()
        key = ipywidgets.HTML(KEY)
        key.add_class("isthmus-key")
        self.steering = ipywidgets.VBox([bar(self.buttons.values()), *knobs, self.problem, key, OwnKeys()])
        self.steering.add_class("isthmus-knobs")
        self.line.add_class("isthmus-status")
        self.widget = ipywidgets.VBox([ipywidgets.HTML(STYLE), self.line, self.steering])
        self.widget.add_class("isthmus-panel")
        self.widget.add_class("isthmus-steering")

    def _button(self, label: str, icon: str, hint: str, do: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, icon=icon, tooltip=hint, layout={"width": "auto"})
        button.on_click(lambda _: self.refusals.attempt(do))
        return button

    def _knobs(self) -> list[ipywidgets.Widget]:
        run = self.run
        factors = [2 ** (k / 2) for k in range(-8, 9)]
        self.lr = ipywidgets.Dropdown(  # a slider of ipywidgets has no name for a screen reader
            options=[(f"{factor:.3g}", factor) for factor in factors], value=1.0, description="lr ×",
            layout={"width": "200px"}, style={"description_width": "40px"},
            tooltip="Factor on the learning rate, from the next step on",
        )  # fmt: skip
        self.lr.observe(lambda change: self._turn(self.lr, change, lambda v: run.set(lr=v)), "value")
        networks = [*([] if self._link else [("a network …", "")]), *((name, name) for name in NETWORKS)]
        self.network = ipywidgets.Dropdown(
            options=networks, value=self._link or "", description="link", tooltip="What views price on",
            layout={"width": "200px"}, style={"description_width": "40px"},
        )  # fmt: skip
        self.network.observe(lambda change: self._turn(self.network, change, lambda v: run.set(network=v)), "value")
        now = periods(run.recipe.method)
        why_not = _refusal(run)
        for state, period in (now if isinstance(now, dict) else {"params": now} if now else {}).items():
            field = Whole(
                period, description=f"{state} every", disabled=bool(why_not), tooltip=why_not or f"Local steps between two syncs of {state}",
                style={"description_width": "initial"}, layout={"width": "170px"},
            )  # fmt: skip
            field.observe(
                lambda change, field=field, state=state: self._turn(
                    field, change, lambda _: run.set(sync_every={state: field.number})
                ),
                "value",
            )
            field.add_class("isthmus-period")
            self.periods[state] = field
        rows: list[ipywidgets.Widget] = [bar([self.lr, self.network]), bar(self.periods.values())]
        return [*rows, self._switches()]

    def _switches(self) -> ipywidgets.Widget:
        run, count = self.run, self.run.recipe.num_workers
        if count > MOST_TOGGLES:
            which = Whole(0, description="worker", layout={"width": "150px"})
            kill = self._button("Kill", "power-off", "Take this worker down", lambda: run.kill(which.number))
            revive = self._button("Revive", "plug", "Bring this worker back", lambda: run.revive(which.number))
            return bar([which, kill, revive])
        for w in range(count):
            switch = ipywidgets.ToggleButton(True, tooltip=f"Kill or revive worker {w}", layout={"width": "auto"})
            _show_worker(switch, w, up=True)
            switch.observe(
                lambda change, switch=switch, w=w: self._turn(
                    switch, change, lambda up: run.revive(w) if up else run.kill(w)
                ),
                "value",
            )
            self.workers.append(switch)
        return bar(self.workers)

    def _turn(self, widget: Any, change: Any, do: Callable[[Any], None]) -> None:
        """A knob was moved; where that is refused it goes back."""
        if self._quiet or change["new"] == "":
            return
        if not self.refusals.attempt(lambda: do(change["new"])):
            self._quiet = True
            widget.value = change["old"]
            self._quiet = False

    def add(self, *events: Event) -> None:
        """Take in a batch: one line is written for all of it."""
        self.status.add(*events)
        for event in events:
            if isinstance(event, WorkersChanged):
                for w, switch in enumerate(self.workers):
                    _show_worker(switch, w, up=w in event.up)
        if events:
            self.line.value = self.status.html()
        if self.status.ended is not None:
            for widget in _within(self.steering):
                if isinstance(widget, ipywidgets.Button | ipywidgets.ToggleButton | Whole):
                    widget.disabled = True
            if not self.run.is_replay:
                self.lr.disabled = True

    def close(self) -> None:
        """Nothing but the line is left."""
        gone = [w for child in self.widget.children if child is not self.line for w in _within(child)]
        self.widget.children = [self.line]
        for widget in gone:
            widget.close()


def _show_worker(switch: ipywidgets.ToggleButton, worker: int, up: bool) -> None:
    """A pressed switch without a colour is grey, as if it could not be used."""
    switch.description = f"worker {worker} {'up' if up else 'down'}"
    switch.button_style, switch.icon = ("success", "check") if up else ("", "times")


class _Panel:
    """The controls in a cell, and the line that takes their place when the run is over."""

    def __init__(self, run: Run, views: Sequence[EventSink]):
        self.controls = Controls(run)
        self.controls.status.views = views
        self.controls.status.foresee()
        self.display_id = uuid.uuid4().hex
        forms = self.controls.widget._repr_mimebundle_()
        data = dict(forms[0] if isinstance(forms, tuple) else forms)
        data["text/plain"] = f"{run.name}: its buttons and knobs need a front end with ipywidgets."
        display(data, raw=True, display_id=self.display_id)

    def add(self, *events: Event) -> None:
        self.controls.add(*events)
        if any(isinstance(event, Ended) for event in events):  # a page that was loaded again knows only the widget
            update_display({"text/plain": self.controls.status.text()}, raw=True, display_id=self.display_id)
            self.controls.close()


def panel(run: Run, views: Sequence[EventSink] = ()) -> None:
    """Show a run's buttons and the pictures of these views (default: `standard`) in this cell."""
    where, views = surroundings(), views or standard(run)
    moments = Moments()
    run.watch(moments)
    if where == "live":
        run.watch(_Panel(run, views))
    elif where == "batch":
        run.watch(_StatusLine(run))
    for view in views:
        if isinstance(view, View):
            view.moments = moments
            view.show()
    run.watch(*views, NetworkFollower(views))


def standard(run: Run) -> list[EventSink]:
    """The views that are shown where none are named."""
    views: list[EventSink] = [Losses(), CommunicationBudget()]
    return [*views, RoutingStability()] if run.recipe.experts is not None else views


class _StatusLine:
    """The line alone, for a notebook that a program executes: changed twice a second, and kept."""

    def __init__(self, run: Run):
        self.status, self.next = Status(run), 0.0
        self.display_id = uuid.uuid4().hex
        BATCH.show(self.display_id, {"text/plain": self.status.text()})

    def add(self, *events: Event) -> None:
        self.status.add(*events)
        if self.status.ended is not None or time.monotonic() >= self.next:
            self.next = time.monotonic() + 0.5
            report(self.status.text())
            BATCH.update(self.display_id, {"text/plain": self.status.text()})


class NetworkFollower:
    """Lets views that price on a network go over to the one that a knob was turned to."""

    def __init__(self, views: Sequence[EventSink]):
        self.views = [view for view in views if isinstance(view, View)]

    def add(self, *events: Event) -> None:
        turned = [e.value for e in events if isinstance(e, KnobChanged) and e.knob == "network"]
        name = named_network(turned[-1]) if turned else None
        for view in self.views:
            for control in view.controls():
                if control.name == "network" and name is not None and name in control.options:
                    view.choose("network", name)


def _refusal(run: Run) -> str:
    """Why the periods of this run cannot be changed; nothing if they can."""
    now = periods(run.recipe.method)
    try:
        validate_knob(run.recipe, "sync_every", now, {})
    except RecipeError as error:
        return str(error)
    return ""


def bar(widgets: Iterable[ipywidgets.Widget], align: str = "center") -> ipywidgets.Box:
    """Side by side, in several rows where the page is narrow."""
    return ipywidgets.Box(list(widgets), layout={"flex_flow": "row wrap", "align_items": align, "grid_gap": "4px"})


def _within(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """A widget and all inside it, with the models of their layout and style."""
    out = [w for child in getattr(widget, "children", ()) for w in _within(child)]
    out += [w for w in (getattr(widget, "layout", None), getattr(widget, "style", None)) if w is not None]
    return [*out, widget]
