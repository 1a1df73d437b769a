"""What the website has beside the pages of docs/: README, CONTRIBUTING, CHANGELOG, explorables, and the reference, a page for each room.

mkdocs calls this (``hooks`` in ``mkdocs.yml``); ``make site`` builds.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

from lab.study.explorables import explorable, names

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}  # place here: there
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")
NAME = re.compile(r"(?<!`)`((?:lab|widgets)(?:\.\w+)+)`(?!`)")


class Docstrings(griffe.Extension):
    """Lists of options, a name on a line and below it, indented, what it does, become lists of definitions in Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text, section, rest = re.split(r"((?:\A|\n)\w+\n-{3,}\n|\Z)", obj.docstring.value, maxsplit=1)
            text = re.sub(r"^(?=\S)([^\n]+)\n {4}(?=\S)", r"\n\1\n:   ", text, flags=re.M)
            obj.docstring.value = text + section + rest


def on_config(config: Any) -> Any:
    """The rooms stand beneath the reference, whatever rooms there are."""
    for part in config.nav:
        if "Reference" in part:
            part["Reference"] = ["reference/index.md", *(f"reference/{room}.md" for room in reference())]
    return config


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "CITATION.cff", content=(ROOT / "CITATION.cff").read_text(encoding="utf-8")))
    made = {name: explorable(name) for name in names()}
    files.append(File.generated(config, "explorables.md", content=explained(made)))
    for name, each in made.items():
        files.append(File.generated(config, f"explorables/{name}.html", content=linked(each.page())))
    rooms = reference()
    for page, text in {"index": public(rooms), **rooms}.items():
        files.append(File.generated(config, f"reference/{page}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that leave docs/ lead to the page made of what they name; names of our code lead to their reference."""
    here = {there: source for source, there in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        return posixpath.relpath(place(target), posixpath.dirname(page.file.src_uri) or ".")

    outside = re.split(r"(^```.*?^```$)", markdown, flags=re.S | re.M)  # every second part is code
    for i in range(0, len(outside), 2):
        outside[i] = NAME.sub(
            r'<autoref identifier="\1" optional><code>\1</code></autoref>', LINK.sub(link, outside[i])
        )
    return "".join(outside)


def place(file: str) -> str:
    """Where something of the repository is on the website, as seen from docs/."""
    if file in PAGES:
        return PAGES[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if match := re.fullmatch(r"lab/(\w+)/(\w+)\.py", file):
        return f"reference/{match[1]}.md#lab.{match[1]}.{match[2]}"
    return file


def explained(made: dict[str, Any]) -> str:
    """The page that leads to the explorables."""
    rows = [f"| [{each.title}](explorables/{name}.html) | {each.question} |" for name, each in made.items()]
    words = (
        "Pages that explain one idea each, in five minutes and by something to drag. They need nothing but a browser; `lab explore` writes them into a "
        'folder, `widgets.explorable("local_steps")` shows one in a notebook. [Write your own](write_your_own_explorable.md).'
    )
    return "\n".join(["# Explorables", "", words, "", "| page | question |", "| --- | --- |", *rows, ""])


def linked(page: str) -> str:
    """Places of files in the repository lead to what the website has of them."""
    return re.sub(
        r"<code>docs/([\w/]+)\.md</code>", r'<a href="../\1.html">\1</a>', page
    )  # other files it does not have


def reference() -> dict[str, str]:
    """A page for each room: all of its modules, with what their docstrings say; methods with their source."""
    rooms: dict[str, list[str]] = {}
    for file in sorted([*(ROOT / "lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if parts[-1] != "__main__" and name != "lab":
            rooms.setdefault(
                parts[1] if len(parts) > 2 else "widgets" if parts[0] == "widgets" else "ground", []
            ).append(name)
    return {room: f"# {title(room)}\n\n" + "\n\n".join(map(entry, names)) for room, names in rooms.items()}


def title(room: str) -> str:
    return {"ground": "Ground: what everybody may use, and the command line"}.get(room, room.capitalize())


def entry(name: str) -> str:
    source = name.startswith("lab.methods.")
    return f"::: {name}\n    options:\n      show_source: {str(source).lower()}"


def public(rooms: dict[str, str]) -> str:
    """The public names of ``lab``, and the rooms."""
    import lab

    lines = ["# Reference", "", lab.__doc__ or "", "", "| name | what it is |", "| --- | --- |"]
    for name in lab.__all__:
        found = getattr(lab, name)
        first = (found.__doc__ or "").strip().split("\n")[0].replace("|", "\\|")
        lines.append(
            f'| <autoref identifier="{found.__module__}.{found.__qualname__}"><code>lab.{name}</code></autoref> | {first} |'
        )
    return "\n".join([*lines, "", "## Rooms", "", *(f"- [{title(room)}]({room}.md)" for room in rooms)])
