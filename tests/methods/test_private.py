"""Differential privacy of what clients hand in: the step worked by hand, what one client can do at most, and what is spent."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from lab.cli import main
from lab.engine.comm import Meeting
from lab.engine.optim import Optimizer
from lab.events import Clipped, Evaluated, Stepped, from_json, to_json
from lab.ground.seeds import generator
from lab.methods import METHODS, Method, declared
from lab.methods.fedprox import FedProx
from lab.methods.private import Private, add_noise_, clipped
from lab.methods.scaffold import SCAFFOLD
from lab.recipes import accountant
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.plan import plan
from lab.runs.trainer import Trainer
from lab.testing.method_laws import LAWS, exceptions
from lab.testing.report import Law
from lab.testing.subject import Subject, off
from tests.support import ROOT
from tests.support.bench import Bench
from tests.support.federations import ADAPTERS, LABELLED_AT_SERVER
from tests.support.listed import ADAPTED, LABELLED, LISTED
from tests.support.recipes import corpus, recipe
from tests.support.texts import fails

SGD = Optimizer("SGD", 0.1)
KNOWN = LISTED | ADAPTED | LABELLED
# Of those that wait until a model is sure of itself the variant that does not.
BOUNDED: dict[str, Method] = {
    name: dataclasses.replace(LABELLED.get(f"{name} all") or KNOWN[name], weight="uniform")  # type: ignore[type-var]
    for name in METHODS
    if declared(METHODS[name]).bounded
}
every = pytest.mark.parametrize("name", BOUNDED)
needs_accountant = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="dp-accounting is not installed"
)


def needs_of(name: str) -> dict[str, Any]:
    if name in LABELLED:
        return LABELLED_AT_SERVER
    return {"lora": ADAPTERS | ({"train": "B"} if name == "ffa_lora" else {})} if name in ADAPTED else {}


def of(name: str, privacy: dict[str, Any], **changes: Any) -> Trainer:
    return Trainer(recipe(BOUNDED[name], privacy=privacy, **(needs_of(name) | changes)), corpus=corpus())


def private_bench(method: Method, clip: float, noise: float = 0.0, seed: int = 3, **options: Any) -> Bench:
    lab = Bench(method, **options)
    lab.state.private = Private(clip, noise, seed)
    return lab


def handed_in(lab: Bench | Trainer) -> list[Tensor]:
    """What the server learns of each state in the first round, before noise: the means, as vectors."""
    seen: dict[str, Tensor] = {}

    def note(meeting: Meeting) -> None:
        if meeting.mean is not None:
            seen.setdefault(meeting.state, torch.cat([x.flatten() for x in meeting.mean.blocks]).clone())

    lab.comm.subscribe(note)
    if isinstance(lab, Bench):
        lab.run(2)
    else:
        for event in lab.events():
            if isinstance(event, Stepped) and event.step == 2:
                break
    assert seen
    return [*seen.values()]


# --- the step --------------------------------------------------------------------------------------------------------


def test_a_round_by_hand() -> None:
    """wᵗ⁺¹ = wᵗ + 1/3·Σ Δ_k·min(1, S/‖Δ_k‖) + N(0, (z·S/3)²): each client cut by itself, over all tensors, before the mean."""
    method, S, z, seed = FedProx(2, 0.0, SGD), 0.565, 0.4, 11
    free = Bench(method)
    start = free.shared("params")
    free.run(2)
    ways = [free.of(w) - start for w in range(3)]
    norms = [float(way.norm()) for way in ways]
    assert any(n > S for n in norms)
    assert any(n < S for n in norms)
    names = [*free.fleet.layout.place]
    by_block = torch.cat(  # blocks lie in an order of their own
        [
            torch.randn(b.numel, generator=generator(seed, "privacy", "params", i, 2), dtype=torch.float64)
            for i, b in enumerate(free.fleet.layout.blocks)
        ]
    )
    noise, at = {}, 0
    for block in free.fleet.layout.blocks:
        for name, offset, shape in zip(block.names, block.offsets, block.shapes, strict=True):
            noise[name] = by_block[at + offset : at + offset + shape.numel()]
        at += block.numel
    lab = private_bench(method, S, z, seed).run(2)
    want = start + sum(way * min(1.0, S / n) for way, n in zip(ways, norms, strict=True)) / 3
    want += z * S / 3 * torch.cat([noise[name] for name in names])
    assert off(lab.shared("params"), want, 1e-14) == 0
    seen: Any = lab.state.private
    assert seen.norms == pytest.approx(dict(enumerate(norms)), rel=1e-12)


def test_control_variates_are_cut_together_with_the_way() -> None:
    """Of SCAFFOLD one norm holds for both that a client hands in; what it keeps for itself stays whole."""
    method, S = SCAFFOLD(2, SGD), 0.6
    free, lab = Bench(method).run(2), private_bench(method, S).run(2)
    start = torch.cat([free.fleet.build(None).state_dict()[n].flatten() for n in free.fleet.layout.place])
    ways = [(free.of(w) - start, free.of(w, "control")) for w in range(3)]
    scale = [min(1.0, S / float(torch.cat(both).norm())) for both in ways]
    assert min(scale) < 1
    x, c = (sum(k * both[i] for k, both in zip(scale, ways, strict=True)) / 3 for i in range(2))
    assert off(lab.shared("params"), start + x, 1e-14) == 0
    assert off(lab.shared("control"), c, 1e-14) == 0
    assert all(torch.equal(lab.of(w, "control"), free.of(w, "control")) for w in range(3))


@every
def test_what_nobody_reaches_changes_no_bit(name: str) -> None:
    """S = ∞ and z = 0 is the method itself: losses, evaluations and the server's state."""
    plain, bounded = of(name, {}), of(name, {"clip": 1e20})
    story = [[e for e in t.events() if isinstance(e, Evaluated)] for t in (plain, bounded)]
    assert story[0] == story[1]
    assert len(story[0]) > 1
    for mine, theirs in zip(plain.state.shared.values(), bounded.state.shared.values(), strict=True):
        assert all(map(torch.equal, mine.blocks, theirs.blocks))
    assert [*plain.comm.ledger] == [*bounded.comm.ledger]


@every
def test_one_client_can_do_so_much_and_no_more(name: str) -> None:
    """All that the server learns of a round changes by at most 2S/m where one of m clients is another; unclipped by more."""

    def change(clip: float) -> float:
        mine, theirs = (of(name, {"clip": clip}, steps=4) for _ in range(2))
        data: Any = theirs.built.grad.data
        batches = data.batches

        class Others:
            def get(self, worker: int, t: int) -> Any:
                x, y = batches.get(worker, t)
                return (x.flip(0).roll(3, -1), y.roll(1, 0)) if worker == 1 else (x, y)

        theirs.built.grad.data = dataclasses.replace(data, batches=Others())
        ways = zip(handed_in(mine), handed_in(theirs), strict=True)
        return float(torch.cat([a - b for a, b in ways]).norm())

    free = change(1e20)
    S = free / 4
    assert 0 < change(S) <= 2 * S / 3 * (1 + 1e-9)
    assert free > 2 * S / 3


def test_noise_is_what_it_says() -> None:
    """On the mean of three, normal with standard deviation z·S/3, other in each round and state, and nothing where nobody hands in."""
    lab = private_bench(FedProx(2, 0.0, SGD), 2.0, 0.6)
    s, found = lab.state, []
    for t in (2, 4):
        lab.comm.t = t
        mean = s.shared["params"].zeros_like()
        big = torch.zeros(1, 40_000, dtype=torch.float64)
        mean.blocks[0], kept = big, mean.blocks[0]
        mean.layout.blocks[0] = dataclasses.replace(mean.layout.blocks[0], numel=40_000)
        add_noise_(s, lab.comm, params=mean)
        mean.layout.blocks[0] = dataclasses.replace(mean.layout.blocks[0], numel=kept.numel())
        found.append(mean.blocks[0][0])
        assert float(found[-1].std()) == pytest.approx(0.6 * 2.0 / 3, rel=0.02)
        assert abs(float(found[-1].mean())) < 0.01
    assert abs(float(torch.corrcoef(torch.stack(found))[0, 1])) < 0.03
    s.fleet.up = [False] * 3
    mean = s.shared["params"].zeros_like()
    add_noise_(s, lab.comm, params=mean)
    assert not any(x.any() for x in mean.blocks)


def test_what_is_handed_in_is_a_copy_and_personal_stays_whole() -> None:
    lab = private_bench(FedProx(4, 0.0, SGD), 0.01, personal=lambda n: n == "out").run(2)
    mine = lab.state.local["params"]
    before = mine.clone()
    (handed,) = clipped(lab.state, (mine, lab.state.shared["params"]))
    assert all(map(torch.equal, mine.blocks, before.blocks))
    assert not torch.equal(handed["hidden"], mine["hidden"])
    assert torch.equal(handed["out"], mine["out"])


# --- the laws ----------------------------------------------------------------------------------------------------------

ALONE = {  # what is other by intent where there is noise, or where what is cut is another number of clients' mean
    "schedule": "noise is added also to what has not moved",
    "equal workers": "noise is by the number of clients",
    "solitude": "noise is by the number of clients",
}


@pytest.mark.parametrize("noise", [0.0, pytest.param(0.5, marks=needs_accountant)], ids=["cut", "noisy"])
@pytest.mark.parametrize("law", LAWS, ids=LAWS.names())
@pytest.mark.parametrize("name", ["fedprox", "scaffold", "ffa_lora"])
def test_law(law: Law[Subject], name: str, noise: float) -> None:
    method = BOUNDED[name]
    beside: dict[str, Any] = (
        {"lora": {"ranks": [2], "targets": ["hidden.0", "head"], "train": "B"}} if name in ADAPTED else {}
    )
    subject = Subject(method, beside | {"privacy": {"clip": 0.02, "noise": noise}})
    excepted = dict(exceptions(method)) | (ALONE if noise else {})
    if law.name in excepted:
        pytest.skip(excepted[law.name])
    finding = law.check(subject, excepted)
    assert finding.outcome in ("passed", "not applicable"), finding.says
    assert finding.outcome == "passed" or law.name == "plain optimizer"


# --- what is spent -------------------------------------------------------------------------------------------------------


def federation(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "num_workers": 3,
        "clients": {"num": 30},
        "steps": 12,
        "eval_every": 5,
        "checkpoint_every": 4,
    }
    fields |= {"privacy": {"clip": 0.05, "noise": 1.1, "delta": 1e-3}}
    return recipe(FedProx(2, 0.0, SGD), **(fields | changes))


def by_library(m: int, n: int, z: float, delta: float, rounds: int) -> float:
    """The accountant, asked by itself: one client is replaced, so the noise is z/2 of what the sum can change by."""
    import dp_accounting as dp

    a = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    a.compose(dp.SampledWithoutReplacementDpEvent(n, m, dp.GaussianDpEvent(z / 2)), rounds)
    return float(a.get_epsilon(delta))


@needs_accountant
def test_what_is_spent_is_what_the_accountant_says() -> None:
    r = federation()
    assert accountant.drawn(r) == (3, 30)
    for rounds in (1, 6):
        want = by_library(3, 30, 1.1, 1e-3, rounds)
        assert want <= accountant.epsilon(r, rounds, 0) <= 1.01 * want  # of fewer orders
    assert accountant.epsilon(r, 0, 0) == 0
    assert accountant.epsilon(r, 3, 0) < accountant.epsilon(r, 6, 0) < accountant.epsilon(r, 5, 1)


@needs_accountant
@pytest.mark.parametrize(("z", "rounds"), [(4.0, 1), (8.0, 20)])
def test_where_all_take_part_it_is_the_gaussian_mechanism(z: float, rounds: int) -> None:
    """Against Rényi's divergence of two normal distributions 2S apart, in closed form, and the exact account of the library."""
    import dp_accounting as dp

    r, delta = federation(clients={}, privacy={"clip": 1.0, "noise": z, "delta": 1e-5}), 1e-5
    rho = rounds * 2**2 / (2 * z**2)
    by_hand = min(
        a * rho + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in (1 + k / 100 for k in range(1, 30_000))
    )
    exact = dp.pld.PLDAccountant(dp.NeighboringRelation.REPLACE_ONE)
    exact.compose(dp.GaussianDpEvent(z), rounds)
    found = accountant.epsilon(r, 0, rounds)
    assert by_hand * (1 - 1e-9) <= found <= by_hand * 1.01
    assert exact.get_epsilon(delta) < found < 1.2 * exact.get_epsilon(delta)


@needs_accountant
def test_a_bad_bound_for_draws_is_not_used() -> None:
    """That of draws can be above that of all taking part, which holds as well."""
    r = federation(num_workers=3, clients={"num": 4}, privacy={"clip": 1.0, "noise": 0.5})
    assert accountant.epsilon(r, 50, 0) == accountant.epsilon(r, 0, 50) < by_library(3, 4, 0.5, 1e-5, 50)


def test_who_counts_as_drawn() -> None:
    """Where all are there, or somebody may be missing, nothing is gained by drawing."""
    assert accountant.drawn(federation(clients={})) is None
    assert accountant.drawn(federation(clients={"num": 30, "spread": 1.0, "wait_for": 2})) is None
    assert accountant.drawn(federation(scenario={"failure_rate": 0.1})) is None
    assert accountant.drawn(federation(clients={}, scenario={"sample": 2, "sample_every": 2})) == (2, 3)
    assert accountant.drawn(federation(clients={}, scenario={"sample": 2, "sample_every": 4})) is None
    assert accountant.planned(federation()) == (6, 0)
    assert accountant.planned(federation(clients={}, steps=13)) == (0, 6)


@needs_accountant
def test_events_say_what_is_spent(tmp_path: Any) -> None:
    r = federation()
    folder = RunFolder(tmp_path / "run")
    told = [e for e in Trainer(r, corpus=corpus()).events(folder) if isinstance(e, Clipped)]
    assert [e.step for e in told] == [2, 4, 6, 8, 10, 12]
    assert [e.rounds for e in told] == [1, 2, 3, 4, 5, 6]
    assert [e.epsilon is not None for e in told] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]  # looks at steps 5, 10 and 12
    assert told[-1].epsilon == accountant.epsilon(r, 6, 0) == plan(r).to_dict()["privacy"]["epsilon"]
    assert told[2].epsilon == accountant.epsilon(r, 3, 0)
    assert all(e.clients == 3 and e.noise == pytest.approx(1.1 * 0.05 / 3) for e in told)
    assert all(e.norms == sorted(e.norms) and len(e.norms) == 5 for e in told)
    assert all((e.share == 1) == (e.norms[0] > 0.05) for e in told)
    assert all(from_json(to_json(e)) == e for e in told)
    columns = Columns.of(folder.events())
    assert columns.clipped == told
    table = columns.frame()
    assert table["privacy_epsilon"].dropna().tolist() == [e.epsilon for e in told if e.epsilon]
    assert table["updates_clipped"].dropna().tolist() == [e.share for e in told]
    printed = CliRunner().invoke(main, ["compare", str(folder.path)]).output
    assert f"ε = {told[-1].epsilon:.4g}, δ = 0.001 spent on each client (one replaced) in 6 rounds" in printed
    assert "3 of 30 clients drawn for each" in plan(r).to_text()


@needs_accountant
def test_rounds_in_which_somebody_is_missing_count_for_all() -> None:
    """A worker that is down by hand: such a round is not one of a draw; one in which nobody hands in spends nothing."""
    r = federation(clients={}, scenario={"outages": [{"worker": w, "first": 3, "last": 4} for w in range(3)]}, steps=8)
    told = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Clipped)]
    assert [(e.step, e.rounds) for e in told] == [(2, 1), (6, 2), (8, 3)]
    assert told[-1].epsilon == accountant.epsilon(r, 0, 3)

    r = federation(steps=4)
    trainer = Trainer(r, corpus=corpus(), knob_source=lambda t: [("down", [1])] if t == 3 else [])
    told = [e for e in trainer.events() if isinstance(e, Clipped)]
    assert [(e.clients, e.rounds) for e in told] == [(3, 1), (2, 2)]
    assert told[-1].epsilon == accountant.epsilon(r, 1, 1) > accountant.epsilon(r, 2, 0)


def test_without_noise_nothing_is_protected() -> None:
    r = federation(privacy={"clip": 0.05})
    told = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Clipped)]
    assert {e.epsilon for e in told} == {None}
    assert told[-1].spent == "no noise, so ε = ∞"
    assert plan(r).to_dict()["privacy"]["epsilon"] is None
    assert "ε = ∞" in plan(r).to_text()
    assert any("protects nobody" in note for note in notes(r))
    assert any("1 / 30 clients" in note for note in notes(federation(privacy={"clip": 1, "noise": 1, "delta": 0.1})))
    assert not any("privacy" in note for note in notes(federation()))


def test_without_the_accountant_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountant.importlib.util, "find_spec", lambda name: None)
    r = federation(privacy={"clip": 0.05, "noise": 0.123})
    for start in (lambda: Trainer(r, corpus=corpus()), lambda: plan(r).to_text()):
        with fails(r"privacy.noise: .* dp-accounting, which is not here: pip install 'isthmus\[privacy\]'"):
            start()


# --- what does not go ----------------------------------------------------------------------------------------------------


def test_what_would_not_hold_is_refused() -> None:
    clip = {"privacy": {"clip": 1.0}}
    for name, method in (LISTED | ADAPTED).items():
        need = declared(method)
        if name in METHODS and not need.bounded:
            why = "hands a server more than" if need.server else "has no server"
            with fails(f"privacy.clip: {name} {why}.*: use method .*fedprox"):
                recipe(method, **clip, **needs_of(name))
    base = FedProx(2, inner=SGD)
    with fails("privacy.noise = 1 is in units of privacy.clip, which is not there"):
        recipe(base, privacy={"noise": 1})
    with fails("in which all count alike: set method.weight=uniform"):
        recipe(FedProx(2, inner=SGD, weight="samples"), **clip)
    with fails("privacy.clip and codecs.params: .* leave one out"):
        recipe(base, codecs={"params": "int8"}, **clip)
    with fails("buffers=averaged sends what is not clipped"):
        recipe(base, buffers="averaged", **clip)
    with fails("clients.sampling=size draws by how much data clients have"):
        recipe(base, clients={"num": 9, "sampling": "size"}, **clip)


def test_recipes_of_before_keep_their_ids() -> None:
    r = recipe(FedProx(2))
    assert "privacy" not in r.to_dict()
    assert Recipe.of(json.loads(json.dumps(federation().to_dict()))) == federation()


@needs_accountant
def test_the_page_prints_what_the_accountant_says() -> None:
    page = (ROOT / "docs/privacy.md").read_text(encoding="utf-8")
    head = re.search(r"^\| clients of a round, of all \|(.*)\|$", page, flags=re.M)
    assert head is not None
    noises = [float(x) for x in re.findall(r"z = (\d+)", head[1])]
    rows = re.findall(r"^\| (\d+) of ([\d,]+) \|(.*)\|$", page, flags=re.M)
    assert len(rows) == len(noises) == 4
    for m, n, printed in rows:
        num, of = int(m), int(n.replace(",", ""))
        for z, said in zip(noises, printed.split("|"), strict=True):
            privacy = {"clip": 1.0, "noise": z, "delta": 1e-6}
            r = recipe(FedProx(2), num_workers=num, clients={"num": of} if of > num else {}, privacy=privacy)
            assert f"{accountant.epsilon(r, *((100, 0) if of > num else (0, 100))):.4g}" == said.strip()


@needs_accountant
@pytest.mark.slow
def test_the_page_does_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its code, in fewer steps and with fewer shadows."""
    monkeypatch.chdir(tmp_path)
    page = (
        (ROOT / "docs/privacy.md")
        .read_text(encoding="utf-8")
        .replace("steps=96", "steps=16")
        .replace("steps=200", "steps=24")
    )
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, flags=re.S) for line in block.splitlines()]
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
        assert "ε = " in done.output
    code = next(c for c in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "shadows" in c)
    exec(code.replace("shadows=8", "shadows=2"), {})
