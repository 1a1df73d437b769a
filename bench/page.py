"""Does a page keep up? Milliseconds that Chromium takes for one update of long lines, of the 125 between two at 8 Hz."""

from __future__ import annotations

import statistics

from bench.watching import POINTS, stream
from lab.events import Sent
from widgets import CommunicationBudget, Drift, Losses, SyncCalendar, View, Workers
from widgets.canvas import Canvas
from widgets.view import RATE

UPDATES = 40
CLOCK = """
window.spent = 0;
window.timed = (f) => (...all) => { const began = performance.now(); try { return f(...all); } finally { spent += performance.now() - began; } };
const frame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (f) => frame(timed(f));
"""


def page_milliseconds(view: View, browser: object) -> list[float]:
    """For each update, with 50 new points a line after ``POINTS``: taking it in and drawing it."""
    from tests.support.browser import Bare

    canvas, spent = Canvas(), list[float]()
    bare = Bare(browser, canvas)
    bare.js("() => {" + CLOCK + "window.take = timed(window.take); }")
    for event in stream(POINTS + 50 * UPDATES):
        if isinstance(event, view.reads):
            view.fold(event)
        step = getattr(event, "step", 0)
        if isinstance(event, Sent) and step >= POINTS and step % 50 == 0:
            bare.js("() => { spent = 0; }")
            canvas.draw(view.board())
            bare.settle()
            spent.append(bare.js("spent"))
    bare.page.close()
    return spent[2:]


def main() -> None:
    from tests.support.browser import CHROMIUM

    if CHROMIUM is None:
        print("no Chromium: not measured")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for view in (Losses(), CommunicationBudget(), SyncCalendar(), Drift(), Workers()):
            each = page_milliseconds(view, chromium)
            share = statistics.median(each) * RATE / 1000
            print(
                f"{type(view).__name__}: {statistics.median(each):.1f} ms an update in the page (most {max(each):.1f}), "
                f"{share:.0%} of the time at {RATE} Hz"
            )
        chromium.close()


if __name__ == "__main__":
    main()
