"""The cockpit: choose a run, see what it will send before it starts, steer it, and hold a second one beside it.

Everything is a real button, field or menu with a label, so that the keyboard reaches it. While runs go on, their pictures
are canvases in the cockpit; when they are over, pictures that a saved notebook keeps take their place below it.
"""

from __future__ import annotations

import html
import itertools
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import display, update_display

from lab.costs.network import NETWORKS, duration, human
from lab.data import CORPORA, corpora
from lab.events import Ended, Event
from lab.ground.errors import LabError
from lab.methods import METHODS, name_of, parse_method
from lab.recipes.presets import PRESETS
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.knobs import periods
from lab.runs.live import LIVE, Run, start
from lab.runs.plan import Plan, plan
from lab.study.tables import Entry, html_table
from widgets.communication_budget import CommunicationBudget
from widgets.moments import Moments
from widgets.panel import STYLE, Controls, NetworkFollower, OwnKeys, Refusals, Status, Whole, bar, on_screen
from widgets.static_fallback import StaticFallback
from widgets.training_losses import Losses
from widgets.view import View, surroundings

HERE = [name for name, preset in PRESETS.items() if "corpus" in preset]  # presets that train on a laptop
FREELY = ("method", "codecs", "scenario")  # what a preset brings along, and with experts or adapters:
MADE_FOR_IT = ("model", "placement", "lora")
DELAY = 0.3  # seconds after the last change until the forecast is made
SAVED = "The controls need a kernel: run this cell to have them back."
DEVICE = "laptop"  # what a worker is taken to compute with
COUNTING = '<span role="status">counting what it sends …</span>'


class Debounce:
    """Calls ``do`` in a thread of its own when nobody has asked again for ``delay`` seconds."""

    def __init__(self, do: Callable[[], None], delay: float = DELAY):
        self.do, self.delay = do, delay
        self.timer: threading.Timer | None = None

    def ask(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = threading.Timer(self.delay, self.do)
        self.timer.daemon = True
        self.timer.start()


_ONE_AT_A_TIME = threading.Lock()  # of forecasts, which would only slow each other down,
PATIENCE = 2.0  # but none waits longer for one that nobody waits for any more


class RunSetup:
    """What is chosen for one run, what it will send, and the run itself once it is started."""

    def __init__(self, letter: str, recipe: Recipe, cockpit: Cockpit):
        self.letter, self.given, self.cockpit = letter, recipe, cockpit
        self.run: Run | None = None
        self.label = f"{letter}: {name_of(recipe.method)}"  # of the run, in pictures
        self.views: list[View] = []  # that show this run alone
        self._asked = 0  # changes so far: only the forecast after the last one is shown
        mine = name_of(recipe.method)
        adapts = bool(recipe.lora.ranks)
        alike = [name for name in HERE if name in METHODS and ("lora" in PRESETS[name]) == adapts]
        names = [mine, *(name for name in alike if name != mine)]
        self.method = _field(ipywidgets.Dropdown(options=names, value=mine), "method")
        self.workers = _field(Whole(recipe.num_workers), "workers")
        self.steps = _field(Whole(recipe.steps), "local steps")
        corpora = dict.fromkeys([recipe.corpus, *(name for name in CORPORA if name in ("stdlib", "grammar"))])
        self.corpus = _field(ipywidgets.Combobox(options=list(corpora), value=recipe.corpus), "corpus")
        self.network = _field(ipywidgets.Dropdown(options=list(NETWORKS), value="100Mbit"), "link")
        self.periods: dict[str, Whole] = {}
        self.period_box = ipywidgets.VBox()
        self.forecast = ipywidgets.HTML()
        self.refusals = Refusals()
        self.problem = self.refusals.line
        self.go = ipywidgets.Button(
            description="Start",
            icon="play",
            button_style="primary",
            tooltip=f"Start run {letter}; one that was stopped goes on",
        )
        self.go.on_click(lambda _: self.refusals.attempt(self.start))
        self.controls = ipywidgets.VBox()
        self.line: ipywidgets.HTML | None = None  # how far the run is
        self.forecast_soon = Debounce(self.foresee)
        for field in (self.workers, self.steps, self.corpus, self.network):
            field.observe(lambda _: self._changed(), "value")
        self.method.observe(lambda _: self._other_method(), "value")
        self._show_periods()
        chosen = [self.method, self.workers, self.steps, self.corpus, self.network]
        title = ipywidgets.HTML(f"<b>Run {letter}</b>")
        rows = [title, self.controls, *chosen, self.period_box, bar([self.go]), self.problem, self.forecast]
        self.widget = ipywidgets.VBox(rows)
        self._changed()

    # choosing

    @property
    def recipe(self) -> Recipe:
        """What is chosen. Raises RecipeError where it makes no sense."""
        raw = self._with_method()
        chosen = {state: field.number for state, field in self.periods.items()}
        if chosen:
            several = isinstance(raw["method"].get("sync_every"), Mapping)
            raw["method"] = dict(raw["method"]) | {"sync_every": chosen if several else chosen["params"]}
        raw |= {"num_workers": self.workers.number, "steps": self.steps.number, "corpus": self.corpus.value}
        return Recipe.of(raw)

    def _with_method(self) -> dict[str, Any]:
        """What was given, with the method that is chosen and what its preset needs to go with it."""
        raw = self.given.to_dict()
        if self.method.value != name_of(self.given.method):
            preset = PRESETS[self.method.value]
            raw |= {"codecs": {}, "scenario": {}, "placement": {}}  # those are made for one method
            special = MADE_FOR_IT if "placement" in preset or "lora" in preset else ()
            brought = (*FREELY, *special)
            raw |= {key: preset[key] for key in brought if key in preset}
        return raw

    def _other_method(self) -> None:
        self._show_periods()
        self._changed()

    def _changed(self) -> None:
        """Something else is chosen: what was said of the choice before goes at once."""
        self._asked += 1
        self.forecast.value, self.problem.value = COUNTING, ""
        self.forecast_soon.ask()

    def _show_periods(self) -> None:
        """A field for each period of the method that is chosen."""
        self.periods = {}
        now = periods(parse_method(self._with_method()["method"]))
        for state, period in (now if isinstance(now, dict) else {"params": now} if now else {}).items():
            field = _field(Whole(period), f"{state} every")
            field.observe(lambda _: self._changed(), "value")
            self.periods[state] = field
        self.period_box.children = list(self.periods.values())

    def foresee(self) -> None:
        """Make the forecast for what is chosen, and show it unless something else was chosen meanwhile."""
        asked = self._asked
        alone = _ONE_AT_A_TIME.acquire(timeout=PATIENCE)
        try:
            if asked == self._asked:
                said, problem = self._foreseen()
                if asked == self._asked:
                    self.forecast.value, self.problem.value = said, problem
        finally:
            if alone:
                _ONE_AT_A_TIME.release()

    def _foreseen(self) -> tuple[str, str]:
        """The forecast, and why there is none."""
        try:
            corpora.check(self.corpus.value)
            network = self.network.value
            return to_html(plan(self.recipe, {network: NETWORKS[network]}, device=DEVICE)), ""
        except LabError as error:
            return "", on_screen(error)
        except Exception as error:  # there is no cell to say it in
            return "", on_screen(LabError(f"no forecast: {type(error).__name__}: {error}"))

    # running

    @property
    def is_running(self) -> bool:
        run = self.run
        return run is not None and not run.finished.is_set() and not any(isinstance(e, Ended) for e in run.events[-1:])

    def start(self) -> None:
        """Start what is chosen. A run of this recipe that was stopped goes on; one that is over is run anew."""
        recipe = self.recipe
        if self.run is not None:
            self.run.stop()
            self.run.over.result()
        folder = self.cockpit.folder / (recipe.id if self.letter == "A" else f"{recipe.id}-{self.letter.lower()}")
        ended = RunFolder(folder).ended()
        again = ended is not None and ended.status != "stopped"
        name = f"{name_of(recipe.method)} {self.cockpit.number}{self.letter}"
        self.cockpit.prepare(self, f"{self.letter}: {name_of(recipe.method)}")
        self.run = start(recipe, name=name, folder=folder, again=again, views=[self.cockpit.losses.lane(self.label)])
        controls = Controls(self.run, self.network.value)
        controls.status.views = self.views
        controls.status.foresee()
        self.controls.children, self.line = [controls.steering], controls.line
        self.cockpit.show_pictures()
        self.run.watch(self.cockpit.moments.lane(self.label))
        self.run.watch(*self.views, controls, NetworkFollower(self.views), _Ending(self.cockpit))


class _Ending:
    """Tells the cockpit when a run is over."""

    def __init__(self, cockpit: Cockpit):
        self.cockpit = cockpit

    def add(self, *events: Event) -> None:
        if any(isinstance(event, Ended) for event in events):
            self.cockpit.settle()


class Cockpit:
    """One or two setups, the pictures of their runs on shared axes, and a switch for large type. Made by `cockpit`."""

    counter = itertools.count(1)

    def __init__(self, recipes: Sequence[Recipe], folder: Path):
        self.folder, self.number = folder, next(self.counter)
        self.losses, self.moments = Losses(), Moments()
        self.pictures = ipywidgets.Output()
        self.display_ids: list[str] = []  # of the pictures that stay, once the cockpit is shown
        self.setups = [RunSetup(letter, recipe, self) for letter, recipe in zip("AB", recipes, strict=False)]
        self.lines = ipywidgets.VBox()
        self.lines.add_class("isthmus-status")
        self.row = ipywidgets.VBox([setup.widget for setup in self.setups])
        self.large = ipywidgets.ToggleButton(
            False, description="Large type", icon="text-height", tooltip="For a projector", layout={"width": "auto"}
        )
        self.large.observe(self._resize, "value")
        self.compare = ipywidgets.Button(
            description="Compare with another run", icon="columns", layout={"width": "auto"}
        )
        self.compare.on_click(lambda _: self.add_setup())
        self.compare.layout.display = "none" if len(self.setups) > 1 else ""
        top = bar([self.large, self.compare])
        self.fallback = StaticFallback(words=SAVED)
        columns = ipywidgets.Box([self.row, self.pictures])
        columns.add_class("isthmus-columns")
        self.widget = ipywidgets.VBox([ipywidgets.HTML(STYLE), top, self.lines, columns, OwnKeys(), self.fallback])
        self.widget.add_class("isthmus-panel")
        self.widget.add_class("isthmus-cockpit")
        self.fallback.controls = self.widget.model_id

    def add_setup(self) -> None:
        """A second run beside the first, at first with the same choices."""
        first = self.setups[0]

        def add() -> None:
            self.setups.append(RunSetup("B", first.recipe, self))
            self.row.children = [setup.widget for setup in self.setups]
            self.compare.layout.display = "none"

        if len(self.setups) == 1:
            first.refusals.attempt(add)

    def _resize(self, change: Any) -> None:
        (self.widget.add_class if change["new"] else self.widget.remove_class)("isthmus-large")

    def prepare(self, setup: RunSetup, label: str) -> None:
        """Before a run starts: pictures for it, and beside them those of the other, which goes on in them or stays in sight."""
        beside = [other for other in self.setups if other is not setup and other.run is not None]
        self.losses.leave(setup.label)
        self.moments.leave(setup.label)
        setup.label, setup.views = label, [CommunicationBudget(network=setup.network.value)]
        if not any(other.is_running for other in beside):
            self.losses, self.moments = Losses(), Moments()
            self.losses.lane(label)
            for other in beside:
                assert other.run is not None
                self.moments.add(*other.run.events, run=other.label)
                self.losses.lane(other.label).add(*other.run.events)
        for one in self.setups if len(self.setups) > 1 else ():
            for view in one.views:
                view.heading = one.label
        for view in self.shown():
            view.moments = self.moments

    def shown(self) -> list[View]:
        """The pictures of all runs that were started, first what they share."""
        return [self.losses, *(view for setup in self.setups for view in setup.views)]

    def show_pictures(self) -> None:
        self.fallback.words = ""  # whoever loads the page again while it runs finds the controls
        self.lines.children = [setup.line for setup in self.setups if setup.line is not None]
        self.pictures.clear_output()
        with self.pictures:
            for view in self.shown():
                view.show()
        self._keep([])

    def _keep(self, views: Sequence[View]) -> None:
        """These pictures, and no others, are where a saved notebook keeps them."""
        forms = [view.bundle() for view in views] if self.display_ids else []
        for k, display_id in enumerate(self.display_ids):
            update_display(forms[k] if k < len(forms) else {"text/plain": ""}, raw=True, display_id=display_id)

    def settle(self) -> None:
        """When the last run is over, its pictures move to where a saved notebook keeps them."""
        if not any(setup.is_running for setup in self.setups):
            lines = [Status.of(setup.run).text() for setup in self.setups if setup.run is not None]
            self.fallback.words = "\n".join([*lines, SAVED])
            self.pictures.outputs = ()
            self._keep(self.shown())

    def _ipython_display_(self) -> None:
        if surroundings() != "live":
            for setup in self.setups:
                print(plan(setup.recipe, {setup.network.value: NETWORKS[setup.network.value]}, device=DEVICE).to_text())
            return
        display(self.widget)
        self.display_ids = [uuid.uuid4().hex for _ in range(3)]  # what is shared, and what one or two runs have alone
        for display_id in self.display_ids:
            display({"text/plain": ""}, raw=True, display_id=display_id)


def cockpit(
    recipe: Recipe | str | Mapping[str, Any] = "des_loc",
    beside: Recipe | str | Mapping[str, Any] | None = None,
    *,
    folder: str | Path = LIVE,
) -> Cockpit:
    """Choose, start and steer a run, or two beside each other; shows itself as the last line of a cell.

    Parameters
    ----------
    recipe, beside
        what is chosen at first: recipes, or what `Recipe.of` makes one from.
    folder
        of the folders in which runs are written.
    """
    return Cockpit([Recipe.of(r) for r in (recipe, beside) if r is not None], Path(folder))


def to_html(forecast: Plan) -> str:
    """A forecast in few lines: bytes by state, how many times fewer than DDP, and seconds on the link."""
    (on_link,) = forecast.forecasts
    rows: list[Sequence[str | Entry]] = [
        (s.state, f"{s.times:,}×", human(s.bytes_each), human(s.total_bytes)) for s in forecast.states
    ]
    sent, ddp = forecast.payload_bytes, forecast.ddp_bytes
    less = "nothing is sent" if not sent else "as much as DDP" if sent == ddp else "DDP would send nothing"
    if sent and ddp and sent != ddp:
        less = f"{ddp / sent:.3g}× fewer than DDP" if ddp > sent else f"{sent / ddp:.3g}× more than DDP"
    rows.append((Entry("<b>all</b>", is_html=True), "", "", Entry(f"<b>{human(sent)}</b>", is_html=True)))
    sending, ddp_sending = on_link.communication_hours * 3600, on_link.ddp_communication_hours * 3600
    return (
        f"{html_table(('one worker sends', 'times', 'each', 'in all'), rows)}{less}<br>"
        f"{html.escape(on_link.network)}: {duration(sending)} of sending (DDP: {duration(ddp_sending)})"
    )


def _field(widget: Any, label: str) -> Any:
    widget.description = label
    widget.continuous_update = False
    widget.add_class("isthmus-field")
    widget.style.description_width = "130px"
    widget.layout.width = "290px"
    return widget
