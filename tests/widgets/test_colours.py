"""Colours: words, lines and marks can be told from their ground in both themes (WCAG 2.1 AA), also by colour-blind readers.

Whoever brings a colour to a picture or a page has it checked here: a literal that no table below names is refused.
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.contrast import MARKS, WORDS, contrast, linear
from widgets import colours

WHITE, BLACK, VS_CODE = "#ffffff", "#111111", "#1e1e1e"
GROUNDS = (WHITE, BLACK, VS_CODE)  # JupyterLab's light and dark (held to its own files below), and VS Code's dark

# What each colour of `widgets.colours` is for, and on which grounds it stands.
TOKENS = {
    "INK": (WORDS, (colours.GROUND, colours.CONTROL)),
    "SOFT": (WORDS, (colours.GROUND,)),
    "DARK_INK": (WORDS, (colours.DARK_GROUND,)),
    "DARK_SOFT": (WORDS, (colours.DARK_GROUND,)),
    **{f"COLOURS[{k}]": (MARKS, GROUNDS) for k in range(len(colours.COLOURS))},
}
SILENT = {
    "GROUND": "ground",
    "CONTROL": "ground",
    "DARK_GROUND": "ground",
    "GRID": "nothing is read of it that ticks do not say",
    "NOTHING": "an empty cell, within a frame",
    "STOPS": "a scale: what a cell says is where it lies between the ends, which differ by more than 3 : 1; a frame surrounds it",
}

# What a page of the lab is made of: (light, dark) for each name in its style sheet.
PAGES = {
    "widgets/pages.py": {"ink", "soft", "link"},
    "lab/study/claims_page.py": {"ink", "soft", "link", "holds", "contradicted", "inconclusive", "exact", "not-tested"},
}
PAGE_SILENT = {"line": "between rows", "paper": "ground", "side": "ground"}

# Names of JupyterLab's themes that we use.
JUPYTER = {
    "content-font-color1": WORDS,
    "content-font-color2": WORDS,
    "ui-font-color1": WORDS,
    "error-color1": WORDS,
    "brand-color1": MARKS,
    "layout-color0": 0.0,  # ground
    "layout-color1": 0.0,  # ground
    "border-color2": 0.0,  # between parts of a panel
}
LITERAL = re.compile(r"#[0-9a-fA-F]{3,8}\b|rgba?\([\d., ]+\)")


def on(ground: str, colour: str) -> str:
    """What is seen of a colour through which the ground shines."""
    if not colour.startswith("rgba"):
        return colour
    *rgb, alpha = (float(v) for v in re.findall(r"[\d.]+", colour))
    below = [int(ground[i : i + 2], 16) for i in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*(round(alpha * v + (1 - alpha) * g) for v, g in zip(rgb, below, strict=True)))


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#7d8590", "#ffffff") < 4.5  # what words at rest once were
    assert on("#ffffff", "rgba(0,0,0,0.5)") == "#808080"


@pytest.mark.parametrize("token", TOKENS)
def test_every_colour_can_be_told_from_its_grounds(token: str) -> None:
    least, grounds = TOKENS[token]
    colour = eval(token, vars(colours))
    assert {ground: c for ground in grounds if (c := contrast(colour, ground)) < least} == {}


def test_every_token_is_checked_or_says_nothing() -> None:
    """A new constant of `widgets.colours` has to say what it is for."""
    known = {token.partition("[")[0] for token in TOKENS} | set(SILENT)
    there = {
        name
        for name, value in vars(colours).items()
        if name.isupper() and (LITERAL.search(str(value)) or isinstance(value, tuple))
    }
    assert there - known == {"CIVIDIS", "HELD"}  # made of STOPS, and of COLOURS[0]
    assert contrast(colours.STOPS[0], colours.STOPS[-1]) > MARKS


def test_no_colour_stands_elsewhere() -> None:
    """What draws takes colours from `widgets.colours`; `view.js` and style sheets have a few words of their own, which are these."""
    known = {
        "widgets/view.js": {
            "#000",
            "#fff",
            "rgba(128, 128, 128, 0.25)",
            "rgba(0, 0, 0, 0.3)",
        },  # ground and words where none is known, grid, shadow
        "widgets/run_table.js": {colour for theme in themes_of_runs() for colour in theme.values()},  # held below
        "widgets/panel.py": {"#ccc", "#b00020", "#1976d2"},  # where there is no theme
        "widgets/questions.js": {"#ccc", "#b00020", "#1976d2"},
    }
    assert (
        min(contrast("#b00020", WHITE) / WORDS, contrast("#1976d2", WHITE) / MARKS, contrast("#666", WHITE) / WORDS)
        >= 1
    )
    for file in sorted([*(ROOT / "widgets").rglob("*.py"), *(ROOT / "widgets").rglob("*.js")]):
        name = file.relative_to(ROOT).as_posix()
        if name != "widgets/colours.py" and name not in PAGES:
            assert set(LITERAL.findall(file.read_text(encoding="utf-8"))) <= known.get(name, set()), name


def themes_of_runs() -> list[dict[str, str]]:
    """What the names of the table of runs are, light and dark."""
    text = (ROOT / "widgets/run_table.js").read_text(encoding="utf-8")
    return [
        dict(re.findall(r"--([\w-]+): (#\w+);", rule))
        for rule in re.findall(r"\.runs(?:\.dark)? \{([^}]*--ink[^}]*)\}", text)
    ]


def test_words_of_the_table_of_runs() -> None:
    light, dark = themes_of_runs()
    for named in (light, dark):
        assert set(named) == {"ink", "soft", "mark", "line", "ground", "field"}
        seen = {(n, g): contrast(named[n], named[g]) for n in ("ink", "soft", "mark") for g in ("ground", "field")}
        assert {key: c for key, c in seen.items() if c < WORDS} == {}


def test_nothing_shines_through_but_areas() -> None:
    """A mark that is half there has half its contrast: planned ones are lower, faint lines thinner."""
    script = (ROOT / "widgets/view.js").read_text(encoding="utf-8")
    assert set(re.findall(r"globalAlpha = ([^;]+);", script)) <= {"1", "b.strength"}
    for file in (ROOT / "widgets").rglob("*.py"):
        assert not re.findall(r'opacity="?[\d.]|"opacity": [\d.]', file.read_text(encoding="utf-8")), file.name


@pytest.mark.parametrize("page", PAGES)
def test_words_of_a_page(page: str) -> None:
    """Style sheets of pages, light and dark: names that are words, on the ground of the page and of what stands out from it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    themes = re.split(r"@media ?\(prefers-color-scheme: ?dark\)", text[text.index(":root") :], maxsplit=1)
    assert len(themes) == 2
    for theme in themes:
        named = dict(re.findall(r"--([\w-]+): ?(#\w+)", theme))
        assert set(named) == PAGES[page] | set(PAGE_SILENT)
        seen = {(n, g): contrast(named[n], named[g]) for n in PAGES[page] for g in ("paper", "side")}
        assert {key: c for key, c in seen.items() if c < WORDS} == {}
    loose = re.sub(r"--[\w-]+: ?#\w+", "", text)
    assert LITERAL.findall(loose) == []


def test_words_of_the_page_of_a_sweep() -> None:
    style = re.search(r'_STYLE = """(.*?)"""', (ROOT / "lab/study/comparison.py").read_text(encoding="utf-8"), re.S)
    assert style is not None
    themes = style[1].split("@media(prefers-color-scheme:dark)")
    assert len(themes) == 2
    for theme in themes:
        words, (paper,) = re.findall(r"(?<!-)color:(#\w+)", theme), re.findall(r"background:(#\w+)", theme)
        assert {c for c in words if contrast(c, paper) < WORDS} == set()


def jupyter(theme: str) -> dict[str, str]:
    """What names mean in a theme of the JupyterLab that is installed, as far as they are colours."""
    text = Path(sys.prefix, f"share/jupyter/lab/themes/@jupyterlab/theme-{theme}-extension/index.css").read_text(
        encoding="utf-8"
    )
    found = re.findall(r"--jp-([\w-]+):(?:var\([\w-]+,)?(#\w+|white|rgba\([\d.,]+\))", text)
    return {name: "#ffffff" if value == "white" else value for name, value in found}


@pytest.mark.parametrize(("theme", "ground"), [("light", WHITE), ("dark", BLACK)])
def test_words_that_take_the_theme_of_the_notebook(theme: str, ground: str) -> None:
    sources = [*(ROOT / "widgets").rglob("*.py"), *(ROOT / "widgets").glob("*.js")]
    used = {name for file in sources for name in re.findall(r"--jp-([\w-]+)", file.read_text(encoding="utf-8"))}
    assert used <= set(JUPYTER)
    named = jupyter(theme)
    below = named["layout-color0"]
    assert contrast(below, ground) == 1
    assert {n: c for n in used if (c := contrast(on(ground, named[n]), ground)) < JUPYTER[n]} == {}


# How a colour looks to whoever lacks a kind of cone (Machado, Oliveira, Fernandes 2009), on linear red, green, blue.
EYES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "all": np.eye(3).tolist(),
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab_of(colour: str, eyes: str) -> np.ndarray:
    """CIE 1976 L*a*b* of what is seen, white point D65."""
    seen = np.clip(np.array(EYES[eyes]) @ linear(colour), 0, 1)
    t = (np.array(TO_XYZ) @ seen) / [0.95047, 1.0, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", EYES)
def test_colours_are_told_apart(eyes: str) -> None:
    """Any two of the palette are 15 or more apart in L*a*b*, of which 2 to 3 can just be seen."""
    places = [lab_of(c, eyes) for c in colours.COLOURS]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2)) > 15


def test_words_are_large_enough() -> None:
    """12 pixels are the least; sizes come from `widgets.colours`."""
    assert min(colours.TITLE, colours.LABEL, colours.TICK) >= 12
    for file in (ROOT / "widgets").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        small = re.findall(r'font-size="(\d+)"|"size": (\d+)[,}]', text)
        assert [s for pair in small for s in pair if s and 4 < int(s) < 12] == [], file.name
    script = (ROOT / "widgets/view.js").read_text(encoding="utf-8")
    assert {int(px) for px in re.findall(r"(\d+)px \$\{FONT\}", script)} <= {12, 13, 14}
    assert {int(px) for px in re.findall(r"font-size: (\d+)px", script)} <= {13, 14, 16}
