"""Who should hear whom? Edges by rank, what hearing others does to answers, and accuracy against tokens beside rivals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lab.events import Ended, Event, Orchestrated
from lab.runs.growing import Growing
from widgets.answers import percent, plural
from widgets.matrices import Matrix
from widgets.pictures import Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Who should hear whom?"
HEARS = "{column} hears {row} with probability {value}\nmean over questions; rank 1 contributes most"
MOVES = "{name}, {x} agents: {y}\nrescued: of agents' wrong answers; harmed and preserved: of their right ones"
COSTS = "{name}: {y} of the questions right, at {x} tokens each"


@dataclass(eq=False, repr=False)
class AgentGraph(View):
    """Edges by rank, learning, rescue and harm against the number of agents, accuracy against tokens, from `Orchestrated`."""

    title = TITLE
    reads = (Orchestrated, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    right: Growing = field(default_factory=Growing, init=False)
    right_drafts: Growing = field(default_factory=Growing, init=False)
    edges: Growing = field(default_factory=Growing, init=False)
    learnt: Orchestrated | None = field(default=None, init=False)  # the last update
    tested: dict[tuple[str, int], Orchestrated] = field(default_factory=dict, init=False)  # by plan and agents
    over: bool = field(default=False, init=False)

    def fold(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.over = True
            return
        assert isinstance(event, Orchestrated)
        if self.over:  # another piece of work begins
            self.step, self.right, self.right_drafts, self.edges = Growing(), Growing(), Growing(), Growing()
            self.learnt, self.tested, self.over = None, {}, False
        if not event.learning:
            self.tested[event.plan, event.num_agents] = event
            return
        self.step.append(event.step)
        self.right.append(event.accuracy)
        self.right_drafts.append(event.right_drafts / event.questions)
        self.edges.append(event.edges / event.questions)
        self.learnt = event

    @property
    def of_policy(self) -> list[Orchestrated]:
        """Tests of the policy, by how many agents there are."""
        return sorted((e for e in self.tested.values() if e.plan == "nexa"), key=lambda e: e.num_agents)

    @property
    def shown(self) -> Orchestrated | None:
        """Whose edges are drawn: a test with as many agents as it learnt with, else the last test of the policy, else the last update."""
        tests = self.of_policy
        alike = [e for e in tests if self.learnt is not None and e.num_agents == self.learnt.num_agents]
        return next(iter(alike or tests[-1:]), self.learnt)

    def answer(self) -> str:
        shown = self.shown or next(iter(self.tested.values()), None)
        if shown is None:
            return "Nobody has answered yet."
        when = (
            f"At update {shown.step:,}, of {shown.questions:,}"
            if shown.learning
            else f"Of {shown.questions:,} held-out"
        )
        who = f"{plural(shown.num_agents, 'agent')} ({shown.plan})"
        return (
            f"{when} questions {who} get {percent(shown.accuracy)} right, their drafts alone {percent(shown.right_drafts / shown.questions)}, "
            f"at {shown.tokens:,.0f} tokens a question."
        )

    def pictures(self) -> list[Picture]:
        shown = self.shown
        if shown is None and not self.tested:
            return [
                Note(
                    TITLE,
                    "Nobody has answered yet: lab agents, or lab.systems.agents.orchestrate.orchestrate, lets agents do so.",
                )
            ]
        out: list[Picture] = [Note("In numbers", self.words())]
        if shown is not None and shown.num_agents > 1:
            out.append(self._edges(shown))
        if len(self.step):
            out += self._learning()
        return [*out, *self._tests()]

    def words(self) -> str:
        """What is drawn, in numbers."""
        parts = []
        if self.learnt is not None:
            known = f"{self.learnt.edges / self.learnt.questions:.1f} of {self.learnt.most_edges}"
            first = f"{float(self.edges[0]):.1f} in the first" if len(self.step) > 1 else "it is the first"
            parts.append(f"Update {self.learnt.step:,} of the policy has {known} edges a question ({first})")
        if self.shown is not None and not self.shown.learning:
            parts.append(f"On {self.shown.questions:,} questions that are held out: {self.shown.words()}")
        elif self.learnt is not None:
            parts.append(self.learnt.words())
        rivals = [e for e in self.tested.values() if e.plan != "nexa"]
        if rivals:
            best = max(rivals, key=lambda e: (e.accuracy, -e.tokens))
            parts.append(
                f"Of what else was tried, {best.plan} with {best.num_agents} agent{'s' * (best.num_agents > 1)} is right most often: {best.accuracy:.1%}, "
                f"at {best.tokens:,.0f} tokens a question"
            )
        return ". ".join(parts) + "."

    def _edges(self, e: Orchestrated) -> Matrix:
        ranks = [f"rank {k + 1}" for k in range(e.num_agents)]
        values = [[p if k < j else None for j, p in enumerate(row)] for k, row in enumerate(e.probability_RR)]
        when = f"update {e.step:,}" if e.learning else "held out"
        return Matrix(
            f"Who hears whom? ({e.num_agents} agents, {when})",
            "who hears; down: who speaks",
            ranks,
            ranks,
            values,
            "probability",
            low=0.0,
            high=1.0,
            hover=HEARS,
        )

    def _learning(self) -> list[Picture]:
        answers = [
            Series("answer", self.step, self.right),
            Series("drafts alone", self.step, self.right_drafts),
        ]
        return [
            Lines("Do answers get better?", "update", "share right", answers, reach=(0.0, 1.0)),
            Lines(
                "How many edges does it keep?",
                "update",
                "edges a question",
                [Series("edges", self.step, self.edges, colour=2)],
            ),
        ]

    def _tests(self) -> list[Picture]:
        out, tests = list[Picture](), self.of_policy
        if self.tested:
            plans = dict.fromkeys(plan for plan, _ in self.tested)
            costs = [self._costs(plan) for plan in plans]
            out.append(
                Lines(
                    "What does a right answer cost?",
                    "tokens a question",
                    "share of questions right",
                    costs,
                    hover=COSTS,
                    reach=(0.0, 1.0),
                )
            )
        if tests:
            num = [float(e.num_agents) for e in tests]
            kept = [None if e.harm is None else 1 - e.harm for e in tests]
            moves = [
                Series("rescued", num, _gaps([e.rescue for e in tests])),
                Series("harmed", num, _gaps([e.harm for e in tests])),
                Series("preserved", num, _gaps(kept)),
            ]
            out.append(
                Lines(
                    "What does hearing others do?", "agents", "share of answers", moves, hover=MOVES, reach=(0.0, 1.0)
                )
            )
        return out

    def _costs(self, plan: str) -> Series:
        points = sorted((e.tokens, e.accuracy) for (name, _), e in self.tested.items() if name == plan)
        return Series(plan, [x for x, _ in points], [y for _, y in points])


def _gaps(values: list[float | None]) -> list[float]:
    return [math.nan if x is None else x for x in values]
