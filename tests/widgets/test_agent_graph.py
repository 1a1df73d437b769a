"""AgentGraph: what it says is what it draws, by hand and of a made-up record."""

from __future__ import annotations

import math

import pytest

from lab.events import Ended, Orchestrated, from_json, to_json
from tests.support.pictures import check_forms_agree, check_well_formed, orchestrated
from widgets import AgentGraph, Lines, Matrix
from widgets.pictures import Note

P = [[0.0, 0.75, 0.25], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
UPDATE = Orchestrated(1, "nexa", True, 3, 4, 2, 1, 20, 300, 100, 6, 1, 12, 6, 3, 0, P, 0.4)
SECOND = Orchestrated(2, "nexa", True, 3, 4, 3, 1, 18, 300, 100, 5, 1, 12, 6, 3, 0, P, 0.6)
TEST = Orchestrated(2, "nexa", False, 3, 8, 6, 4, 32, 600, 200, 8, 2, 24, 10, 7, 1, P)
WIDE = Orchestrated(2, "nexa", False, 2, 8, 4, 4, 20, 300, 100, 4, 2, 16, 16, 0, 4, [[0.0, 0.5], [0.0, 0.0]])
RIVAL = Orchestrated(2, "full", False, 3, 8, 7, 4, 40, 1100, 500, 24, 0, 24, 10, 7, 1, P)
VIEWS = {
    "whole": AgentGraph.of(orchestrated()),
    "long": AgentGraph.of(orchestrated(updates=300, agents=(5, 10, 20))),
    "one update": AgentGraph.of([UPDATE]),
    "tests alone": AgentGraph.of([TEST, RIVAL]),
    "a rival alone": AgentGraph.of([RIVAL]),
    "by hand": AgentGraph.of([UPDATE, SECOND, WIDE, TEST, RIVAL]),
    "nothing yet": AgentGraph.of(orchestrated(updates=0)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: AgentGraph) -> None:
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_the_sentence_has_the_numbers_that_are_drawn_below() -> None:
    said, edges, answers, kept, costs, moves = VIEWS["by hand"].pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "Update 2 of the policy has 1.2 of 3 edges a question (1.5 in the first). On 8 questions that are held out: nexa, 3 agents: 75.0% of 8 "
        "questions right (50.0% by the drafts alone), 1.0 of 3 edges, 4.0 calls and 100 tokens a question; 50.0% of wrong answers rescued, 10.0% "
        "of right ones harmed. Of what else was tried, full with 3 agents is right most often: 87.5%, at 200 tokens a question."
    )
    assert isinstance(edges, Matrix)
    assert edges.values == [[None, 0.75, 0.25], [None, None, 0.5], [None, None, None]]
    assert edges.title == "Who hears whom? (3 agents, held out)"
    assert all(isinstance(p, Lines) for p in (answers, kept, moves, costs))
    assert [list(s.y) for s in answers.series] == [[0.5, 0.75], [0.25, 0.25]]
    assert list(kept.series[0].y) == [1.5, 1.25]
    rescued, harmed, preserved = (list(s.y) for s in moves.series)
    assert list(moves.series[0].x) == [2.0, 3.0]
    assert math.isnan(rescued[0])
    assert rescued[1:] == [0.5]
    assert (harmed, preserved) == ([0.25, 0.1], [0.75, 0.9])
    assert {s.name: (list(s.x), list(s.y)) for s in costs.series} == {
        "nexa": ([50.0, 100.0], [0.5, 0.75]),
        "full": ([200.0], [0.875]),
    }


def test_without_tests_the_last_update_is_drawn() -> None:
    said, edges, *_ = AgentGraph.of([UPDATE]).pictures()
    assert (
        "Update 1 of the policy has 1.5 of 3 edges a question (it is the first). nexa, 3 agents: 50.0% of 4"
        in said.words
    )
    assert edges.title == "Who hears whom? (3 agents, update 1)"


def test_another_piece_of_work_begins_anew() -> None:
    view = AgentGraph.of([UPDATE, TEST, Ended(1, "done", ""), SECOND])
    assert (list(view.step), view.tested) == ([2], {})


def test_an_event_reads_back_as_it_was_written() -> None:
    for event in (UPDATE, TEST):
        assert from_json(to_json(event)) == event
    alone = Orchestrated(0, "single", False, 1, 2, 1, 1, 2, 4, 2, 0, 2, 2, 2, 0, 0, [[0.0]])
    assert (alone.rescue, alone.harm, alone.most_edges, alone.tokens) == (None, 0.0, 0, 3.0)
    assert alone.words() == (
        "single, 1 agent: 50.0% of 2 questions right (50.0% by the drafts alone), 0.0 of 0 edges, 1.0 calls and 3 tokens a question; 0.0% of "
        "right ones harmed"
    )
