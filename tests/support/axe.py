"""axe-core, which finds what keyboards and screen readers cannot use: no part of the repository, fetched when a test wants it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

# Of what the lab has put into a page: every rule that is broken, how badly, and where.
LOOK = """async (where) => {
  const { violations } = await axe.run({ include: [[where]] }, { resultTypes: ["violations"] });
  return violations.flatMap(({ id, impact, nodes }) => nodes.map((n) => [impact, id, n.target.join(" "), n.failureSummary.slice(0, 300)]));
}"""


@cache
def source() -> str | None:
    """The script: of the file that ``AXE_CORE`` names, else from the npm registry; None where neither is to be had."""
    if given := os.environ.get("AXE_CORE"):
        return Path(given).read_text(encoding="utf-8")
    if shutil.which("npm") is None:
        return None
    with TemporaryDirectory() as folder:
        try:
            command = ["npm", "pack", "axe-core@4", "--silent"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
            (packed,) = Path(folder).glob("*.tgz")
            with tarfile.open(packed) as archive:
                member = archive.extractfile("package/axe.min.js")
                return None if member is None else member.read().decode()
        except (subprocess.SubprocessError, OSError, ValueError):
            return None


def serious(page: Any, where: str) -> list[list[str]]:
    """What axe finds serious or critical within ``where``, a CSS selector; skips the test where there is no axe."""
    script = source()
    if script is None:
        pytest.skip("needs axe-core: npm and the registry, or AXE_CORE=/path/to/axe.min.js")
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(script)
    return [found for found in page.evaluate(LOOK, where) if found[0] in ("serious", "critical")]
