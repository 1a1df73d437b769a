"""Laws for every listed method. Those that only take other options of a method are marked: `make quick` leaves them out."""

from __future__ import annotations

import pytest

from lab.methods import METHODS
from tests.support.listed import LISTED

CASES = [(name, method, () if name in METHODS else pytest.mark.variant) for name, method in LISTED.items()]
every_method = pytest.mark.parametrize("method", [pytest.param(m, id=name, marks=mark) for name, m, mark in CASES])
every_name = pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, _, mark in CASES])
