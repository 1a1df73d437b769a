"""How long do 2,000 runs take to be shown and filtered? CPU seconds, as others use this machine too.

The runs are written, not trained: the events of one short run a method, under recipes that differ in seed, learning rate and batch size.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.events import Event, Started
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from widgets.run_table import RunTable

NUM = 2000
METHODS = ("des_loc", "diloco", "ddp", "local_adam")
SHORT = [
    "corpus=grammar?tokens=40000",
    "steps=200",
    "eval_every=10",
    "checkpoint_every=0",
    "context=16",
    "batch_size=2",
]
FILTERS = ("method=des_loc", "method=des_loc seed<3", "lr>=0.002 seed=1", "diloco", "")


def write_runs(place: Path, num: int = NUM) -> None:
    """So many finished runs in a folder."""
    streams: dict[str, Sequence[Event]] = {name: list(Trainer(Recipe.of(name, SHORT)).events()) for name in METHODS}
    settings = itertools.product(range(5), (1, 2, 4, 8, 16), (2, 4, 8, 16, 32), range(1, 1000), METHODS)
    for seed, rate, batch, spare, name in itertools.islice(settings, num):
        options = [f"seed={seed + 5 * spare}", f"method.inner.lr={rate / 1000}", f"batch_size={batch}"]
        recipe = Recipe.of(name, [*SHORT, *options])
        folder = RunFolder(place / recipe.id)
        folder.open(recipe)
        for event in streams[name]:
            folder.append(replace(event, recipe=recipe.to_dict()) if isinstance(event, Started) else event)
        folder.close()


def cpu(do: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    out = do()
    return time.process_time() - began, out


def in_the_page(page_file: Path) -> tuple[float, list[float]]:
    """CPU seconds of the page's thread: until the table stands, and for each filter."""
    from playwright.sync_api import sync_playwright

    from tests.support.browser import CHROMIUM

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def spent() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

        page.goto(page_file.as_uri())
        page.wait_for_selector(".runs tbody tr")
        page.wait_for_timeout(300)
        opened, each = spent(), list[float]()
        for words in FILTERS:
            before = spent()
            page.fill("[name=filter]", words)
            page.wait_for_timeout(200)
            each.append(spent() - before)
        chromium.close()
    return opened, each


def main() -> None:
    from tests.support.browser import CHROMIUM

    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        write_runs(runs)
        first, table = cpu(lambda: RunTable(runs))
        print(f"{NUM:,} runs never seen before: {first:.2f} CPU s until {len(table.there):,} of them are shown")
        rest, page_file = cpu(lambda: table.save(Path(place) / "board.html")), Path(place) / "board.html"
        print(f"the others: {rest[0]:.1f} CPU s, in the background and once")
        opened = statistics.median(cpu(lambda: RunTable(runs))[0] for _ in range(5))
        print(f"known runs, lab.board(): {opened:.2f} CPU s; the page is {page_file.stat().st_size / 1e6:.1f} MB")
        if CHROMIUM is None:
            return print("no Chromium: not measured in a page")
        shown, each = in_the_page(page_file)
        print(
            f"the page: {shown:.2f} CPU s until it stands; a filter {statistics.median(each):.3f} s (most {max(each):.3f})"
        )


if __name__ == "__main__":
    main()
