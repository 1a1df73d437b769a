"""Runs that weigh their samples: gradients against plain torch, anchors apart from what is scored, laws, and what is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.events import Evaluated, Event, Weighted, from_json, to_json
from lab.ground.errors import RecipeError
from lab.models.abbie import AbbIE
from lab.models.hf import HF
from lab.models.moe import MoE
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.plan import plan
from lab.runs.trainer import Trainer, train
from tests.support import tiny_llama
from tests.support.recipes import TINY, recipe
from tests.support.stop_and_go import stop_and_go

SMALL = "mixture?target=20&related=20&noise=20&unrelated=20&symbols=24&length=16&held_out=12"
ADAPT: dict[str, Any] = {"by": "adapt", "target": "target", "anchors": 4, "every": 2, "tau": 0.3}
CENTRED = ADAPT | {"standardize": True, "center": True}
DDP = {"name": "ddp", "max_norm": None, "inner": {"name": "SGD", "lr": 0.1}}


def weighed(weighting: Any = ADAPT, **changes: Any) -> Recipe:
    fields = {
        "method": DDP,
        "corpus": SMALL,
        "num_workers": 2,
        "batch_size": 4,
        "context": 16,
        "eval_windows": 24,
        "weighting": weighting,
    }
    return recipe("ddp").but(**(fields | changes))


def events_of(r: Recipe) -> list[Event]:
    return list(Trainer(r).events())


def curve(r: Recipe) -> list[str]:
    """All that a run says of training: losses and scores by step, to the last bit."""
    c = Columns.of(events_of(r))
    return [repr(c.loss_W), repr(c.eval_loss), repr(c.drift)]


class Step:
    """A trainer, whose gradients of a step can be asked for."""

    def __init__(self, r: Recipe):
        self.trainer = Trainer(r)
        self.trainer.comm.t = 1
        self.data = self.trainer.setup.data
        assert self.data is not None

    def gradients(self, t: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses ``[N]``, and the gradients of worker 0 by name."""
        self.trainer.comm.t = t
        loss_W = self.trainer.built.grad(self.trainer.state)
        module = self.trainer.fleet.modules[0]
        return loss_W, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    def batch(self, t: int = 1) -> tuple[Tensor, Tensor]:
        assert self.data is not None
        return self.data.batches.get(0, t)

    @property
    def module(self) -> nn.Module:
        return self.trainer.fleet.modules[0]


# --- the gradients ----------------------------------------------------------------------------------------------------


def state(module: Any, ids: Tensor) -> Tensor:
    """Of one sequence, its direction, worked out position by position from the module's own blocks."""
    x = F.embedding(ids[None], module.embedding)
    for block in module.blocks:
        x = block(x, module.cos[: len(ids)].to(x.dtype), module.sin[: len(ids)].to(x.dtype))
    h = module.norm(x)[0]
    pooled = sum((i + 1) * h[i] for i in range(len(ids))) / sum(range(1, len(ids) + 1))
    return pooled / pooled.norm()


@pytest.mark.parametrize("how", ["mean", "sum", "normalised"])
def test_a_step_by_hand(how: str) -> None:
    """Σ w ∇ℓ, each sample by itself in plain torch; the loss that is told is the plain one."""
    step = Step(weighed(ADAPT | {"reduce": how}))
    loss_W, found = step.gradients()
    ids, targets = step.batch()
    module: Any = step.module
    assert step.data is not None
    assert step.data.domains is not None
    assert step.data.domains.anchors is not None
    with torch.no_grad():
        cosines = [[state(module, x) @ state(module, v) for v in step.data.domains.anchors[0]] for x in ids]
        w = [1 / (1 + torch.exp(-(sum(row) / 4) / 0.3)) for row in cosines]
    by = {"mean": 4.0, "sum": 1.0, "normalised": float(sum(w))}[how]
    losses = [module.loss(x[None], y[None]) for x, y in zip(ids, targets, strict=True)]
    want = torch.autograd.grad(sum(a * b for a, b in zip(w, losses, strict=True)) / by, [*module.parameters()])
    for (name, _), g in zip(module.named_parameters(), want, strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-12)
    assert float(loss_W[0]) == pytest.approx(float(sum(losses).detach()) / 4, rel=1e-12)  # type: ignore[union-attr]


def test_uniform_is_the_plain_run_bit_for_bit() -> None:
    plain = weighed({})
    assert curve(plain) == curve(weighed({"by": "uniform"}))
    one, many = Step(plain).gradients()[1], Step(weighed({"by": "uniform", "reduce": "sum"})).gradients()[1]
    for name, g in one.items():
        torch.testing.assert_close(many[name], 4 * g, rtol=1e-13, atol=0)


@pytest.mark.parametrize("by", ["adapt", "bm25"])
def test_a_flat_gate_is_half_of_uniform(by: str) -> None:
    flat = Step(weighed(ADAPT | {"by": by, "tau": 1e15})).gradients()[1]
    for name, g in Step(weighed({"by": "uniform", "target": "target", "anchors": 4})).gradients()[1].items():
        torch.testing.assert_close(flat[name], 0.5 * g, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("options", [ADAPT, CENTRED, ADAPT | {"by": "bm25", "terms": "pairs"}])
def test_a_sample_weighs_the_same_in_two_batches(options: Any) -> None:
    first = Step(weighed(options))
    weights, module = first.trainer.built.grad.weights, first.module
    assert weights is not None
    assert first.data is not None
    assert first.data.domains is not None
    domains, seen = first.data.domains, []
    for others in (np.array([3, 4, 5]), np.array([40, 41, 42, 43, 44])):
        fresh = Step(weighed(options)).trainer.built.grad.weights
        assert fresh is not None
        items = np.concatenate([[7], others])
        fresh.domains = dataclasses.replace(domains, items=lambda worker, t, items=items: items)
        fresh.loss(module, 0, 0, 1, *domains.take(items))
        seen.append(fresh.taken(0)[0, 1])
    assert float(seen[0]) == pytest.approx(float(seen[1]), rel=1e-12)
    assert 0 < float(seen[0]) < 1


@pytest.mark.parametrize("options", [ADAPT, CENTRED, ADAPT | {"by": "softmax"}, ADAPT | {"by": "lin_upper"}])
def test_weights_carry_no_gradient(options: Any) -> None:
    """The gradient is that of Σ w ℓ with the weights that were told, as numbers."""
    step = Step(weighed(options))
    found = step.gradients()[1]
    weights, module = step.trainer.built.grad.weights, step.module
    assert weights is not None
    w = weights.taken(0)[:, 1]
    assert float(w.std()) > 0
    losses = [module.loss(x[None], y[None]) for x, y in zip(*step.batch(), strict=True)]  # type: ignore[operator]
    want = torch.autograd.grad(sum(a * b for a, b in zip(w, losses, strict=True)) / 4, [*module.parameters()])
    for (name, _), g in zip(module.named_parameters(), want, strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-12)


def test_anchors_are_looked_at_again_every_few_steps() -> None:
    step = Step(weighed(method=DDP | {"inner": {"name": "SGD", "lr": 0.5}}))
    weights, seen = step.trainer.built.grad.weights, []
    assert weights is not None
    for t in range(1, 6):
        step.trainer.comm.t = t
        step.trainer.knobs.method.step(step.trainer.state, step.trainer.built.grad, step.trainer.comm, t)
        seen.append(weights.looks[0].centroid.clone())
    same = [torch.equal(a, b) for a, b in zip(seen[:-1], seen[1:], strict=True)]
    assert same == [True, False, True, False]
    assert all(part.training for part in step.module.modules()), "modules are left in training"


def test_a_random_share_and_an_oracle_are_of_samples_and_not_of_batches() -> None:
    for options, share in (({"by": "random", "share": 0.4}, 0.4), ({"by": "domains", "domains": ["noise"]}, 0.25)):
        told = [e for e in events_of(weighed(options, steps=40, eval_every=0)) if isinstance(e, Weighted)][-1]
        assert told.weight == pytest.approx(share, abs=0.12)
        assert told.effective == pytest.approx(told.weight), "weights are 0 or 1"
    oracle = [e for e in events_of(weighed({"by": "domains", "domains": ["noise"]})) if isinstance(e, Weighted)][-1]
    assert oracle.by_domain == {"noise": 1.0, "target": 0.0, "related": 0.0, "unrelated": 0.0}


# --- anchors, and what is scored --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["held_out", "train"])
def test_nobody_trains_on_an_anchor_and_none_is_scored(source: str) -> None:
    r = weighed(ADAPT | {"source": source, "anchors": 5}, eval_windows=1000)
    data = Trainer(r).setup.data
    assert data is not None
    assert data.domains is not None
    assert data.domains.anchors is not None

    def rows(ids: Tensor) -> set[tuple[int, ...]]:
        return {tuple(row) for row in ids.tolist()}

    anchors, of = rows(data.domains.anchors[0]), data.domains
    trained = np.concatenate([of.shard(w) for w in range(2)])
    num = len(of.of)
    assert len(anchors) == 5
    assert not anchors & rows(of.take(trained)[0])
    assert not anchors & rows(torch.cat([ids for ids, _ in data.validation]))
    assert len(trained) == num - (5 if source == "train" else 0)
    assert sum(len(ids) for ids, _ in data.validation) == 47 - (6 if source == "held_out" else 0)


def test_runs_that_are_compared_are_scored_on_the_same() -> None:
    """As soon as there is a target its anchors are set apart, whatever weighs."""
    one, other = (Trainer(weighed(ADAPT | {"by": by})).setup.data for by in ("uniform", "bm25"))
    assert one is not None
    assert other is not None
    assert all(
        torch.equal(a, b)
        for x, y in zip(one.validation, other.validation, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_losses_by_domain_are_those_of_their_rows() -> None:
    r = weighed(ADAPT, eval_windows=1000)
    trainer = Trainer(r)
    scores = [e for e in trainer.events() if isinstance(e, Evaluated)][-1].scores
    model, data = trainer.setup.fleet.whole_model(trainer.agreed()), trainer.setup.data
    assert data is not None
    assert [*scores] == [f"loss of {d}" for d in ("noise", "related", "target", "unrelated")]
    ids, targets = (torch.cat(x) for x in zip(*data.validation, strict=True))
    # in the order of the text; half of the target's sequences are for anchors, and the last one of all lacks its last target
    num = {"target": 6, "related": 12, "noise": 12, "unrelated": 11}
    for name, some, goals in zip(num, ids.split([*num.values()]), targets.split([*num.values()]), strict=True):
        assert scores[f"loss of {name}"] == pytest.approx(float(model.loss(some, goals)), rel=1e-9)  # type: ignore[operator]


def test_examples_of_a_task_have_domains_too(monkeypatch: pytest.MonkeyPatch) -> None:
    r = weighed(
        {"by": "adapt", "target": "2 hops", "anchors": 4}, corpus="task:pointers", context=64, steps=2, eval_windows=40
    )
    told = events_of(r)
    weights = [e for e in told if isinstance(e, Weighted)][-1]
    assert "2 hops" in weights.domains
    assert {f"loss of {d}" for d in weights.domains} < {*[e for e in told if isinstance(e, Evaluated)][-1].scores}


# --- laws -------------------------------------------------------------------------------------------------------------

METHODS: dict[str, Any] = {
    "des_loc": {"name": "des_loc", "sync_every": {"params": 2, "exp_avg": 3, "exp_avg_sq": 4}},
    "diloco": {"name": "diloco", "sync_every": 2},
    "fedit": {"name": "fedit", "sync_every": 2},
}
ADAPTERS = {"ranks": [2, 2], "targets": ["attention.qkv"]}
ALL = [
    ("des_loc", CENTRED),
    ("diloco", ADAPT | {"by": "bm25", "terms": "pairs"}),
    ("fedit", ADAPT),
]


def under(method: str, weighting: Any, **changes: Any) -> Recipe:
    adapters = {"lora": ADAPTERS} if method == "fedit" else {}
    return weighed(weighting, method=METHODS[method], **adapters, **changes)


@pytest.mark.parametrize(("method", "weighting"), [*ALL, ("des_loc", ADAPT | {"by": "softmax"})])
def test_resume_is_never_stopped(method: str, weighting: Any, tmp_path: Path) -> None:
    from lab.testing import resume

    resume.stop_and_go(under(method, weighting, steps=5), tmp_path)


def test_resume_of_clients(tmp_path: Path) -> None:
    told = ADAPT | {"target": "dialect00", "anchors": 3}
    stop_and_go(recipe("local_sgd").but(clients={"num": 5}, steps=4, weighting=told, num_workers=2), tmp_path)


@pytest.mark.parametrize(("method", "weighting"), ALL)
def test_a_dry_run_sends_what_the_run_sends(method: str, weighting: Any) -> None:
    r = under(method, weighting)
    dry = Trainer(r, dry=True)
    for _ in dry.events():
        pass
    wet = Trainer(r)
    for _ in wet.events():
        pass
    assert list(dry.comm.ledger) == list(wet.comm.ledger)
    plain = Trainer(r.but(weighting={}))
    for _ in plain.events():
        pass
    assert list(plain.comm.ledger) == list(wet.comm.ledger), "weights cost no byte"


@pytest.mark.parametrize("weighting", [CENTRED, ADAPT | {"by": "softmax"}])
def test_what_one_worker_reads_is_nothing_to_the_others(weighting: Any) -> None:
    """Until anything is sent, the other's parameters are the same to the last bit, whatever worker 0 trains on."""
    found = []
    for shift in (0, 1):
        trainer = Trainer(under("diloco", weighting, steps=9).but(method={"name": "diloco", "sync_every": 9}))
        data, weights = trainer.setup.data, trainer.built.grad.weights
        assert data is not None
        assert weights is not None
        get, items = data.batches.get, weights.domains.items
        data.batches.__dict__["get"] = lambda w, t, get=get, shift=shift: get(w, t + shift * (w == 0))
        moved = lambda w, t, items=items, shift=shift: items(w, t + shift * (w == 0))  # noqa: E731
        weights.domains = dataclasses.replace(weights.domains, items=moved)
        for t in range(1, 6):
            trainer.comm.t = t
            trainer.knobs.method.step(trainer.state, trainer.built.grad, trainer.comm, t)
        found.append([{n: p.detach().clone() for n, p in m.named_parameters()} for m in trainer.fleet.modules])
    (a0, a1), (b0, b1) = found
    assert all(torch.equal(a1[n], b1[n]) for n in a1)
    assert not all(torch.equal(a0[n], b0[n]) for n in a0)


def test_who_comes_back_looks_at_the_anchors_first() -> None:
    """A worker that was down when it was time to look does so when it is up again."""
    away = {"outages": [{"worker": 1, "first": 3, "last": 3}]}
    trainer = Trainer(weighed(scenario=away, steps=4))
    weights, seen = trainer.built.grad.weights, {}
    assert weights is not None
    for e in trainer.events():
        if e.kind == "stepped":
            seen[e.step] = [int(weights.looks[w].when[0]) for w in (0, 1)]
    assert seen == {1: [0, 0], 2: [0, 0], 3: [1, 0], 4: [1, 1]}


def test_probes_look_at_the_plain_loss_and_leave_no_trace() -> None:
    r = weighed(CENTRED)
    assert curve(r) == curve(r.but(metrics=["gradients", "noise"], metrics_every=2))


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> HF:
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama.write(folder)
    return HF(str(folder))


def test_hidden_states_are_those_that_the_logits_are_made_of(llama: HF) -> None:
    for r in (weighed(), weighed(model=AbbIE(dim=8, num_heads=2)), weighed(model=llama, dtype="float32")):
        module: Any = Trainer(r).fleet.modules[0]
        ids = torch.arange(12).reshape(2, 6)
        with torch.no_grad():
            hidden, logits = module.with_hidden(ids)
            head = module.model.lm_head.weight if r.model == llama else module.embedding
            torch.testing.assert_close(logits, module(ids), rtol=0, atol=0)
            torch.testing.assert_close(F.linear(hidden, head), logits, rtol=1e-5, atol=1e-6)


def test_it_trains_models_of_every_kind(llama: HF) -> None:
    for model in (AbbIE(dim=8, num_heads=2), llama):
        r = weighed(CENTRED, model=model, dtype="float32", eval_every=0)
        assert train(r).weighted[-1].samples == 48
        assert curve(weighed({"by": "uniform"}, model=model)) == curve(weighed({}, model=model))


def test_it_trains_a_module_of_ones_own_that_gives_its_states() -> None:
    r = weighed(CENTRED, model="tests.support.parts:Bigrams", eval_every=0)
    assert train(r).weighted[-1].samples == 48
    with pytest.raises(RecipeError, match="parts:silent does not give"):
        Trainer(weighed(model="tests.support.parts:silent"))


# --- what is told -----------------------------------------------------------------------------------------------------


def test_what_is_told_is_what_was_weighed() -> None:
    """By domain, over all, and in histograms: of every sample since the last time."""
    trainer, kept = Trainer(weighed(ADAPT, steps=4, eval_every=2)), []
    weights = trainer.built.grad.weights
    assert weights is not None
    remember = weights._remember
    weights._remember = lambda w, items, s, x: (
        kept.append((s, x, weights.domains.of[items])),
        remember(w, items, s, x),
    )  # type: ignore[method-assign,func-returns-value]
    told = [e for e in trainer.events() if isinstance(e, Weighted)]
    assert [e.step for e in told] == [2, 4]
    last = kept[4:]
    s, w = (torch.cat([x[k] for x in last]).double().numpy() for k in (0, 1))
    of, e = np.concatenate([x[2] for x in last]), told[1]
    assert e.samples == len(w) == 16
    assert e.weight == pytest.approx(w.mean())
    assert e.effective == pytest.approx(w.sum() ** 2 / (16 * (w**2).sum()))
    assert (e.score, e.score_std) == pytest.approx((s.mean(), s.std()))
    for d, name in enumerate(e.domains):
        assert e.num_D[d] == (of == d).sum()
        if e.num_D[d]:
            assert e.by_domain[name] == pytest.approx(w[of == d].mean())
            assert e.score_D[d] == pytest.approx(s[of == d].mean())
    assert e.weights["ends"] == pytest.approx([w.min(), w.max()])
    assert sum(e.weights["num"]) == sum(e.scores["num"]) == 16
    assert from_json(to_json(e)) == e
    assert f"{e.weight:.3f}" in e.words()


def test_who_has_no_score_says_so() -> None:
    told = [e for e in events_of(weighed({"by": "random"})) if isinstance(e, Weighted)][-1]
    assert told.score is None
    assert told.scores == {}
    assert told.score_D == [None] * 4


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weighting": {"by": "adapt"}}, "needs anchors: name their domain"),
        ({"weighting": {"target": "target"}}, "without weighting.by"),
        ({"weighting": {"by": "domains"}}, "name them by weighting.domains"),
        ({"weighting": ADAPT | {"clip": [2, 1]}}, "weighting.clip"),
        ({"compute": {"accumulate": 2}}, "compute.accumulate cuts it into passes"),
        ({"compute": {"vectorised": True}}, "does not go with weighting"),
        ({"data": "digits", "model": {"name": "mlp", "hidden": [4]}}, "data names a task of another kind"),
        ({"method": {"name": "prelort"}, "lora": {"ranks": [2, 2]}}, "method prelort trains one of its own"),
        ({"model": MoE(dim=8, num_layers=1, num_heads=2, num_experts=2)}, "which model MoE does not give"),
        ({"weighting": ADAPT | {"target": "targets"}}, "weighting.target"),
        ({"weighting": {"by": "domains", "domains": ["target", "sound"]}}, "weighting.domains"),
        ({"weighting": ADAPT | {"anchors": 7}}, "'target' has 6 held-out samples for anchors"),
        ({"weighting": ADAPT | {"source": "train"}, "split": "draw:4"}, "use another split"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        Trainer(weighed().but(**changes))
    assert "\n" not in str(error.value)


def test_a_plan_refuses_a_model_without_states_as_well() -> None:
    with pytest.raises(RecipeError, match="which model MoE does not give"):
        plan(weighed(model=MoE(dim=8, num_layers=1, num_heads=2, num_experts=2)))


def test_what_makes_no_difference_is_said() -> None:
    told = notes(weighed({"by": "random", "tau": 0.5, "terms": "pairs", "every": 7}))
    for field in ("tau", "terms", "every"):
        assert any(f"weighting.{field}" in line for line in told), field
    assert not [line for line in notes(weighed(CENTRED)) if "weighting" in line]


def test_a_recipe_of_before_has_its_id() -> None:
    r = recipe("ddp")
    assert "weighting" not in r.to_dict()
    assert r.id == r.but(weighting={}).id
    assert r.id != r.but(weighting={"by": "uniform"}).id
    assert Recipe.of(weighed().to_dict()) == weighed()


def test_it_is_the_same_with_one_thread_and_in_any_shape_of_model() -> None:
    r = weighed(CENTRED, num_workers=3, model=dataclasses.replace(TINY, dropout=0.3))
    assert curve(r) == curve(r)


# --- what comes of it -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_domains_come_to_be_ordered_without_labels(seed: int) -> None:
    """Over the last 300 of 800 steps: target > related ≫ noise, unrelated, by weights from likeness to anchors alone."""
    r = Recipe.of(
        {
            "method": {"name": "ddp", "inner": {"name": "AdamW", "lr": 5e-3}},
            "model": "nano",
            "corpus": f"mixture?seed={seed}&symbols=24&target=100&related=300&noise=500&unrelated=500&held_out=128",
            "weighting": {"by": "adapt", "target": "target", "center": True, "standardize": True, "tau": 0.3},
            "num_workers": 1,
            "batch_size": 16,
            "context": 32,
            "steps": 800,
            "schedule": {"warmup": 20},
            "eval_every": 100,
            "eval_windows": 16,
            "checkpoint_every": 0,
            "seed": seed,
        }
    )
    looks = [e.by_domain for e in train(r).weighted[-3:]]
    w = {domain: np.mean([look[domain] for look in looks]) for domain in looks[0]}
    assert w["target"] > w["related"]
    assert w["related"] > max(w["noise"], w["unrelated"]) + 0.05
