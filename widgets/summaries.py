"""A run in sentences: what each view that has something to say answers to its question, without drawing anything.

Registered as the entry point ``isthmus.answers`` (`lab.runs.answers`), so that a terminal says it at the end of a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from lab.events import Event, KnobChanged, Stepped
from lab.runs.columns import Curves
from widgets.communication_budget import CommunicationBudget
from widgets.drift import Drift
from widgets.fairness import Fairness
from widgets.federation_tree import FederationTree
from widgets.iterations import Iterations
from widgets.knobs import Knobs
from widgets.mask_agreement import MaskAgreement
from widgets.pseudo_labels import PseudoLabels
from widgets.rank_segments import RankSegments
from widgets.routing_stability import RoutingStability
from widgets.sample_weights import SampleWeights
from widgets.sync_calendar import SyncCalendar
from widgets.training_losses import Losses
from widgets.underperformers import Underperformers
from widgets.view import View
from widgets.workers import Workers

ALWAYS: tuple[type[View], ...] = (Losses, CommunicationBudget, SyncCalendar)  # of every run that took a step
# Of runs in which something happened that is their subject, and of nothing else.
SOME: tuple[type[View], ...] = (
    Workers, Drift, RoutingStability, RankSegments, Fairness, Underperformers, MaskAgreement, PseudoLabels, FederationTree, Iterations,
    SampleWeights, Knobs,
)  # fmt: skip


def answers(events: Iterable[Event]) -> list[tuple[str, str]]:
    """Questions and what is said to them, of all events of one run."""
    views, happened = [view() for view in (*ALWAYS, *SOME)], set[type]()
    for event in events:
        if not (isinstance(event, KnobChanged) and event.knob == "paused"):  # a pause alone is nothing to tell of
            happened.add(type(event))
        for view in list(views):
            try:
                view.replay([event])
            except Exception:  # a view that raises is dropped, as everywhere
                views.remove(view)
    out = []
    for view in views:
        if Stepped in happened and _has_something_to_say(view, happened):
            with contextlib.suppress(Exception):
                out.append((view.title, view.answer()))
    return [(question, answer) for question, answer in out if answer]


def _has_something_to_say(view: View, happened: set[type]) -> bool:
    if isinstance(view, ALWAYS):
        return True
    if isinstance(view, Workers):
        return not view.quiet
    return bool((set(view.reads) - set(Curves.READS)) & happened)
