"""The laws on a method, tried in seconds: from a notebook cell, or in a test of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.errors import shown
from lab.methods import Method, name_of, parse_method
from lab.seeds.surroundings import isolated
from lab.testing.method_laws import LAWS, exceptions, own_generators
from lab.testing.report import Finding, Report, of_error, report
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
            about = f"method {name_of(found)}"
            subject = Subject(found, recipe)
            excepted = exceptions(found)
        except Exception as error:
            about = f"method {method.__name__ if isinstance(method, type) else shown(method)}"
            return Report(about, (Finding("recipe", LAWS[0].tried, "failed", of_error(error)),))
        return report(about, LAWS, subject, excepted)
