"""One piece of work from its settings: a policy learns who should hear whom, then it and its rivals answer questions that are held out.

It is written down as a record (`lab.runs.records`), some updates or one plan with so many agents at a time, so that no call which was paid
for is made again when it was cut off.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field

from lab.events import Ended, Event, Orchestrated, Warned
from lab.ground.config import Count, Fraction, checked, config
from lab.ground.errors import RecipeError
from lab.ground.files import located, sha256_of
from lab.runs.records import PLACE, Record, Work, fill
from lab.runs.stored import ENDING, first_line
from lab.systems.agents.agent import Setting
from lab.systems.agents.arithmetic import Arithmetic
from lab.systems.agents.endpoint import Endpoint
from lab.systems.agents.learning import Learner, Nexa, load_policy
from lab.systems.agents.nexa import Learning, Policy, PolicyModule, saturation
from lab.systems.agents.plans import Outcome, Plan, play
from lab.systems.agents.rivals import Kind, Rival
from lab.systems.agents.synthetic import Synthetic

AT_ONCE = 64  # questions of a test that are asked together
POLICY = "policy.safetensors"  # in the record's folder
RECORD = r"agents-[0-9a-f]{8}"  # its name


@config
class Orchestration:
    """All that is needed to do it again.

    world
        who answers what: ``synthetic``, ``arithmetic`` or ``endpoint``, with the options of that name.
    start
        a policy's file, or the name of a record in the same folder of runs (``agents-1a2b3c4d``), whose policy it is: it is frozen, and nothing is
        learnt. ``start_sha256`` is filled in for a file.
    num_agents, learning, policy
        how the policy learns, with how many agents.
    decode
        of the frozen policy: edges ``sampled``, or those that are ``likely``.
    rivals, threshold, density
        what it is compared with (`lab.systems.agents.rivals`).
    test_agents, test_questions
        with how many agents all of them answer how many questions that are held out.
    save_every
        updates of a cell: what has to be done again at most.
    """

    kind: ClassVar[str] = "agents"

    world: Literal["synthetic", "arithmetic", "endpoint"] = "synthetic"
    synthetic: Synthetic = Field(default_factory=Synthetic)
    arithmetic: Arithmetic = Field(default_factory=Arithmetic)
    endpoint: Endpoint | None = None
    num_agents: Count = 10
    policy: Policy = Field(default_factory=Policy)
    learning: Learning = Field(default_factory=Learning)
    start: str | None = None
    start_sha256: str | None = None
    decode: Literal["sampled", "likely"] = "sampled"
    rivals: tuple[Kind, ...] = ("single", "parallel", "self_consistency", "selforg", "chain", "full")
    threshold: float = 0.5
    density: Fraction = 0.5
    test_agents: tuple[Count, ...] = (5, 10, 15, 20)
    test_questions: Count = 256
    save_every: Count = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.world == "endpoint" and self.endpoint is None:
            raise RecipeError(
                "world = 'endpoint' needs endpoint.base_url, endpoint.model and endpoint.questions: nobody is asked who was not named"
            )

    def setting(self) -> Setting:
        """Raises LabError where something that it needs is not there."""
        if self.world == "endpoint":
            assert self.endpoint is not None
            return self.endpoint.setting()
        return self.synthetic.setting() if self.world == "synthetic" else self.arithmetic.setting()


def orchestrate(
    settings: Orchestration,
    runs: str | Path = "runs",
    *,
    stored: str | Path = "",
    again: bool = False,
    tell: Callable[[Event], None] = lambda event: None,
) -> Record:
    """Learn and test what the record of these settings does not have yet; the policy is written into its folder.

    ``stored``, ``again`` and ``tell``: see `lab.runs.records.fill`; at the end ``tell`` is called with `Ended`, so that a view comes to rest.

    Raises
    ------
    LabError
        for whatever goes wrong with agents, files and settings: one line.
    """
    frozen: Callable[[], PolicyModule] | None = None
    if settings.start is not None and re.fullmatch(RECORD, settings.start):  # read once it is needed
        frozen = partial(_policy_of, settings.start, runs, stored)
    elif settings.start is not None:
        policy = load_policy(settings.start)
        digest = sha256_of(located(settings.start))
        if settings.start_sha256 not in (None, digest):
            raise RecipeError(f"start = {settings.start!r} is another file than when it began: leave start_sha256 out")
        settings, frozen = dataclasses.replace(settings, start_sha256=digest), lambda: policy
    record = fill(settings, _Cells(settings, frozen).all(), runs, stored=stored, again=again, tell=tell)
    tell(Ended(0 if frozen else settings.learning.updates, "done", ""))
    return record


def _policy_of(name: str, runs: str | Path, stored: str | Path) -> PolicyModule:
    """Of a record; where only its small form is there, it is done once more, for that has no policy."""
    path, small = Path(runs) / PLACE / name / POLICY, Path(stored) / f"{name}{ENDING}"
    if not path.exists() and stored and small.exists():
        values = {key: value for key, value in json.loads(first_line(small)).items() if key != "kind"}
        orchestrate(checked(Orchestration, values, "its settings"), runs)
    if not path.exists():
        raise RecipeError(
            f"start = {name!r}: {path.parent} has no policy: use the name of a record that is there, or the path of a policy"
        )
    return load_policy(path)


def learnt(record: Record) -> PolicyModule:
    """The policy that a record has come to."""
    return load_policy(record.path / POLICY)


def results(record: Record) -> dict[tuple[str, int], Orchestrated]:
    """What came of the questions that are held out, by plan and number of agents."""
    found = (e for e in record.events if isinstance(e, Orchestrated) and not e.learning)
    return {(e.plan, e.num_agents): e for e in found}


class _Cells:
    """The pieces of the work. Agents are made when the first of them needs them."""

    def __init__(self, settings: Orchestration, frozen: Callable[[], PolicyModule] | None):
        self.settings, self.frozen = settings, frozen
        self._setting: Setting | None = None
        self._learner: Learner | None = None

    @property
    def setting(self) -> Setting:
        if self._setting is None:
            self._setting = self.settings.setting()
        return self._setting

    def all(self) -> dict[str, Work]:
        s, cells = self.settings, dict[str, Work]()
        updates = 0 if self.frozen else s.learning.updates
        for first in range(0, updates, s.save_every):
            last = min(first + s.save_every, updates)
            cells[f"updates {first + 1} to {last}"] = self._learning(first, last)
        for name in ("nexa", *dict.fromkeys(s.rivals)):
            for num in (1,) if name == "single" else dict.fromkeys(s.test_agents):
                cells[f"{name} with {num}"] = self._testing(name, num, updates)
        return cells

    def _learning(self, first: int, last: int) -> Work:
        def work(record: Record) -> Iterator[Event]:
            learner = self._at(record, first)
            while learner.updates < last:
                outcomes, reward = learner.update_()
                event = summed(outcomes, "nexa", learner.updates, reward)
                if learner.updates == 1 and (says := saturation(_mean_probability(event))) is not None:
                    yield Warned(1, says)
                yield event
            record.keep(f"learner-{last}", learner.tensors())
            learner.save(record.path / POLICY)

        return work

    def _at(self, record: Record, updates: int) -> Learner:
        """The learner after so many updates: as it is at hand, or as the cell before has left it."""
        s = self.settings
        if self._learner is None or self._learner.updates != updates:
            self._learner = Learner(self.setting, s.policy, s.learning, s.num_agents, s.seed)
            if updates:
                self._learner.go_on_from_(record.kept(f"learner-{updates}"), updates)
        return self._learner

    def _testing(self, name: str, num_agents: int, updates: int) -> Work:
        def work(record: Record) -> Iterator[Event]:
            yield evaluate(
                self.setting, self._plan(name, record), num_agents, self.settings.test_questions, step=updates
            )

        return work

    def _plan(self, name: str, record: Record) -> Plan:
        s = self.settings
        if name != "nexa":
            return Rival(name, s.threshold, s.density, s.seed)  # type: ignore[arg-type]
        return Nexa(self.frozen() if self.frozen else learnt(record), s.seed, s.decode)


def evaluate(setting: Setting, plan: Plan, num_agents: int, num_questions: int = 256, *, step: int = 0) -> Orchestrated:
    """A plan on the first so many questions that are held out."""
    outcomes = []
    for first in range(0, num_questions, AT_ONCE):
        queries = setting.questions.queries(first, min(AT_ONCE, num_questions - first), held_out=True)
        outcomes.append(play(setting, plan, queries, num_agents))
    return summed(outcomes, plan.name, step)


def summed(outcomes: Sequence[Outcome], plan: str, step: int, reward: float | None = None) -> Orchestrated:
    """Batches, or rollouts, as one event. With a ``reward`` it is one of learning."""
    before, after = torch.cat([o.drafts_right for o in outcomes]), torch.cat([o.finals_right for o in outcomes])
    edges = torch.cat([o.edges for o in outcomes]).sum((1, 2))
    sizes = torch.tensor([len(o.right) for o in outcomes], dtype=torch.float64)
    mean_RR = torch.stack([n * o.probability_RR for n, o in zip(sizes, outcomes, strict=True)]).sum(0) / sizes.sum()
    return Orchestrated(
        step=step,
        plan=plan,
        learning=reward is not None,
        num_agents=before.shape[1],
        questions=len(edges),
        right=int(sum(o.right.sum() for o in outcomes)),
        right_drafts=int(sum(o.right_drafts.sum() for o in outcomes)),
        calls=sum(o.calls for o in outcomes),
        tokens_in=sum(o.tokens_in for o in outcomes),
        tokens_out=sum(o.tokens_out for o in outcomes),
        edges=int(edges.sum()),
        empty=int((edges == 0).sum()),
        answers=before.numel(),
        right_before=int(before.sum()),
        rescued=int((after & ~before).sum()),
        harmed=int((before & ~after).sum()),
        probability_RR=[[round(float(p), 6) for p in row] for row in mean_RR],
        reward=reward,
    )


def _mean_probability(event: Orchestrated) -> float:
    """Over all edges that there may be."""
    return sum(map(sum, event.probability_RR)) / max(1, event.most_edges)
