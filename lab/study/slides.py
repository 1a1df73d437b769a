"""Slides of a notebook: executed once, then made by whatever is installed to make them, with reveal.js beside them so that they need no network.

reveal.js (Hakim El Hattab and contributors, MIT) is no part of the lab. It is fetched from the npm registry when slides are made first,
held against the digest below, and kept in the user's cache; a file of it may be given instead, where there is no network.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.data.cache import cache_folder
from lab.ground.errors import RecipeError
from lab.ground.files import located, write_atomically
from lab.study.execution import Execution, Pages, execute_alone
from lab.study.installed import installed
from lab.study.notebooks import Notebook, find, given

SLIDES = "isthmus.slides"  # entry point: a function (notebook, out, reveal, single_file) that writes ``out``
REVEAL = "reveal.js-5.2.1"
URL = f"https://registry.npmjs.org/reveal.js/-/{REVEAL}.tgz"
SHA512 = "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ=="  # as the registry has it, base64
PARTS = {
    "reveal.js": "dist/reveal.js",
    "reveal.css": "dist/reveal.css",
    "notes.js": "plugin/notes/notes.js",
    "LICENSE": "LICENSE",
}
MOST_BYTES = 10_000_000  # of the file, which has 2.4 million

Make = Callable[[Path, Path, Path, bool], None]


def slides(
    name: str,
    parameters: Sequence[str],
    out: Path,
    *,
    reveal: str | None = None,
    single_file: bool = False,
    again: bool = False,
) -> Path:
    """Execute a notebook, unless it was, and make its slides; returns where they are, beside its page.

    ``reveal``: a file ``reveal.js-5.2.1.tgz``, instead of fetching it. ``single_file``: nothing lies beside the slides.

    Raises
    ------
    RecipeError
        where the notebook fails, nothing makes slides, or there is neither a network nor reveal.js.
    """
    make, script = maker(), fetched(reveal)  # what is missing is said before anything is executed
    source, pages = located(find(name)), Pages.installed()
    notebook, texts = Notebook.read(source), given(parameters)
    values = {key: notebook.value(key, text) for key, text in texts.items()}
    folder = located(out)
    folder.mkdir(parents=True, exist_ok=True)
    execution = Execution.of(source, values, folder, pages)
    if again or not execution.is_done:
        execute_alone(execution, pages)
    if execution.problem:
        raise RecipeError(f"no slides, since the notebook failed: {execution.problem}")
    made = execution.target.with_suffix(".slides.html")
    make(execution.target, made, script, single_file)
    return made


def maker() -> Make:
    """What an installed package has registered to make slides. Raises RecipeError where there is none."""
    make: Make = installed(SLIDES, "makes slides of notebooks")
    return make


def fetched(reveal: str | None = None) -> Path:
    """The folder with reveal.js: from the cache, from a file, or from the registry."""
    folder = cache_folder("slides") / REVEAL
    if reveal is None and all((folder / part).is_file() for part in PARTS):
        return folder
    packed = _read(Path(reveal)) if reveal is not None else _download()
    digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if digest != SHA512:
        what = reveal or URL
        raise RecipeError(
            f"{what} is not {REVEAL}.tgz as it was published: its SHA-512 is {digest[:12]}…, not {SHA512[:12]}…"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for part, place in PARTS.items():
            member = archive.extractfile(f"package/{place}")
            assert member is not None  # the digest says what is in it
            write_atomically(folder / part, member.read())
    return folder


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"cannot read {file}: {error.strerror}; --reveal takes {REVEAL}.tgz of the npm registry"
        ) from None


def _download() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            packed: bytes = answer.read(MOST_BYTES)
            return packed
    except OSError as error:
        raise RecipeError(
            f"slides need reveal.js once, and {URL} cannot be reached ({error}): fetch it where there is a network, then give it with --reveal FILE"
        ) from None
