"""Rivals by hand, and the synthetic world: its draws, its ledger, and that plans meet the same questions, drafts and coins."""

from __future__ import annotations

import pytest
import torch

from lab.ground.errors import RecipeError
from lab.systems.agents.agent import Answer, Call, Ledger, OneByOne, Query, Setting
from lab.systems.agents.nexa import Drafts, contributions, order_of
from lab.systems.agents.plans import play
from lab.systems.agents.rivals import Rival
from lab.systems.agents.synthetic import Synthetic

S = Synthetic()
WORLD = S.setting()
QUERIES = WORLD.questions.queries(0, 256, held_out=True)


def drafts_of(rows: list[list[float]]) -> Drafts:
    r = torch.tensor([rows])
    return Drafts([Query(0, "q", "")], [[""] * len(rows)], r, order_of(contributions(r)))


def test_graphs_of_rivals_by_hand() -> None:
    drafts = drafts_of([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.9, 0.3]])  # by contribution: 3, 2, 0, 1
    assert drafts.order.tolist() == [[3, 2, 0, 1]]
    edges = {
        kind: Rival(kind).graph(drafts).edges[0].nonzero().tolist()
        for kind in ("single", "parallel", "chain", "full", "selforg")
    }
    assert edges["single"] == edges["parallel"] == []
    assert edges["chain"] == [[0, 1], [2, 0], [3, 2]]
    assert edges["full"] == [[0, 1], [2, 0], [2, 1], [3, 0], [3, 1], [3, 2]]
    assert edges["selforg"] == [[2, 0], [3, 0], [3, 2]]  # 1 is like nobody
    assert Rival("selforg", threshold=0.3).graph(drafts).edges[0].nonzero().tolist() == [[2, 0], [3, 0], [3, 1], [3, 2]]
    same = drafts_of([[1.0, 0.0]] * 3)
    assert not Rival("selforg").graph(same).edges.any()  # nobody contributes more


def test_a_vote_takes_the_first_of_the_most_frequent() -> None:
    vote, z = Rival("self_consistency"), torch.zeros(2, 5, 1)
    texts = [["3 #a", "1 #b", "2 #c", "1 #d", "2 #e"], ["4 #a", "5 #b", "5 #c", "6 #d", "5 #e"]]
    assert vote.choose(WORLD, texts, z).tolist() == [1, 1]


def test_random_graphs_have_their_density() -> None:
    came = play(WORLD, Rival("random", density=0.3), QUERIES, 10)
    assert float(came.edges.sum()) / (256 * 45) == pytest.approx(0.3, abs=0.02)
    assert not play(WORLD, Rival("random", density=0.0), QUERIES, 10).edges.any()
    assert torch.equal(
        play(WORLD, Rival("random", density=1.0), QUERIES, 10).edges, play(WORLD, Rival("full"), QUERIES, 10).edges
    )


def test_the_ledger_counts_calls_and_tokens() -> None:
    """Drafts: one call each. In the full graph rank k hears k answers."""
    full, single = play(WORLD, Rival("full"), QUERIES, 10), play(WORLD, Rival("single"), QUERIES, 10)
    assert single.calls == 256
    assert full.calls == 256 * 19
    assert full.tokens_in == 256 * (19 * S.query_tokens + 45 * S.answer_tokens)
    assert full.tokens_out == 256 * 19 * S.answer_tokens
    alone = OneByOne([_Says("a"), _Says("b")])
    ledger = Ledger(alone)
    assert ledger.answer([]) == []
    assert ledger.answer([Call(Query(0, "what", ""), 1, ("x",)), Call(Query(0, "what", ""), 0)]) == [
        "b what x",
        "a what ",
    ]
    assert (ledger.calls, ledger.tokens_in, ledger.tokens_out) == (2, 7, 9)


class _Says:
    def __init__(self, name: str):
        self.name = name

    def answer(self, query: str, heard: tuple[str, ...] | list[str]) -> Answer:
        return Answer(f"{self.name} {query} {' '.join(heard)}", 3 + len(heard), 4 + (self.name == "b"))


def test_plans_meet_the_same_drafts() -> None:
    """An agent's draft depends on the question and on itself: not on how many there are, in which batch, or what is done afterwards."""
    few, many = play(WORLD, Rival("parallel"), QUERIES[:5], 4), play(WORLD, Rival("full"), QUERIES, 20)
    assert torch.equal(few.drafts_right, many.drafts_right[:5, :4])
    assert torch.equal(few.right_drafts, few.right)
    numbers = [q.number for held_out in (False, True) for q in WORLD.questions.queries(7, 30, held_out)]
    assert len({*numbers}) == 60
    other = play(Synthetic(seed=1).setting(), Rival("parallel"), QUERIES[:5], 4)
    assert not torch.equal(other.drafts_right, few.drafts_right)


def test_the_world_is_as_its_options_say() -> None:
    came = play(WORLD, Rival("parallel"), QUERIES, 20)
    assert float(came.drafts_right.double().mean()) == pytest.approx((S.hard + S.easy) / 2, abs=0.04)
    always = Synthetic(rescue=1.0, sway=0.0).setting()
    after = play(always, Rival("full"), QUERIES, 10)
    first = after.drafts_right.gather(1, order_of(contributions(_embedded(always))))  # by rank
    reached = first.cumsum(1) > 0  # somebody before, or oneself, was right
    assert int(after.finals_right.sum()) == int(reached.sum())
    swayed = play(Synthetic(rescue=0.0, sway=1.0).setting(), Rival("chain"), QUERIES, 10)
    assert not (swayed.finals_right & ~swayed.drafts_right).any()
    assert (swayed.drafts_right & ~swayed.finals_right).any()
    with pytest.raises(RecipeError, match="at most 32"):
        play(WORLD, Rival("parallel"), QUERIES[:1], 33)


def _embedded(setting: Setting) -> torch.Tensor:
    texts = [a.text for a in setting.agents.answer([Call(q, n) for q in QUERIES for n in range(10)])]
    return setting.encoder.encode(texts).view(256, 10, -1)


def test_embeddings_are_as_far_apart_as_the_noise_says() -> None:
    still = Synthetic(noise=0.0).setting()
    texts = [a.text for a in still.agents.answer([Call(QUERIES[0], n) for n in range(20)])]
    z, results = still.encoder.encode(texts), [still.questions.result(t) for t in texts]
    alike = z @ z.T
    for i, a in enumerate(results):
        for j, b in enumerate(results):
            assert (alike[i, j] > 0.999) == (a == b)
    noisy = WORLD.encoder.encode(texts)
    assert float((noisy - z).std()) == pytest.approx(S.noise, rel=0.1)
    assert noisy.dtype == torch.float32
