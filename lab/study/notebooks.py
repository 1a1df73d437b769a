"""Notebooks as files: which parameters they declare, what values may be given to them, what they read, and how they are executed."""

from __future__ import annotations

import ast
import copy
import json
import keyword
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Optional, Union

import click
from pydantic import TypeAdapter, ValidationError

from lab.ground.config import parse_value
from lab.ground.errors import RecipeError
from lab.ground.files import sha256_of, write_atomically
from lab.runs import child

DONE = "isthmus"  # key in an executed notebook's metadata, written last
PYTHON = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
TYPES: dict[str, Any] = {t.__name__: t for t in (int, float, str, bool, list, dict, tuple, set)}
TYPES |= {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union, "None": None}
QUICK = "__import__('gc').set_threshold(20_000); __import__('atexit').register(__import__('gc').freeze)"  # as `lab.runs.child.quick_`
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Notebook:
    """A notebook on disk, read and brought to the present format."""

    path: Path
    content: Any  # nbformat's NotebookNode

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """Raises RecipeError, one line, for what is no notebook."""
        import nbformat

        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
            raise RecipeError(f"cannot read the notebook {path}: {why}") from None
        if not text.strip():
            raise RecipeError(f"{path} is empty: it is no notebook")
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict) or not isinstance(raw.get("nbformat"), int):
                raise ValueError("it has no nbformat")
            content: Any = nbformat.reads(text, as_version=4)
            for cell in content.cells:
                _ = cell.source, cell.cell_type, cell.metadata
        except Exception as error:  # whatever a torn file makes nbformat stumble over
            line = str(error).strip().split("\n")[0] or type(error).__name__
            raise RecipeError(f"{path} is no notebook that can be read: {line}") from None
        if content.nbformat_minor < 5:  # ids of cells came then
            content.nbformat_minor = 5
            for i, cell in enumerate(content.cells):
                cell.setdefault("id", f"cell-{i}")
        language = content.metadata.get("kernelspec", {}).get("language") or content.metadata.get(
            "language_info", {}
        ).get("name")
        if language not in (None, "python"):
            raise RecipeError(f"{path} is a notebook in {language}: only Python is executed")
        content.metadata["kernelspec"] = dict(PYTHON)
        content.metadata.setdefault("language_info", {"name": "python"})
        return cls(path, content)

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What the cell tagged ``parameters`` assigns at its top level, with the type that a value must have.

        The type is that of the annotation; without one, of a text or a truth value that stands there; else `Any`.
        """
        found: dict[str, Any] = {}
        for cell in self.content.cells:
            if "parameters" not in cell.metadata.get("tags", []):
                continue
            for node in _parsed(cell.source):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found[node.target.id] = _type(node.annotation)
                elif isinstance(node, ast.Assign):
                    default = node.value.value if isinstance(node.value, ast.Constant) else None
                    kind = type(default) if isinstance(default, str | bool) else Any
                    for target in node.targets:
                        names = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
                        found |= {x.id: Any if len(names) > 1 else kind for x in names if isinstance(x, ast.Name)}
            break
        return found

    def value(self, key: str, text: str) -> Any:
        """What a text given on the command line means for this parameter.

        By the type that it declares; else as a literal of Python, else as JSON, else as it is.

        Raises
        ------
        RecipeError
            for a parameter that there is not, and for a value of another type.
        """
        if key not in self.parameters:
            there = ", ".join(sorted(self.parameters)) or "none"
            raise RecipeError(f"{self.name} has no parameter {key!r}: there are {there}")
        kind = self.parameters[key]
        if kind is bool:
            if text.strip().lower() in YES + NO:
                return text.strip().lower() in YES
        elif kind is str:
            quoted = parse_value(text, literals=True)
            return quoted if isinstance(quoted, str) else text
        elif kind is Any:
            return parse_value(text, literals=True)
        else:
            adapter: TypeAdapter[Any] = TypeAdapter(kind)
            readings: tuple[Callable[[], Any], ...] = (
                lambda: adapter.validate_python(parse_value(text, literals=True), strict=True),
                lambda: adapter.validate_json(text, strict=True),
                lambda: adapter.validate_python(text, strict=True),
                lambda: adapter.validate_python(float(text), strict=True),  # .5, 1e-3, inf
            )
            for reading in readings:
                try:
                    return reading()
                except (ValidationError, ValueError):
                    continue
        raise RecipeError(f"{self.name}: {key} = {text!r} is not allowed: it takes a value of type {_written(kind)}")

    def inputs(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Files that the notebook names, with digests of what is in them.

        Those are the texts in its code and its parameters that are the path of a file (relative to the notebook, as
        ``text:…`` and ``hf:…`` too), and the Python files beside it that it imports. A name that is put together while it runs
        is not seen.
        """
        texts, modules = [v for v in values.values() if isinstance(v, str)], set[str]()
        for cell in self.content.cells:
            for node in _walk(cell.source) if cell.cell_type == "code" else ():
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.split(".")[0])
        here = self.path.parent
        files = {file for text in texts for file in _files(here, text)}
        files |= {file for m in modules for file in [here / f"{m}.py", *(here / m).glob("*.py")] if file.is_file()}
        return {os.path.relpath(file, here): sha256_of(file)[:16] for file in sorted(files)}

    def execute(self, target: Path, values: Mapping[str, Any], note: str = "") -> str | None:
        """Run it under papermill, with the Python of this process, into ``target``; what went wrong in one line, or None.

        It runs in its own folder, as in JupyterLab. ``note``: Markdown that stands below its first cell there.
        """
        import papermill
        from nbformat.v4 import new_markdown_cell
        from papermill.exceptions import PapermillExecutionError

        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        content = copy.deepcopy(self.content)
        content.cells[1:1] = [new_markdown_cell(note, id="note")] if note else []
        try:
            with child.directory_last() as first_line, own_kernel():
                papermill.execute_notebook(
                    content,
                    str(target).replace("{", "{{").replace("}", "}}"),  # papermill fills in what stands in braces
                    dict(values),
                    progress_bar=False,
                    cwd=str(self.path.parent),
                    kernel_name="python3",
                    extra_arguments=["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={first_line}; {QUICK}"],
                )
        except PapermillExecutionError as error:
            value = " ".join(str(error.evalue).split())
            return f"cell {error.exec_count} raised {error.ename}: {value} (see {target})"
        except Exception as error:  # the kernel died, the disk is full, …: the others go on
            words = " ".join(str(error).split())[:300]
            if type(error).__name__ == "DeadKernelError":
                words = "its kernel died: out of memory, killed, or ended by the notebook itself"
            return f"{words or type(error).__name__} (see {target})"
        return None


def shipped() -> Path | None:
    """Where the lab's own notebooks lie: in its checkout, or where the package was installed."""
    above = Path(__file__).resolve().parents[2]
    places = [
        above,
        *(Path(base) / "share/isthmus" for base in (above, sysconfig.get_path("data"), site.getuserbase())),
    ]
    return next((place / "notebooks" for place in places if (place / "notebooks/00_start_here.ipynb").is_file()), None)


def find(name: str) -> Path:
    """A notebook by its path or its name; one that comes with the lab is copied to ``notebooks/``, where there is none yet."""
    for path in (Path(name), Path("notebooks") / name, Path("notebooks") / f"{name}.ipynb"):
        if path.is_file():
            return path
    own = shipped()
    if not Path("notebooks").exists() and own is not None and (own / f"{name.removesuffix('.ipynb')}.ipynb").is_file():
        click.echo(f"{copy_shipped(Path('notebooks'))} notebooks that come with the lab copied to notebooks/")
        return find(name)
    there = ", ".join(p.stem for p in sorted((own or Path("notebooks")).glob("[0-9]*.ipynb"))) or "none here"
    raise RecipeError(f"no notebook {name!r}: there are {there}")


def copy_shipped(folder: Path) -> int:
    """Copy the lab's own notebooks into a folder; how many. What is there already stays as it is."""
    source = shipped()
    if source is None:
        raise RecipeError("this installation of isthmus has no notebooks: install it again with pip")
    copied = 0
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = folder / file.relative_to(source)
        ours = (file.suffix == ".ipynb" and file.parent == source) or {"stored", "firm"} & {
            *file.relative_to(source).parts
        }
        if ours and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, file.read_bytes())
            copied += file.suffix == ".ipynb"
    return copied


def given(parameters: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x=y"]`` → texts by name; the values may hold commas.

    Raises
    ------
    RecipeError
        for a text that is no ``key=value``, and for a key that is there twice.
    """
    out: dict[str, str] = {}
    for text in parameters:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier() or keyword.iskeyword(key):
            raise RecipeError(f"-p {text!r}: write key=value, for example -p steps=100")
        if key in out:
            raise RecipeError(f"-p {key} is there twice: give it once")
        out[key] = value
    return out


def unchanged(folder: Path, inputs: dict[str, str]) -> bool:
    """Whether all these files, relative to the folder, are still what they were."""
    return all((folder / file).is_file() and sha256_of(folder / file)[:16] == was for file, was in inputs.items())


@contextmanager
def own_kernel() -> Iterator[None]:
    """Meanwhile ``python3`` is the Python of this process, whatever kernels are installed under that name."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    own = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, **PYTHON, "metadata": {"debugger": False}}), encoding="utf-8")
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, *([own] if own else [])])
        try:
            yield
        finally:
            del os.environ["JUPYTER_PATH"]
            os.environ.update({} if own is None else {"JUPYTER_PATH": own})


def _parsed(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):  # %magic and the like: line by line
        return [node for line in source.splitlines() if (part := _line(line)) for node in part]


def _line(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return []


def _walk(source: str) -> Iterator[ast.AST]:
    for statement in _parsed(source):
        yield from ast.walk(statement)


def _type(annotation: ast.expr) -> Any:
    """The type that an annotation names, where it is made of Python's own; else `Any`."""
    allowed = ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.Constant, ast.BinOp, ast.BitOr, ast.Expression
    if any(
        not isinstance(node, allowed) or (isinstance(node, ast.Name) and node.id not in TYPES)
        for node in ast.walk(annotation)
    ):
        return Any
    try:
        kind = eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, TYPES)
        TypeAdapter(kind)
    except Exception:  # what only looks like a type
        return Any
    return kind


def _written(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _files(here: Path, text: str) -> Iterator[Path]:
    """Files that a text names, if it names any."""
    head, _, rest = text.partition(":")
    if head == "text":
        names = [rest, *rest.split(",")]
    elif head == "hf":
        names = [f"{rest}/*"]
    else:
        names = [text]
    for name in names:
        if not name.strip() or len(name) > 1024 or "\n" in name or "\0" in name or "**" in name:
            continue
        path = here / name
        try:
            if path.is_file():
                yield path
            elif head in ("text", "hf") and not Path(name).is_absolute():
                yield from (f for f in here.glob(f"{name}/*" if path.is_dir() else name) if f.is_file())
        except (OSError, ValueError, NotImplementedError):
            continue
