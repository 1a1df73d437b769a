"""Small tables for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Rows under a head, without an index column; shown by pandas as HTML or text."""
    return pd.DataFrame([list(r) for r in rows], columns=list(head)).style.hide(axis="index")
