"""A headless Chromium for tests: a bare page with a fake model, fed the very messages that a canvas sends."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from widgets.canvas import Canvas

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="needs Chromium: apt-get install chromium, or playwright install chromium and CHROMIUM=/path/to/it",
)


@contextlib.contextmanager
def headless() -> Iterator[Any]:
    """A Chromium of playwright, for as long as it is needed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


FAKE = """
const unpack = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const unpacked = (board) => ({ ...board, columns: Object.fromEntries(Object.entries(board.columns).map(([k, v]) => [k, unpack(v)])) });
class Model {
  constructor(board, manager) { this.board = unpacked(board); this.handlers = {}; this.sent = []; this.widget_manager = manager; }
  get(key) { return this[key]; }
  send(message) { this.sent.push(message); }
  on(event, f) { (this.handlers[event] ||= []).push(f); }
  off(event, f) { this.handlers[event] = (this.handlers[event] || []).filter((g) => g !== f); }
  fire(event, ...all) { (this.handlers[event] || []).forEach((f) => f(...all)); }
}
const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 20))));
window.boot = async (source, board, manager) => {
  const { default: make } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  window.model = new Model(board, manager);
  window.widget = make();
  window.forget = widget.initialize({ model });
  window.leave = [];
  window.look();
  await frames();
};
window.look = () => {
  const el = document.body.appendChild(document.createElement("div"));
  leave.push(widget.render({ model, el }));
};
window.take = (message, buffers) => model.fire("msg:custom", message, buffers.map(unpack));
window.load = (board) => { model.board = unpacked(board); model.fire("change:board"); };
window.settle = frames;
window.canvases = () => [...document.querySelectorAll("canvas")];
window.pixels = (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
window.inked = (c) => pixels(c).filter((v, i) => i % 4 === 3 && v).length;
window.count = (c, [r, g, b]) => {
  const d = pixels(c);
  let n = 0;
  for (let i = 0; i < d.length; i += 4) if (d[i] === r && d[i + 1] === g && d[i + 2] === b && d[i + 3] === 255) n++;
  return n;
};
window.point = async (k, x, y) => {
  const box = canvases()[k].getBoundingClientRect();
  canvases()[k].dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
  await frames();
  return [...document.querySelectorAll(".isthmus-readout")].filter((r) => !r.hidden).map((r) => r.textContent);
};
"""


class Bare:
    """One page without Jupyter that shows a canvas. ``lost`` messages do not arrive; `at_once` lets many arrive together."""

    def __init__(self, browser: Any, canvas: Canvas, style: str = "", manager: str = "undefined", width: int = 1000):
        self.canvas, self.lost, self.held, self.bytes = canvas, False, False, list[int]()
        self.waiting: list[Any] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_content(f"<!doctype html><meta charset=utf-8><body style='margin:0; {style}'></body>")
        self.page.add_script_tag(content=FAKE)
        canvas.send = self._send
        source = canvas._esm if isinstance(canvas._esm, str) else str(canvas._esm)
        self.js(
            f"([source, board]) => boot(source, board, {manager})", [source, _text(canvas.get_state("board")["board"])]
        )

    def js(self, source: str, argument: Any = None) -> Any:
        out = self.page.evaluate(source, argument)
        assert self.errors == []
        return out

    def settle(self) -> None:
        self.js("settle()")

    def _send(self, message: dict[str, Any], buffers: Any = ()) -> None:
        self.bytes.append(len(str(message)) + sum(map(len, buffers or ())))
        if not self.lost:
            self.waiting.append([message, [base64.b64encode(b).decode() for b in buffers or ()]])
        if not self.held:
            self.at_once()

    def at_once(self) -> None:
        """Deliver all messages that were ``held`` back."""
        self.js("(all) => all.forEach(([m, b]) => take(m, b))", self.waiting)
        self.waiting.clear()

    def answer(self) -> list[dict[str, Any]]:
        """Let the kernel answer what the page asked; what that was."""
        asked = self.js("model.sent.splice(0)")
        for message in asked:
            if message.get("ask") == "board":
                self.js("load", _text(self.canvas.get_state("board")["board"]))
            else:
                self.canvas._asked(None, message, [])
        return asked


def _text(board: dict[str, Any]) -> dict[str, Any]:
    return board | {"columns": {k: base64.b64encode(v).decode() for k, v in board["columns"].items()}}
