"""Secure sums: what is on the wire looks like dice, and what comes of it is the plain sum."""

from __future__ import annotations

import importlib.util
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack
from lab.engine.world import OneProcess
from lab.events import Evaluated, Sent
from lab.ground.errors import Diverged, LabError
from lab.methods import Method, declared
from lab.methods.fedprox import FedProx
from lab.methods.photon import Photon
from lab.processes import secure_sum
from lab.processes.peers import ManyProcesses
from lab.processes.post import Post
from lab.processes.secure_sum import BITS, KEYS, MOST, Masks, SecureSum
from lab.recipes.notes import notes
from lab.recipes.scenario import Outage, Scenario
from lab.runs.trainer import Trainer, dry_run
from lab.testing.method_laws import LAWS, exceptions
from lab.testing.report import Law
from lab.testing.subject import Subject
from lab.testing.threads import InThreads, in_threads
from tests.support.bench import drawn
from tests.support.listed import LISTED
from tests.support.posts import posts
from tests.support.recipes import corpus, recipe
from tests.support.texts import fails

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cryptography") is None, reason="cryptography is not installed"
)
SGD = Optimizer("SGD", 0.1)
METHODS: dict[str, Method] = {
    name: LISTED[name] for name in ("fedprox", "scaffold", "photon", "local_sgd", "des_loc", "ddp", "diloco")
}
N, P = 4, 6000


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Parameter(torch.empty(P)), nn.Parameter(torch.empty(7))


def fleet(mine: Any = None, num_workers: int = N) -> Fleet:
    """Workers with other numbers each, which are the same in whatever process."""
    made = Fleet(lambda w: Vector(), num_workers, mine=mine, dtype=torch.float64, threads=1)
    for w in made.mine:
        made.params.cell("small", w).copy_(drawn(P, purpose=("small", w)) * 0.01)
        made.params.cell("large", w).copy_(drawn(7, purpose=("large", w)) * 900)
    return made


WEIGHTS = [3.0, 1.0, 0.5, 7.0]
KINDS: dict[str, dict[str, Any]] = {
    "server": {"to_server": True},
    "server, weights": {"to_server": True, "weights_W": WEIGHTS},
    "peers": {},
    "peers, some": {"participants": [True, True, False, True], "weights_W": WEIGHTS},
}


def mean(comm: Communicator, minus: bool, **how: Any) -> Tensor:
    of = comm.fleet.params
    base = Stack(of.layout, [torch.full((1, b.numel), 0.125, dtype=torch.float64) for b in of.layout.blocks])
    found = comm.mean(of, "params", minus=base if minus else None, **how)
    return torch.cat([x[0] for x in found.blocks])


@pytest.mark.parametrize("minus", [False, True], ids=["whole", "differences"])
@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS.keys())
def test_it_is_the_plain_mean(how: dict[str, Any], minus: bool) -> None:
    """To half a unit in the last place for each worker; the same bits in one process and in four, and again with other keys."""
    plain = mean(Communicator(fleet()), minus, **how)
    one, again = (mean(SecureSum(fleet()), minus, **how) for _ in range(2))
    assert torch.equal(one, again)
    step = N * 2.0 ** -(BITS + 1)
    assert float((one - plain).abs().max()) <= step + 4 * np.finfo(float).eps * float(plain.abs().max())
    assert not torch.equal(one, plain)  # it has been rounded

    def work(world: InThreads) -> Tensor:
        world.begin_(bool(how.get("to_server")))
        return mean(SecureSum(fleet(world.mine), world=world), minus, **how)

    parts = in_threads(N, work)
    assert all(torch.equal(part, one) for part in (parts[:1] if how.get("to_server") else parts))


def on_the_wire(how: dict[str, Any]) -> list[Tensor]:
    """What each of four processes hands to the others of its part of a sum, int64 ``[P]``."""
    seen: dict[int, Tensor] = {}

    class Overheard(InThreads):
        def reduce_(self, means: Any, codec: Any, to_server: bool = False) -> None:
            if any(len(m.partial_sum) for m in means):
                seen[self.index] = torch.cat([m.partial_sum[0].clone() for m in means])
            super().reduce_(means, codec, to_server)

    def work(world: InThreads) -> None:
        mine = Overheard(world.meeting, world.index, world.num)
        mine.begin_(bool(how.get("to_server")))
        mean(SecureSum(fleet(mine.mine), world=mine), False, **how)

    in_threads(N, work)
    return [seen[w] for w in sorted(seen)]


def looks_random(values: Tensor) -> bool:
    """Whether 64-bit numbers could be dice: each bit is set in half of them, to within five standard deviations, and all 256 highest
    bytes are equally frequent.
    """
    bits = np.unpackbits(values.numpy().view(np.uint8)).reshape(-1, 64)
    apart = np.abs(bits.mean(0) - 0.5).max() * 2 * math.sqrt(len(bits))
    counts = np.bincount(values.numpy().view(np.uint8).reshape(-1, 8)[:, 7], minlength=256)
    expected = len(values) / 256
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    return apart < 5 and abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


def fixed(worker: int, weight: float) -> Tensor:
    """What a worker would hand in without masks."""
    x = fleet().params
    return torch.cat([(b[worker] * weight * 2.0**BITS).round().to(torch.int64) for b in x.blocks])


@pytest.mark.parametrize("how", [KINDS["server"], KINDS["peers"]], ids=["server", "peers"])
def test_what_is_on_the_wire_is_noise_for_everybody(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each worker alone, of some together, and of what it hands in less the truth; only all of them add up. Without masks it is seen."""
    sent, truth = on_the_wire(how), [fixed(w, 1 / N) for w in range(N)]
    for w in range(N):
        assert looks_random(sent[w])
        assert looks_random(sent[w] - truth[w])
        assert looks_random(sent[w] + sent[(w + 1) % N])  # two that others put together
        assert looks_random(sum(sent) - sent[w])  # and all but one
    assert torch.equal(sum(sent), sum(truth))
    for other in on_the_wire(how):  # in another run no number is the same
        assert all(not torch.equal(other, x) for x in sent)

    monkeypatch.setattr(Masks, "add_", lambda self, part, workers: None)
    bare = on_the_wire(how)
    assert all(map(torch.equal, bare, truth))
    assert not any(map(looks_random, bare))


def test_masks_are_never_used_twice() -> None:
    """Two sums of one step, and two steps: other masks, so that what is handed in cannot be told from their difference."""
    seen: list[Tensor] = []

    class Overheard(InThreads):
        def reduce_(self, means: Any, codec: Any, to_server: bool = False) -> None:
            if self.index == 1:
                seen.append(means[0].partial_sum[0].clone())
            super().reduce_(means, codec, to_server)

    def work(world: InThreads) -> None:
        mine = Overheard(world.meeting, world.index, world.num)
        comm = SecureSum(fleet(mine.mine), world=mine)
        for comm.t in (1, 1, 2):
            mean(comm, False)

    in_threads(N, work)
    a, b, c = seen
    assert looks_random(a - b)
    assert looks_random(a - c)


def test_looking_is_hidden_as_well() -> None:
    """The mean that probes ask for travels like those of the method, and is counted nowhere."""
    seen: list[Tensor] = []

    class Overheard(InThreads):
        def reduce_(self, means: Any, codec: Any, to_server: bool = False) -> None:
            seen.extend(m.partial_sum[0].clone() for m in means if m.partial_sum.shape[1] >= P)
            super().reduce_(means, codec, to_server)

    def work(world: InThreads) -> tuple[Tensor, int]:
        mine = Overheard(world.meeting, world.index, world.num)
        comm = SecureSum(fleet(mine.mine), world=mine)
        return torch.cat([x[0] for x in comm.agreed(comm.fleet.params).blocks]), len(comm.ledger)

    found = in_threads(N, work)
    want = Communicator(fleet()).agreed(fleet().params)
    assert all(torch.allclose(x, torch.cat([b[0] for b in want.blocks]), rtol=1e-14, atol=1e-14) for x, _ in found)
    assert {num for _, num in found} == {0}
    assert len(seen) == N
    assert all(map(looks_random, seen))


# --- what it costs, and what it refuses ----------------------------------------------------------------------------------


def sent_by(method: Method, **changes: Any) -> list[Sent]:
    trainer = Trainer(recipe(method, num_workers=N, **changes), corpus=corpus())
    return [e for e in trainer.events() if isinstance(e, Sent)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_are_those_of_whole_numbers_and_of_keys(dtype: str) -> None:
    """Eight bytes a number, once 32 of a key up, and those of all down; what is handed out stays as it is."""
    method = FedProx(2, 0.0, SGD)
    plain, secure = (sent_by(method, dtype=dtype, privacy={"secure_sum": on}) for on in (False, True))
    element = getattr(torch, dtype).itemsize
    kinds = [{(e.op, e.state): e.bytes_each for e in sent} for sent in (plain, secure)]
    num = kinds[0]["reduce", "params"] // element
    assert kinds[0] == {("broadcast", "params"): element * num, ("reduce", "params"): element * num}
    assert kinds[1] == kinds[0] | {("reduce", "params"): 8 * num, ("gather", "keys"): 32, ("broadcast", "keys"): 32 * N}
    assert secure == dry_run(recipe(method, num_workers=N, dtype=dtype, privacy={"secure_sum": True}))
    of_peers = {
        (e.op, e.state): e.bytes_each for e in sent_by(Photon(2, SGD), dtype=dtype, privacy={"secure_sum": True})
    }
    assert of_peers == {("all_reduce", "params"): 8 * num, ("all_gather", "keys"): 32}


@pytest.mark.parametrize("value", [MOST, -MOST, 1e30, math.inf, math.nan])
def test_what_does_not_fit_is_an_error(value: float) -> None:
    comm = SecureSum(fleet())
    comm.fleet.params.cell("small", 2)[5] = math.copysign(MOST * (1 - 1e-15), value)
    edge = mean(comm, False)
    assert edge[5] == pytest.approx(float(mean(Communicator(comm.fleet), False)[5]), rel=1e-14)
    comm.fleet.params.cell("small", 2)[5] = value
    with pytest.raises(Diverged, match=r"worker 2 hands in a number in step 0 that is not below 16,384 in size"):
        mean(comm, False)


def test_sums_of_the_largest_do_not_turn_over() -> None:
    """All at the edge, and all the weight on one."""
    comm = SecureSum(fleet(num_workers=64))
    comm.fleet.params.blocks[0].fill_(MOST * (1 - 1e-12))
    for weights in (None, [1.0] + [1e-9] * 63):
        assert float(mean(comm, False, weights_W=weights).abs().max()) == pytest.approx(MOST, rel=1e-9)


def test_what_is_no_sum_is_refused_before_anything_runs() -> None:
    def start(method: Any, **changes: Any) -> None:
        Trainer(recipe(method, **({"num_workers": N, "privacy": {"secure_sum": True}} | changes)), corpus=corpus())

    for name in ("q_fedavg", "term", "flash", "worldlm"):
        with fails(r"privacy.secure_sum: this method needs \w+ of each worker by itself"):
            start(LISTED[name])
    with fails(r"secure_sum adds whole numbers, and codecs.params sends others"):
        start(LISTED["fedprox"], codecs={"params": "int8"})
    with fails(r"secure_sum: in step \d 2 workers would hand in params, .* 3 or more"):
        start(LISTED["fedprox"], num_workers=2)
    with fails(r"secure_sum: in step \d 2 workers would hand in"):
        start(LISTED["noloco"])
    with fails(r"secure_sum: in step \d 2 workers would hand in"):
        start(LISTED["hierfavg two"])
    away = Scenario(outages=(Outage(worker=0, last=2), Outage(worker=3, last=2)))
    with fails(r"secure_sum: in step 2 2 workers would hand in params"):
        start(LISTED["fedprox"], scenario=away)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_sum.importlib.util, "find_spec", lambda name: None)
    with fails(r"privacy.secure_sum needs the package cryptography: pip install 'isthmus\[privacy\]'"):
        dry_run(recipe(LISTED["fedprox"], num_workers=N, privacy={"secure_sum": True}))


def test_it_says_what_else_tells_of_single_workers() -> None:
    method, on = FedProx(2, inner=SGD), {"secure_sum": True}
    (said,) = [note for note in notes(recipe(method, num_workers=N, privacy=on)) if "secure_sum" in note]
    assert "checkpoints" in said
    assert not [n for n in notes(recipe(method, num_workers=N, privacy=on, checkpoint_every=0)) if "secure_sum" in n]
    turns = {"num": 9, "inner_states": "kept"}
    (said,) = [n for n in notes(recipe(method, num_workers=N, privacy=on, clients=turns)) if "secure_sum" in n]
    assert "what clients keep" in said


# --- whole runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_plain_one(name: str) -> None:
    """To the rounding of its sums; and the keys, which nobody can foresee, and no global generator, have a part in it."""
    before = torch.get_rng_state(), random.getstate()

    def losses(secure: bool) -> list[float]:
        r = recipe(METHODS[name], num_workers=N, privacy={"secure_sum": secure}, steps=8)
        return [e.loss for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Evaluated)]

    plain, first, second = losses(False), losses(True), losses(True)
    assert first == second
    assert first == pytest.approx(
        plain, rel=1e-7 if name == "des_loc" else 1e-10
    )  # which averages squares of gradients
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


# Of one that is heard alone; and with two of all that are left.
OTHERS = ("isolation", "solitude", "dry run")
CASES = [pytest.param(law, id=law.name) for law in LAWS if law.name not in OTHERS]


@pytest.mark.parametrize("law", CASES)
@pytest.mark.parametrize("name", ["fedprox", "scaffold", "photon"])
def test_law(law: Law[Subject], name: str) -> None:
    method = METHODS[name]
    clip = {"clip": 0.02} if declared(method).bounded else {}
    subject = Subject(method, {"num_workers": 5, "privacy": {"secure_sum": True} | clip})
    finding = law.check(subject, exceptions(method))
    assert finding.outcome in ("passed", "not applicable"), finding.says
    assert finding.outcome == "passed" or law.name == "plain optimizer"


def test_who_has_lost_its_key_does_not_add_numbers_that_nobody_can_read() -> None:
    """It is back without its seed, and what it had said counts: another public key than that of the secret it has."""

    class SaidBefore(OneProcess):
        def gather_to_server(self, tensors: Any) -> Any:
            return {w: {KEYS: torch.full_like(of[KEYS], 7)} for w, of in tensors.items()}

    with pytest.raises(LabError, match=r"was lost in the midst of step 0.* all begin again from the last checkpoint"):
        mean(SecureSum(fleet(), world=SaidBefore()), False)


def test_keys_of_a_site_that_can_come_back_are_drawn_from_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the same purpose, and for no other; those of others are new each time."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)

    def public(post: Post | None, purpose: str) -> bytes:
        comm = SecureSum(fleet(), world=ManyProcesses(N, 5.0, torch.device("cpu"), post))
        key: bytes = comm._secret(purpose).public_key().public_bytes_raw()
        return key

    one, other = posts(tmp_path / "box", 2)
    seen = [public(post, purpose) for post in (one, other) for purpose in ("3 0 True 1", "3 1 True 1", "4 0 True 1")]
    assert len({*seen}) == 6
    assert public(posts(tmp_path / "box", 2)[0], "3 0 True 1") == seen[0]
    assert public(None, "3 0 True 1") != public(None, "3 0 True 1")
