"""The laws on a method, tried in seconds: from a notebook cell, or in a test of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.methods import Method, name_of, parse_method
from lab.seeds.surroundings import isolated
from lab.testing.generators import own_generators
from lab.testing.method_laws import LAWS, exceptions
from lab.testing.report import Report, named, refused, report
from lab.testing.subject import Subject


def check_method(method: Method | type[Method] | str, recipe: Mapping[str, Any] | None = None) -> Report:
    """Try the laws that every method keeps, on three workers with 40 parameters each in float64.

    Long sync periods are shortened, so that a few steps see several rounds. Laws that a method does not claim it names itself, in
    ``exceptions()``, each with the reason (`lab.methods.Method`).

    Parameters
    ----------
    method
        an object, its class (then with its defaults), or what a recipe names it by.
    recipe
        fields of a recipe that it needs, for example ``{"lora": {"ranks": [2]}}`` for a method of adapters. With ``model`` and ``data`` it
        is tried on those.

    Returns
    -------
    a table that a cell shows. Nothing is raised: in a test write ``check_method(…).assert_all()``.
    """
    with isolated(), own_generators():
        try:
            found: Method = method() if isinstance(method, type) else parse_method(method)
            about, subject, excepted = f"method {name_of(found)}", Subject(found, recipe), exceptions(found)
        except Exception as error:
            return refused(f"method {named(method)}", LAWS[0], error)
        return report(about, LAWS, subject, excepted)
