"""Laws for every listed method. Those that only take other options of a method are marked: `make quick` leaves them out."""

from __future__ import annotations

import pytest

from lab.methods import METHODS, declared
from tests.support.listed import LISTED

CASES = [(name, method, () if name in METHODS else pytest.mark.variant) for name, method in LISTED.items()]
every_method = pytest.mark.parametrize("method", [pytest.param(m, id=name, marks=mark) for name, m, mark in CASES])
SERVED = [case for case in CASES if declared(case[1]).server]
every_peer, every_served = (
    pytest.mark.parametrize("method", [pytest.param(m, id=name, marks=mark) for name, m, mark in cases])
    for cases in ([case for case in CASES if case not in SERVED], SERVED)
)  # without a server, and with one
every_name = pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, _, mark in CASES])
