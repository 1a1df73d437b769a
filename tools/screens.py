"""Screenshots of every view, live in a real JupyterLab, in its light and its dark theme.

``python -m tools.screens`` rewrites ``docs/screens/``; ``python -m tools.screens drift workers`` only these views;
``python -m tools.screens --widths 600 1400 --to FOLDER`` shows all of them in pages of these widths, to be looked at. It needs Chromium
and what the tests need, and ``pip install pillow``.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs/screens"
STORED = Path(__file__).parent.parent / "notebooks" / "stored" / "turned"
WIDTH = 1280  # pixels of the page
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

SETUP = """
import tempfile
import time
from lab.systems.agents.nexa import Learning
from lab.systems.agents.orchestrate import Orchestration, orchestrate
from lab.events import Ended
from lab.costs.network import NETWORKS
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer, train
from lab.recipes.scenario import Scenario
from lab.runs.folder import RunFolder
from widgets import AgentGraph, CommunicationBudget, Drift, Fairness, FederationTree, Knobs, Iterations, Losses, MaskAgreement, PrivacyLevels, PseudoLabels, RankSegments, RoutingStability, RunTable, SampleWeights, StyleLeak, SyncCalendar, Underperformers, Unlearning, Workers
import lab
import widgets

small = ["model=nano", "corpus=grammar?tokens=400000", "context=32", "batch_size=4", "eval_every=4"]
storm = ['scenario.outages=[{"worker":2,"first":20,"last":30},{"worker":3,"first":1,"last":8}]', "scenario.slow.1=2.0"]
des_loc = Recipe.of("des_loc", [*small, "steps=48", "method.sync_every.params=4", "method.sync_every.exp_avg=8",
                                "method.sync_every.exp_avg_sq=12", *storm])
fomoe = Recipe.of("fomoe", ["corpus=grammar?tokens=400000", "steps=64", "batch_size=2", "context=32", "placement.overlap=2",
                            "placement.kind=random", "placement.every=2", "routing_every=4",
                            *(f"method.sync_every.{state}=8" for state in ("params", "exp_avg", "exp_avg_sq"))])
prelort = Recipe.of("prelort", ["model=nano", "start=", "steps=12", "method.sync_every=4", "eval_every=4", "eval_windows=16"])
fedavg = Recipe.of("local_sgd", ["data=digits", "model=mlp", "split=draw:40:0.3", "clients.num=200", "clients.held_out=0.25",
                                'clients.personal=["head.*"]', "num_workers=20", "batch_size=10", "steps=200",
                                "method.sync_every=5", "eval_every=10"])
alone = Recipe.of("pafl", ["clients.num=40", "clients.held_out=0.3", "split=size:1.2", "steps=240", "eval_every=0", "checkpoint_every=0",
                           'adaptation.ways=["fine_tuning","frozen_base","ewc","kd"]', 'adaptation.head=["head.*"]',
                           "adaptation.steps=20", "adaptation.local_steps=200", "adaptation.every=40"])
top_k = Recipe.of("top_k", ["steps=300"])
fedanchor = Recipe.of("fedanchor", ["steps=160", "eval_every=16"])
worldlm = Recipe.of("worldlm", ["steps=192", "eval_every=16", "eval_windows=16"])
abbie = Recipe.of("abbie", ["steps=160", "eval_every=20", "eval_windows=16", "corpus=grammar?order=1&tokens=400000", "context=32"])
weighed = Recipe.of("ddp", ["corpus=mixture", "context=32", "batch_size=16", "num_workers=2", "steps=300", "eval_every=25", "eval_windows=64",
                            "weighting.by=adapt", "weighting.target=target", "weighting.center=true", "weighting.standardize=true", "weighting.tau=0.5"])
sensing = {"data": "sensors", "model": {"name": "conv1d", "channels": [16, 16]}, "steps": 60, "eval_every": 10, "eval_windows": 512,
           "clients": {"held_out": 0.2}}
inner = {"name": "AdamW", "lr": 0.02}
apart = {"split": "by:person+sensor", "num_workers": 12, "batch_size": 16, "groups": "sensor"}
sensed = {"centralised": {"method": {"name": "ddp", "inner": inner}, "num_workers": 1, "batch_size": 96},
          "person": {"split": "by:person", "num_workers": 6, "batch_size": 16},
          "single sensors": apart,
          "mutual": apart | {"method": {"name": "mutual", "sync_every": 10, "inner": inner}}}
turned = RunFolder("STORED")
seen = {}

def leak():
    from lab.systems.imitation.audit import audit
    from lab.systems.imitation.imitator import Model
    from lab.systems.imitation.settings import Audit, Federation
    view = StyleLeak()
    view.show()
    settings = Audit(authors=8, messages=120, targets=(0, 1, 2), counts=(0, 5, 25, 80), texts=20, perturbations=1,
                     model=Model(dim=32, num_heads=2, steps=300, most=40), federation=Federation(rounds=3, steps=8, noises=(1.0,)))
    record = audit(settings, "runs")
    view.add(*record.events[:-1])
    time.sleep(6)
    view.add()

def forget():
    view = Unlearning()
    view.show()
    settings = {"overrides": ["model.dim=48", "model.num_layers=3", "model.num_heads=2", "steps=500", "eval_every=0",
                              'data={"name":"facts","subjects":10,"attributes":4,"repeats":400,"references":24}'],
                "seeds": (1,), "epochs": 8, "clients": 3, "lr": 1e-3}
    record = lab.unlearn(settings, "runs")
    view.add(*record.events[:-1])
    time.sleep(6)
    view.add()

def levels():
    view = PrivacyLevels()
    view.show()
    for name, part in sensed.items():
        for seed in (1, 2):
            fedavg = {"name": "fedprox", "pull": 0.0, "sync_every": 10, "inner": inner}
            r = Recipe.of({"method": fedavg} | sensing | part | {"seed": seed, "data": {"name": "sensors", "seed": seed, "noise": 0.5, "windows": 10, "length": 32}})
            view.add(*[event for event in Trainer(r).events() if not isinstance(event, Ended)], run=f"{name} #{seed}")
    time.sleep(6)
    view.add()

def answer(view):
    events = []
    settings = Orchestration(test_questions=128, rivals=("single", "parallel", "chain", "full"), learning=Learning(sparsity=0.5))
    orchestrate(settings, tempfile.mkdtemp(), tell=events.append)
    view.show()
    view.add(*[event for event in events if not isinstance(event, Ended)])
    time.sleep(6)
    view.add()

def runs():
    for method in (["des_loc", "method.sync_every.exp_avg=8", "method.sync_every.exp_avg_sq=12"], ["local_adam"], ["diloco", "method.inner.lr=0.001"]):
        for seed in (1, 2):
            preset, *more = method
            r = Recipe.of(preset, [*small, "steps=48", f"seed={seed}", "checkpoint_every=24", *more])
            train(r, "board/" + r.id)
    return RunTable("board")

def watch(view, run):
    if id(run) not in seen:
        seen[id(run)] = list((run if run is turned else Trainer(run)).events())
    events = seen[id(run)]
    view.show()
    view.add(*[event for event in events[: len(events) * 5 // 6] if not isinstance(event, Ended)])
    time.sleep(6)
    view.add()
"""
VIEWS = {
    "losses": "watch(Losses(), des_loc)",
    "communication_budget": 'watch(CommunicationBudget(des_loc, network="10Mbit", budget="20 MB"), des_loc)',
    "sync_calendar": "watch(SyncCalendar(des_loc), des_loc)",
    "drift": "watch(Drift(), des_loc)",
    "workers": "watch(Workers(des_loc), des_loc)",
    "routing_stability": "watch(RoutingStability(), fomoe)",
    "rank_segments": "watch(RankSegments(), prelort)",
    "fairness": "watch(Fairness(), fedavg)",
    "underperformers": "watch(Underperformers(), alone)",
    "mask_agreement": "watch(MaskAgreement(), top_k)",
    "iterations": "watch(Iterations(), abbie)",
    "sample_weights": "watch(SampleWeights(), weighed)",
    "agent_graph": "answer(AgentGraph())",
    "pseudo_labels": "watch(PseudoLabels(), fedanchor)",
    "style_leak": "leak()",
    "unlearning": "forget()",
    "privacy_levels": "levels()",
    "federation_tree": "watch(FederationTree(), worldlm)",
    "knobs": "watch(Knobs(), turned)",
    "run_table": "runs()",
    "cockpit": "widgets.cockpit(des_loc.but(steps=4000, scenario=Scenario()))",
}


def main(names: list[str], widths: list[int], folder: Path) -> None:
    if unknown := set(names) - set(VIEWS):
        raise SystemExit(f"no view is called {', '.join(sorted(unknown))}: there are {', '.join(VIEWS)}")
    views = {name: cell for name, cell in VIEWS.items() if not names or name in names}
    import PIL.Image
    from playwright.sync_api import sync_playwright

    from tests.support.browser import CHROMIUM
    from tests.support.jupyter import JupyterLab

    def shoot(locator: object, file: Path) -> None:
        picture = PIL.Image.open(io.BytesIO(locator.screenshot())).convert("RGB")  # type: ignore[attr-defined]
        file.parent.mkdir(parents=True, exist_ok=True)
        few = picture.quantize(256, method=PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE)
        few.save(file, optimize=True)  # others lose the colours of thin strokes
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as place:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        server = JupyterLab(Path(place), chromium)
        nb = server.open("screens.ipynb", [SETUP.replace("STORED", str(STORED)), *views.values()])
        nb.page.set_default_timeout(600_000)  # a busy machine
        nb.page.set_viewport_size({"width": widths[0], "height": 3000})
        nb.command("application:toggle-left-area")
        for k in range(len(views) + 1):
            nb.run(k)
            for output in nb.outputs(k):
                if output["output_type"] == "error":
                    raise SystemExit(output["evalue"])
        if "cockpit" in views:
            nb.press("Start")
            nb.page.locator(".isthmus-cockpit canvas").first.wait_for()
            nb.page.wait_for_timeout(15_000)
            nb.press("Pause")
            nb.page.wait_for_timeout(2000)
        for width in widths:
            nb.page.set_viewport_size({"width": width, "height": 3000})
            for name, theme in THEMES.items():
                nb.js("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
                nb.page.wait_for_timeout(3000)
                for k, view in enumerate(views):
                    what = {"cockpit": ".isthmus-cockpit", "run_table": ".runs"}.get(view, ".isthmus-board")
                    shown = nb.page.locator(".jp-CodeCell").nth(k + 1).locator(what).first
                    shown.scroll_into_view_if_needed()
                    nb.page.wait_for_timeout(700)
                    shoot(shown, folder / f"{view}_{name}{f'_{width}' if len(widths) > 1 else ''}.png")
        nb.close()
        chromium.close()
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("views", nargs="*")
    parser.add_argument("--widths", nargs="+", type=int, default=[WIDTH], help="of the page, in pixels")
    parser.add_argument("--to", type=Path, default=FOLDER)
    given = parser.parse_args()
    main(given.views, given.widths, given.to)
