"""Every colour of a picture, and how large its words are: one place, held against the grounds that pictures stand on.

SVG and plotly stand on a ground of their own, in whichever theme: no one colour of ink reaches 4.5 : 1 on white and on the
ground of JupyterLab's dark theme (#111111) at once, of whatever lightness it is (4.35 : 1 is the most). `view.js` takes ink and
ground from the theme around it. Marks are the same on all grounds: 3 : 1 or more, with nothing that lets the ground shine
through but areas, whose edges are drawn whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What series and marks look like. Told apart by readers who lack a kind of cone, as well as on light and dark ground; every
# series has a dash or a marker of its own besides.
COLOURS = ("#0f90f8", "#b38a00", "#0c8d57", "#a4541c", "#f4489c", "#5565b8", "#666b71")

GROUND = "#ffffff"  # below SVG and plotly
INK = "#24292f"  # titles, names, words
SOFT = "#555555"  # numbers at ticks, notes, frames of cells, rings of dots, lines that mark a level
GRID = "#e3e3e3"  # lines behind, of which nothing is read that ticks do not say
DARK_GROUND, DARK_INK, DARK_SOFT = "#111111", "#e6e6e6", "#b0b0b0"  # of a page of our own, where the system is dark
CONTROL = "#f1f1f1"  # below the words of a menu or a slider

TITLE, LABEL, TICK = 14, 13, 12  # pixels: a title, a name or a sentence, a number at a tick

# Cividis (Nuñez, Anderton, Renslow 2018), which looks the same to colour-blind readers, without its darkest tenth.
STOPS = ("#17335f", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
NOTHING = "rgba(128,128,128,0.13)"  # a cell of which nothing is held


def between(stops: Sequence[str], num: int) -> tuple[str, ...]:
    """``num`` colours from the first stop to the last."""
    rgb = np.array([_rgb(stop) for stop in stops], dtype=float)
    at = np.linspace(0, len(stops) - 1, num)
    mixed = np.stack([np.interp(at, range(len(stops)), rgb[:, c]) for c in range(3)], axis=1).round().astype(int)
    return tuple("#{:02x}{:02x}{:02x}".format(*c) for c in mixed)


def fading(colour: str, num: int) -> tuple[str, ...]:
    """``num`` colours from a trace of grey to the whole colour, on light and dark ground."""
    r, g, b = _rgb(colour)
    whole = [f"rgba({r},{g},{b},{0.15 + 0.85 * k / (num - 1):.2f})" for k in range(1, num)]
    return (NOTHING, *whole)


def through(colour: str, strength: float) -> str:
    """The colour, so strong that the ground shines through."""
    return "rgba({},{},{},{:g})".format(*_rgb(colour), strength)


def _rgb(colour: str) -> tuple[int, int, int]:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return r, g, b


CIVIDIS = between(STOPS, 32)
HELD = fading(COLOURS[0], 9)
