"""Nexa against references and by hand: order, edges, probabilities, the pass, the answer, what is learnt from; and its laws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.systems.agents.agent import Answer, Call, Ledger, Query
from lab.systems.agents.learning import Learner, Nexa, load_policy
from lab.systems.agents.nexa import (
    Drafts,
    Learning,
    Policy,
    advantages,
    centroid_answer,
    contributions,
    feasible,
    log_probability,
    order_of,
    reward,
    sample,
    saturation,
    sequential_pass,
)
from lab.systems.agents.plans import Outcome, play
from lab.systems.agents.rivals import Rival
from lab.systems.agents.synthetic import Synthetic

WIDTH = 64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"))


@dataclass
class Told:
    """Agents that say who they are and whom they heard, and note what they were asked."""

    asked: list[Call] = field(default_factory=list)

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        self.asked += calls
        return [
            Answer(f"{c.agent}" + (f"({','.join(c.heard)})" if c.heard else ""), 5 + len(c.heard), 1) for c in calls
        ]


# --- order, edges ----------------------------------------------------------------------------------------------------


def test_no_graph_has_a_cycle() -> None:
    """10,000 random outputs of a policy, both decoders, with ties among contributions: an adjacency matrix whose N-th power is 0."""
    N, h = 7, normal(10_000, 7, 4)
    order = order_of(normal(10_000, N, seed=1).double().round(decimals=0))
    for logits in (h @ h.transpose(1, 2), 3 * F.normalize(h, dim=-1) @ F.normalize(h, dim=-1).transpose(1, 2)):
        edges = sample(logits, feasible(order), generator(0, "coins"))
        assert edges.sum() > 50_000
        assert not torch.linalg.matrix_power(edges.double(), N).any()
        assert (
            torch.linalg.matrix_power(feasible(order).double(), N - 1).any(dim=(1, 2)).all()
        )  # the longest path there is


def test_contributions_and_their_order() -> None:
    r = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]])  # mean (1, ½)
    root = 5**0.5
    assert contributions(r)[0].tolist() == pytest.approx([2 / root, 1 / root, 2 / root, 3 / (2**0.5 * root)])
    assert order_of(contributions(r)).tolist() == [[3, 0, 2, 1]]  # of 0 and 2, which are equal, the lower number
    assert feasible(torch.tensor([[2, 0, 1]]))[0].int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 0]]


def test_identical_answers_are_a_tie_whatever_was_added_up() -> None:
    for seed in range(50):
        r = normal(1, 9, WIDTH, seed=seed)
        r[0, [7, 2, 4]] = r[0, 5].clone()
        order = order_of(contributions(r))[0].tolist()
        assert [n for n in order if n in (2, 4, 5, 7)] == [2, 4, 5, 7]


@pytest.mark.parametrize("decoder", ["cosine", "literal"])
def test_permuting_agents_permutes_edges(decoder: str) -> None:
    policy = Policy(width=16, mlp_dim=16, decoder=decoder).build(WIDTH, seed=0).eval()
    for N in (1, 2, 5, 20):
        r, perm = normal(8, N, WIDTH, seed=N), torch.randperm(N, generator=generator(N, "perm"))
        with torch.no_grad():
            before, after = policy(r), policy(r[:, perm])
        torch.testing.assert_close(after, before[:, perm][:, :, perm], rtol=1e-4, atol=1e-4)
        first, then = feasible(order_of(contributions(r))), feasible(order_of(contributions(r[:, perm])))
        assert torch.equal(then, first[:, perm][:, :, perm])


def test_log_probability_is_that_of_bernoullis() -> None:
    logits, order = 3 * normal(64, 6, 6).double(), order_of(normal(64, 6, seed=1).double())
    may = feasible(order)
    edges = sample(logits, may, generator(0, "coins"))
    each = torch.distributions.Bernoulli(logits=logits).log_prob(edges.double())
    expected = torch.stack([each[q][may[q]].sum() for q in range(64)])
    torch.testing.assert_close(log_probability(logits, edges, may), expected)
    far = torch.full((1, 2, 2), -2000.0, dtype=torch.float64)  # where σ is 0 in any precision
    both = feasible(torch.tensor([[0, 1]]))
    assert log_probability(far, both, both).item() == -2000.0


def test_edges_come_as_often_as_their_probability_says() -> None:
    logits, may = torch.tensor([0.0, -1.0, 2.0]).repeat(20_000, 3, 1), feasible(torch.tensor([[0, 1, 2]] * 20_000))
    often = sample(logits, may, generator(0, "coins")).double().mean(0)
    p = torch.sigmoid(torch.tensor([-1.0, 2.0, 2.0]))
    assert often[[0, 0, 1], [1, 2, 2]].tolist() == pytest.approx(p.tolist(), abs=0.02)
    assert often.count_nonzero() == 3


# --- the pass, the answer --------------------------------------------------------------------------------------------


def test_a_pass_by_hand() -> None:
    """Two questions, four agents: those who hear somebody are asked again, by rank, and hear the newest."""
    queries = [Query(0, "a", ""), Query(1, "b", "")]
    texts = [["0", "1", "2", "3"]] * 2
    drafts = Drafts(queries, texts, torch.zeros(2, 4, 1), torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3]]))
    edges = torch.zeros(2, 4, 4, dtype=torch.bool)
    edges[0, [2, 2, 0, 3], [0, 1, 1, 1]] = True  # 2 → 0, and 2, 0, 3 → 1; 3 hears nobody
    edges[1, 1, 2] = True
    told = Told()
    ledger = Ledger(told)
    assert sequential_pass(drafts, edges, ledger) == [["0(2)", "1(2,0(2),3)", "2", "3"], ["0", "1", "2(1)", "3"]]
    assert [(c.query.text, c.agent, c.heard) for c in told.asked] == [
        ("a", 0, ("2",)),
        ("b", 2, ("1",)),
        ("a", 1, ("2", "0(2)", "3")),
    ]
    assert (ledger.calls, ledger.tokens_in, ledger.tokens_out) == (3, 3 * 5 + 5, 3)


def test_an_empty_graph_costs_no_call() -> None:
    """And gives the answer of the centroid of the drafts; a policy may come to that."""
    s, world = Synthetic(), Synthetic().setting()
    queries = world.questions.queries(0, 64, held_out=True)
    policy = Policy().build(WIDTH, seed=0)
    with torch.no_grad():
        policy.log_scale.fill_(0.0)
        policy.bias.fill_(-1000.0)
    alone = play(world, Rival("parallel"), queries, 10)
    for plan in (Nexa(policy), Nexa(policy, decode="likely")):
        came = play(world, plan, queries, 10)
        assert not came.edges.any()
        assert (came.calls, came.tokens_in, came.tokens_out) == (640, 640 * s.query_tokens, 640 * s.answer_tokens)
        assert torch.equal(came.right, alone.right)
        assert torch.equal(came.right, came.right_drafts)
    told = Told()
    drafts = Drafts(queries[:1], [["x", "y"]], torch.zeros(1, 2, 1), torch.tensor([[1, 0]]))
    assert sequential_pass(drafts, torch.zeros(1, 2, 2, dtype=torch.bool), Ledger(told)) == [["x", "y"]]
    assert not told.asked


def test_the_answer_near_the_centroid() -> None:
    """Weights are cosines with the mean, and one that is negative counts for next to nothing."""
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]])  # mean (¼, ¼)
    w = torch.tensor([0.5**0.5, 0.5**0.5, 0.0, 0.5**0.5])  # the centroid lies along (2, 1)
    near = F.cosine_similarity(z[0], (w[:, None] * z[0]).sum(0)[None], dim=-1)
    assert near.tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5, -2 / 5**0.5, 2 / 5**0.5])
    assert centroid_answer(z).tolist() == [0]  # not 3, which is as near
    assert centroid_answer(z[:, [2, 1, 3, 0]]).tolist() == [2]
    assert centroid_answer(torch.zeros(2, 3, 4)).tolist() == [0, 0]  # nothing to go by


# --- learning --------------------------------------------------------------------------------------------------------


def test_rewards_and_advantages_by_hand() -> None:
    edges = torch.zeros(2, 4, 4, dtype=torch.bool)
    edges[0, 0, 1:] = True
    found = reward(torch.tensor([True, False]), edges, 0.2)
    assert found.tolist() == pytest.approx([1 - 0.2 * 3 / 6, 0.0])
    assert reward(torch.tensor([True]), torch.zeros(1, 1, 1, dtype=torch.bool), 0.5).tolist() == [1.0]
    rewards = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert advantages(rewards[:1], "batch")[0].tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    of_questions = advantages(rewards, "question")
    assert of_questions.flatten().tolist() == pytest.approx([1, 0, 0, -1, 0, 0], abs=1e-4)


def test_the_gradient_of_reinforce() -> None:
    """∂loss/∂logit of an edge is −Adv·(e − p)/Q where it may be, and 0 elsewhere."""
    logits = normal(8, 5, 5).double().requires_grad_()
    may = feasible(order_of(normal(8, 5, seed=1).double()))
    edges = sample(logits, may, generator(0, "coins"))
    adv = advantages(reward(torch.tensor([True, False] * 4), edges, 0.1)[None], "batch")
    loss = -(adv * log_probability(logits, edges, may)[None]).mean()
    (grad,) = torch.autograd.grad(loss, logits)
    expected = -adv[0][:, None, None] * (edges.double() - logits.detach().sigmoid()) * may / 8
    torch.testing.assert_close(grad, expected)


def test_the_literal_decoder_is_saturated_and_says_so() -> None:
    """A LayerNorm's output of width 128 has a squared norm of 128: every edge is there, and nothing is learnt from trying."""
    world = Synthetic().setting()
    drafts = Learner(world, Policy(), Learning(), 10).setting.questions.queries(0, 32, held_out=False)
    for decoder, ok in (("cosine", True), ("literal", False)):
        policy = Policy(decoder=decoder).build(WIDTH, seed=0)
        came = play(world, Nexa(policy), drafts, 10)
        mean_p = float(came.probability_RR.sum() / 45)
        assert (saturation(mean_p) is None) == ok
        if not ok:
            assert mean_p > 0.99
            assert "decoder=cosine" in saturation(mean_p)
            assert came.edges.sum() == 32 * 45
    assert saturation(0.01).startswith("the policy is saturated")


def test_wrong_shapes_are_one_line() -> None:
    with pytest.raises(RecipeError, match="num_heads = 3 does not fit width = 128: width is a multiple of it"):
        Policy(num_heads=3)
    with pytest.raises(RecipeError, match="set rollouts to 2 or more"):
        Learning(baseline="question")
    with pytest.raises(RecipeError, match=r"hard = 0.5 is above easy = 0.2"):
        Synthetic(hard=0.5, easy=0.2)


def learnt(seed: int, **how: object) -> tuple[Learner, list[Outcome]]:
    learner = Learner(Synthetic(seed=seed).setting(), Policy(), Learning(**how), 10, seed=seed)
    return learner, [learner.update_()[0][0] for _ in range(learner.learning.updates)]


def edges_and_moves(learner: Learner) -> tuple[float, float, float, float]:
    """Mean edges, share of wrong answers of agents that become right, of right ones that become wrong, and accuracy gained."""
    queries = learner.setting.questions.queries(0, 256, held_out=True)
    came = play(learner.setting, Nexa(learner.policy), queries, 10)
    before, after = came.drafts_right, came.finals_right
    rescue, harm = (after & ~before).sum() / (~before).sum(), (before & ~after).sum() / before.sum()
    gained = came.right.double().mean() - came.right_drafts.double().mean()
    return float(came.edges.sum((1, 2)).double().mean()), float(rescue), float(harm), float(gained)


def test_edges_fall_with_what_they_cost() -> None:
    """Two seeds each; a price above all that can be won all but empties the graph. Far more is rescued than harmed."""
    found = {
        price: [edges_and_moves(learnt(seed, sparsity=price, updates=updates)[0]) for seed in range(2)]
        for price, updates in ((0.0, 40), (1.0, 40), (10.0, 30))
    }
    free, dear, dearest = (sum(x[0] for x in found[price]) / 2 for price in found)
    assert free > 2 * dear
    assert dear > 1.2 * dearest
    assert dearest < 5
    for _, rescue, harm, gained in found[0.0]:
        assert rescue > 10 * harm
        assert gained > 0.03


def test_a_frozen_policy_goes_with_any_number_of_agents(tmp_path: Path) -> None:
    """Learnt with 10, saved, loaded: 2 to 20 agents, edges within what is feasible, and better than their drafts on average from 5 on."""
    learner, _ = learnt(0, updates=10)
    learner.save(tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    queries = learner.setting.questions.queries(0, 128, held_out=True)
    for N in (1, 2, 5, 10, 15, 20):
        came, same = (play(learner.setting, Nexa(p), queries, N) for p in (policy, learner.policy))
        assert torch.equal(came.edges, same.edges)
        assert came.edges.shape == (128, N, N)
        heard = int(came.edges.any(1).sum())
        assert came.calls == 128 * N + heard
        if N >= 5:
            assert came.right.sum() > came.right_drafts.sum()


@pytest.mark.parametrize("how", [{"batch_size": 16}, {"rollouts": 3, "baseline": "question"}, {"rollouts": 2}])
def test_learning_goes_on_from_a_file(how: dict[str, object], tmp_path: Path) -> None:
    """Three updates, a file, two more: bit for bit as five in one go. Rollouts share their drafts, which are paid for once."""
    whole, first = (learnt(0, updates=5, **how)[0], learnt(0, updates=3, **how)[0])
    save_file(first.tensors(), tmp_path / "at.safetensors")
    again = Learner(first.setting, Policy(), first.learning, 10, seed=0)
    again.go_on_from_(load_file(tmp_path / "at.safetensors"), 3)
    for _ in range(2):
        outcomes, _ = again.update_()
    for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    called_again, drafts = [int(o.edges.any(1).sum()) for o in outcomes], 10 * again.learning.batch_size
    assert [o.calls for o in outcomes] == [drafts + called_again[0], *called_again[1:]]


def test_files_that_are_no_policy_are_one_line(tmp_path: Path) -> None:
    learner = Learner(Synthetic().setting(), Policy(width=8, mlp_dim=8), Learning(), 4)
    learner.save(tmp_path / "p.safetensors")
    with pytest.raises(RecipeError, match=r"policy .*none.safetensors: there is no none.safetensors"):
        load_policy(tmp_path / "none.safetensors")
    whole = (tmp_path / "p.safetensors").read_bytes()
    load_policy(tmp_path / "p.safetensors")
    changed = whole[:-1] + bytes([whole[-1] ^ 1])  # a number of it, with the digest beside it
    (tmp_path / "p.safetensors").write_bytes(changed)
    with pytest.raises(RecipeError, match="does not match its SHA-256"):
        load_policy(tmp_path / "p.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole[:500])
    with pytest.raises(RecipeError, match=r"policy .*cut.safetensors: "):
        load_policy(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RecipeError, match="it is no policy of the lab"):
        load_policy(tmp_path / "other.safetensors")
    about = {"format": "nexa-1", "policy": {"width": 8}, "embedding_width": 3, "updates": 0}
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", {"isthmus": json.dumps(about)})
    with pytest.raises(RecipeError, match="is missing, too many or of another shape"):
        load_policy(tmp_path / "odd.safetensors")
