"""Small tables for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Rows under a head, without an index column; shown by pandas as HTML or text."""
    import pandas as pd  # not before there is a table: it takes a quarter of what all of torch does

    return pd.DataFrame([list(r) for r in rows], columns=list(head)).style.hide(axis="index")
