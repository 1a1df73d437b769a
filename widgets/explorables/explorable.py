"""An explorable, and the one HTML page that it is, which needs neither network nor server.

Everything that is ever shown is worked out in Python, for every place of the dragged number and every moment of the picture. The page holds all
of it: of each place the last board whole, of its moments what is different there. `explorable.js` chooses, `view.js` draws; both are in the page.
Where no script runs, text, one picture as SVG, and answers in folds are there to be read. `docs/write_your_own_explorable.md` makes one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.study.teaching import CLOSE
from widgets.explorables.pieces import Exercise, Place, Prediction
from widgets.pages import STYLE
from widgets.resting import plain_script, shrunk

FIELD = re.compile(r"\{(\w+)\}")
SCRIPT = Path(__file__).with_name("explorable.js")
LAYOUT = """
main > *, section > * { max-width: 44rem; }
main > section, main > div, section > figure, section > .moments { max-width: none; }
.question { font-size: 1.2rem; }
.sentence { position: sticky; top: 0; z-index: 4; margin: 0 0 0.6rem; padding: 0.7rem 0; font-size: 1.1rem; background: var(--paper);
  border-bottom: 1px solid var(--line); max-width: 62rem; }
.sentence span { font-weight: 600; }
.drag[role] { display: inline-block; margin: 0 0.2em; padding: 0 0.35em; border: 2px solid var(--link); border-radius: 0.4em; color: var(--link); cursor: ew-resize;
  touch-action: pan-y; user-select: none; -webkit-user-select: none; }
.drag[role]::before { content: "◂ "; }
.drag[role]::after { content: " ▸"; }
.drag:focus-visible, button:focus-visible, input:focus-visible, h2:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.drag:focus-visible { outline-offset: -1px; }
.moments { display: flex; gap: 0.8rem; align-items: center; }
.moments[hidden], form[hidden] { display: none; }
.moments input { flex: 1; min-width: 6rem; max-width: 30rem; }
.moments output { min-width: 9rem; }
button, form input[type="text"] { font: inherit; color: var(--ink); background: var(--side); border: 1px solid var(--soft); border-radius: 0.3em;
  padding: 0.25rem 0.8rem; min-height: 2rem; }
form input[type="text"] { width: 11rem; }
button { cursor: pointer; }
fieldset { border: 0; margin: 0; padding: 0; }
legend { padding: 0; margin-bottom: 0.4rem; }
fieldset label { display: block; padding: 0.2rem 0; }
form p { margin: 0.6rem 0; }
form [role="status"] { min-height: 1.5em; font-weight: 600; white-space: pre-line; }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
figure svg { max-width: 100%; height: auto; }
footer { color: var(--soft); font-size: 0.9rem; margin-top: 2rem; }
"""


_light, _dark = re.findall(r":root \{([^}]*)\}", STYLE)
IN_A_NOTEBOOK = f":root.light {{{_light} color-scheme: light; }} :root.dark {{{_dark} color-scheme: dark; }}"  # whose theme may not be the system's


@dataclass(frozen=True)
class Explorable:
    """A page that is read in five minutes.

    name
        of its page: ``<name>.html``.
    title, question
        what it is about, and the question in one sentence.
    prediction
        asked before the rest is shown.
    sentence
        with fields in braces; ``{dragged}`` is the number that can be dragged, the others are in every place's ``numbers``.
    dragged
        what is dragged, for who cannot see it: ``local steps between two averages``.
    places, start
        all places in order, and the number of the one that is shown first.
    moment
        what a moment is: ``local step``.
    why
        paragraphs of HTML, with the arithmetic.
    exercise
        whose check says what was confused.
    further
        where to go on: words and a link each, or the place of a file in the repository.
    made_of
        one sentence on the runs or the arithmetic behind it.
    """

    name: str
    title: str
    question: str
    prediction: Prediction
    sentence: str
    dragged: str
    places: Sequence[Place]
    start: int
    moment: str
    why: Sequence[str]
    exercise: Exercise
    further: Sequence[tuple[str, str]]
    made_of: str

    def __post_init__(self) -> None:
        fields = set(FIELD.findall(self.sentence))
        if "dragged" not in fields:
            raise ValueError("the sentence has no {dragged}: that is the number that a reader drags")
        for place in self.places:
            if missing := fields - {"dragged", *place.numbers}:
                raise ValueError(f"place {place.value!r} lacks numbers of the sentence: {', '.join(sorted(missing))}")
            if list(place.moments) != list(self.places[0].moments):
                raise ValueError(f"place {place.value!r} has other moments than {self.places[0].value!r}")
        if not 0 <= self.start < len(self.places):
            raise ValueError(f"start = {self.start} is none of {len(self.places)} places")

    def says(self, place: int) -> str:
        """The sentence at a place, as plain text."""
        here = self.places[place]
        return FIELD.sub(lambda field: here.value if field[1] == "dragged" else here.numbers[field[1]], self.sentence)

    def page(self) -> str:
        """The whole page, which needs no network."""
        return _page(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.page(), encoding="utf-8")

    def text(self) -> str:
        """For a terminal: the question, and the sentence at every place."""
        return "\n".join([self.title, self.question, "", *(f"- {self.says(k)}" for k in range(len(self.places)))])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """In a notebook: the page in a frame, and where none is shown (GitHub) its sentences."""
        words = "".join(f"<li>{html.escape(self.says(k))}</li>" for k in range(len(self.places)))
        frame = f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self.page())}" style="width:100%;height:60rem;border:0"></iframe>'
        told = f"<details><summary>{html.escape(self.title)} In words</summary><p>{html.escape(self.question)}</p><ul>{words}</ul></details>"
        return {"text/html": frame + told, "text/plain": self.text()}


def _page(x: Explorable) -> str:
    data = shrunk(_data(x)).replace("</", "<\\/")
    scripts = f"{plain_script()}\n{SCRIPT.read_text(encoding='utf-8')}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(x.title)}</title>'
        f"<style>{STYLE}{IN_A_NOTEBOOK}{LAYOUT}</style></head><body>\n{_words(x)}\n"
        f'<script type="application/json" id="worked-out">{data}</script>\n<script>(() => {{\n{scripts}\n'
        'explore(document.querySelector("main"), document.getElementById("worked-out").textContent);\n})();</script></body></html>\n'
    )


def _words(x: Explorable) -> str:
    """What is there to be read; parts with a name are what the script looks for."""
    e, p, here = html.escape, x.prediction, x.places[x.start]
    options = "".join(
        f'<label><input type="radio" name="guess" value="{e(option)}"> {e(option)}</label>' for option in p.options
    )
    shown = FIELD.sub(lambda field: _field(field[1], here), e(x.sentence, quote=False))
    still = list(here.moments.values())[-1]
    why = "".join(f"<p>{paragraph}</p>" for paragraph in x.why)
    further = "".join(f"<li>{_further(words, link)}</li>" for words, link in x.further)
    return f"""<main>
<h1>{e(x.title)}</h1>
<p class="question">{e(x.question)}</p>
<section aria-labelledby="guess"><h2 id="guess">First, a guess</h2>
<div data-part="unasked"><p>{e(p.question)}</p><ul>{"".join(f"<li>{e(option)}</li>" for option in p.options)}</ul>
<details><summary>What is so</summary><p>{e(p.because)}</p></details></div>
<form data-part="guess" hidden><fieldset><legend>{e(p.question)}</legend>{options}</fieldset>
<p><button type="submit">That is my guess</button> <button type="button">Skip</button></p><p role="status"></p></form>
</section>
<div data-part="rest">
<section aria-labelledby="look"><h2 id="look" tabindex="-1">Look</h2>
<p class="sentence">{shown}</p><p class="spoken" role="status"></p>
<div class="moments" hidden><button type="button">Play</button><input type="range" min="0" max="{len(here.moments) - 1}" step="1"
 aria-label="{e(x.moment)}"><output></output></div>
<figure class="board">{still.svg()}</figure>
</section>
<section aria-labelledby="why"><h2 id="why">Why</h2>{why}</section>
<section aria-labelledby="try"><h2 id="try">Try it</h2>
<p id="exercise">{e(x.exercise.question)}</p>
<form data-part="exercise" hidden><p><input type="text" inputmode="decimal" autocomplete="off" aria-labelledby="exercise"> {e(x.exercise.unit)}
 <button type="submit">Check</button></p><p role="status"></p></form>
<details><summary>The answer</summary><p>{x.exercise.right:,.6g} {e(x.exercise.unit)}: {e(x.exercise.solution)}.</p></details>
</section>
<section aria-labelledby="further"><h2 id="further">Where to go on</h2><ul>{further}</ul></section>
</div>
<footer>{e(x.made_of)}</footer>
</main>"""


def _further(words: str, link: str) -> str:
    if "://" in link:
        return f'<a href="{html.escape(link)}">{html.escape(words)}</a>'
    return f"{html.escape(words)}: <code>{html.escape(link)}</code>"  # of which a page does not know where it is


def _field(name: str, place: Place) -> str:
    """A field of the sentence, filled in."""
    if name == "dragged":
        return f'<span class="drag">{html.escape(place.value)}</span>'
    return f'<span data-number="{name}">{html.escape(place.numbers[name])}</span>'


def _data(x: Explorable) -> dict[str, Any]:
    """What the script chooses from."""
    return {
        "dragged": x.dragged,
        "start": x.start,
        "moments": list(x.places[0].moments),
        "places": [_place(place) for place in x.places],
        "prediction": {"truth": x.prediction.truth, "because": x.prediction.because},
        "exercise": {
            "close": CLOSE,
            "right": x.exercise.right,
            "unit": x.exercise.unit,
            "slips": [[slip.value, slip.hint] for slip in x.exercise.told_apart],
            "solution": x.exercise.solution,
            "hint": x.exercise.hint,
        },
    }


def _place(place: Place) -> dict[str, Any]:
    boards = [board.spec() for board in place.moments.values()]
    for board in boards:
        for panel in board["panels"]:
            panel["text"] = panel["title"]  # what moves is said in words above the pictures
    return {
        "value": place.value,
        "numbers": dict(place.numbers),
        "board": boards[-1],
        "moments": [changes(boards[-1], board) or {} for board in boards],
    }


def changes(was: Any, now: Any) -> dict[str, Any] | None:
    """What is different in ``now``, by where it is: ``{"=": value}`` for what was replaced, None where nothing is."""
    if was == now:
        return None
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        pairs = {key: (was[key], now[key]) for key in now}
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now) and not _numbers(now):
        pairs = {str(k): pair for k, pair in enumerate(zip(was, now, strict=True))}
    else:
        return {"=": now}
    return {key: inner for key, pair in pairs.items() if (inner := changes(*pair)) is not None}


def _numbers(values: list[Any]) -> bool:
    return all(v is None or isinstance(v, int | float) for v in values)
