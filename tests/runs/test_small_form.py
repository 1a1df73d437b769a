"""Rows as columns and back: what is stored in small form is every value that was there, in its order and of its kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.events import Event, Weighted, read, to_bytes
from lab.runs.stored import packed, unpacked

NUMBERS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.sampled_from(["", "a", "NaN"])
)
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(
    st.fixed_dictionaries({"kind": st.sampled_from("ab")}, optional=dict.fromkeys(("step", "loss", "w"), VALUES)),
    max_size=12,
)


def as_written(rows: Any) -> str:
    """1, 1.0 and true are three; keys keep their order."""
    return json.dumps(rows)


@given(ROWS)
def test_rows_come_back_as_they_were(rows: list[dict[str, Any]]) -> None:
    columns = json.loads(json.dumps(packed(rows)))
    assert as_written(unpacked(columns)) == as_written(rows)


def test_a_column_is_written_in_the_shortest_way() -> None:
    rows = [{"kind": "k", "step": 7 + k, "lr": 0.5, "loss": k / 7, "looks": 3 * (k // 40)} for k in range(100)]
    (group,) = packed(rows)["groups"]
    assert group["kind"] == {"runs": [["k", 100]]}
    assert group["step"] == {"steps": [[7, 1], [1, 99]]}
    assert group["lr"] == {"runs": [[0.5, 100]]}
    assert group["loss"] == [k / 7 for k in range(100)]
    assert group["looks"] == {"runs": [[0, 40], [3, 40], [6, 20]]}


@pytest.mark.parametrize(
    "columns",
    [
        {"order": [[0, 2]], "groups": [{"step": [1]}]},
        {"order": [[0, 1]], "groups": [{"step": [1, 2]}]},
        {"order": [[0, 1]], "groups": [{"step": [1]}, {"step": [1]}]},
        {"order": [[0, 2]], "groups": [{"step": [1, 2], "loss": [1]}]},
    ],
)
def test_columns_of_another_length_are_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not equally long"):
        unpacked(columns)


def test_names_beside_a_number_that_json_does_not_have() -> None:
    """A number that is none is written as a string; what it stands beside may be strings of its own."""
    event = Weighted(
        3,
        "adapt",
        ["noise", "inf erior"],
        4,
        [2, 2],
        [float("nan"), 1.0],
        [None, float("-inf")],
        0.5,
        None,
        None,
        None,
        {},
        {},
    )
    (found,) = [e for e in read(to_bytes(event)) if isinstance(e, Weighted)]
    assert found.domains == ["noise", "inf erior"]
    assert found.weight_D[0] != found.weight_D[0]
    assert found.score_D == [None, float("-inf")]
    assert isinstance(found, Event)
