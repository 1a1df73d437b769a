"""The laws on a method, tried in seconds: from a notebook cell, or in a test of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lab.ground.seeds.surroundings import isolated
from lab.methods import Method, name_of, parse_method
from lab.testing.generators import own_generators
from lab.testing.method_laws import LAWS, exceptions
from lab.testing.report import Broken, Laws, Report, named, refused, report
from lab.testing.subject import Subject, difference, same_ledgers, together

CLOSE = 1e-10
TWO: Laws[tuple[Subject, Subject]] = Laws()  # of methods that are to be one


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


def check_reduction(method: Any, to: Any, recipe: Mapping[str, Any] | None = None) -> Report:
    """Whether two methods are one: with these options each worker goes the same way, and the same is sent.

    Every paper has a corner in which its method is an older one; there a new method is held against something that is known.

    Parameters
    ----------
    method, to
        objects, classes or names, as in `check_method`.
    recipe
        fields of a recipe that both need.
    """
    about = f"methods {named(method)} and {named(to)}"
    with isolated(), own_generators():
        try:
            one, other = (m() if isinstance(m, type) else parse_method(m) for m in (method, to))
            about = f"methods {name_of(one)} and {name_of(other)}"
            return report(about, TWO, (Subject(one, recipe), Subject(other, recipe)))
        except Exception as error:
            return refused(about, TWO[0], error)


@TWO.law(
    "numbers",
    "the parameters of every worker, after each of a few steps",
    "compare inner optimizers, their options, clipping and periods first",
)
def numbers(both: tuple[Subject, Subject]) -> None:
    one, other = both
    a, b = one.bench(), other.bench()
    for t in together(a, b, max(one.steps, other.steps)):
        mine, theirs = (replace(x.state, local={"params": x.state.local["params"]}) for x in (a, b))
        if odd := difference(mine, theirs, [(w, w) for w in one.workers], CLOSE, of="local"):
            raise Broken(f"{odd}, after step {t}")


@TWO.law(
    "ledger", "what is sent, record by record", "the same numbers may be reached with other means, or with a server"
)
def ledger(both: tuple[Subject, Subject]) -> None:
    one, other = both
    steps = max(one.steps, other.steps)
    same_ledgers(one.bench().run(steps).records, other.bench().run(steps).records, "in the one and in the other")
