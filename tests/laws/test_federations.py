"""The laws with participants: more clients than rows, parts of their own, over-selection, rounds with few or none. No method opts in.

In each federation here somebody is late, rows stay empty, all are away for a round, and clients come back to other rows than they had.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.costs.calendar import calendar
from lab.data.training_data import BatchSource
from lab.engine.stack import Stack
from lab.events import Seated, Sent, Stepped
from lab.ground.errors import RecipeError
from lab.methods import METHODS, noloco
from lab.recipes.scenario import Outage, Scenario
from lab.runs.build import build
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer, dry_run
from lab.testing.method_laws import exceptions
from tests.support.bench import Bench, close, other, two_nets
from tests.support.cases import EXPERTS
from tests.support.federations import (
    ADAPTERS,
    FEDERATED,
    by_client,
    federation,
    kept_by,
    row_of,
    run,
    seating_of,
    spoil_rows_,
    turn_rows_,
)
from tests.support.listed import ADAPTED, LISTED, OF_LABELS, PACED
from tests.support.recipes import corpus
from tests.support.stories import story

STEPS = 7

every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in METHODS else pytest.mark.variant) for name in FEDERATED]
)
every_listed = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in METHODS else pytest.mark.variant) for name in LISTED if name not in PACED],
)
of_clients = pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])
ROUNDING = 1e-7  # sums in another order, through optimizers that divide by small numbers


def same_kept(
    a: dict[int, dict[str, Tensor]], b: dict[int, dict[str, Tensor]], same: Callable[[Tensor, Tensor], bool]
) -> bool:
    return a.keys() == b.keys() and all(
        a[c].keys() == b[c].keys() and all(same(a[c][k], b[c][k]) for k in a[c]) for c in a
    )


# --- what is personal, where all take part all the time --------------------------------------------------------------


def apart(name: str, **changes: Any) -> Bench:
    """A method on two nets side by side, of which the second is personal; nothing but the method could connect them."""
    method: Any = dataclasses.replace(LISTED[name], max_norm=None)  # type: ignore[type-var]
    return Bench(method, build=two_nets, personal=lambda n: "other." in n, **changes).run(STEPS)


def own(lab: Bench, worker: int) -> Tensor:
    return torch.cat([lab.fleet.params.cell(n, worker).flatten() for n in lab.fleet.params.names() if "other" in n])


@every_listed
def test_what_is_personal_is_nobody_elses(name: str) -> None:
    """Other data at one worker reaches the others, but not what is their own; and none of it is sent."""
    mine, changed = apart(name), apart(name, batch=other({1: 77}))
    for w in (0, 2):
        assert torch.equal(own(mine, w), own(changed, w))
    assert not close(own(mine, 1), own(changed, 1))
    sent = [(group, num) for r in mine.records for group, num in r.payload_bytes.items()]
    assert {group.removeprefix("group ") for group, _ in sent} - {"stack"} == {"one"}
    assert all(num == 8 for group, num in sent if group == "stack")  # a number that is no parameter's


@every_listed
def test_what_is_personal_learns_as_if_alone(name: str) -> None:
    """Each worker's own net is the one that it would have without any others, where no optimizer is put back on the way."""
    together = apart(name)
    for w in range(3):
        assert close(own(together, w), own(apart(name, num_workers=1, batch=other({0: w})), 0)), w
        assert not close(own(together, w), own(together, (w + 1) % 3))


# --- clients that take turns -----------------------------------------------------------------------------------------


def test_these_federations_are_not_easy() -> None:
    seats = [e for e in Trainer(federation("local_sgd", steps=15), corpus=corpus()).events() if isinstance(e, Seated)]
    assert any(e.late for e in seats)
    assert {len(e.clients) for e in seats} == {0, 1, 2, 4}
    rows = {(c, w) for e in seats for w, c in enumerate(e.clients)}
    assert len(rows) > len({c for c, _ in rows})


@every
@of_clients
def test_who_sits_down_finds_nothing_of_who_sat_there(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolation between turns: whatever a row held, all that its next client has is what is agreed and what is its own."""
    plain, spoilt = (Trainer(federation(name, kept=kept), corpus=corpus()) for _ in range(2))
    spoil_rows_(spoilt, monkeypatch)
    assert by_client(plain.events()) == by_client(spoilt.events())
    for mine, theirs in zip(plain.agreed().blocks, spoilt.agreed().blocks, strict=True):
        assert torch.equal(mine, theirs)
    assert same_kept(kept_by(plain), kept_by(spoilt), torch.equal)


@every
def test_rows_have_no_rank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relabelling: clients that sit in other rows do, send, and keep the same."""
    plain = Trainer(federation(name), corpus=corpus())
    losses, sent = by_client(plain.events())
    turn_rows_(monkeypatch)
    turned, drawn = Trainer(federation(name), corpus=corpus()), noloco.groups

    def dealt(workers: list[int], *rest: Any) -> list[list[int]]:  # pairs are drawn for rows
        last = len(turned.state.clients_W) - 1
        return [sorted(last - w for w in group) for group in drawn(sorted(last - w for w in workers), *rest)]

    monkeypatch.setattr(noloco, "groups", dealt)
    losses_too, sent_too = by_client(turned.events())
    assert sent == sent_too
    assert losses_too == {key: pytest.approx(x, rel=ROUNDING) for key, x in losses.items()}
    for mine, theirs in zip(plain.agreed().blocks, turned.agreed().blocks, strict=True):
        assert close(mine, theirs, ROUNDING)
    assert same_kept(kept_by(plain), kept_by(turned), lambda a, b: close(a, b, ROUNDING))


class Sealed:
    """Batches of clients in the rounds in which they count; whoever asks for another one raises."""

    def __init__(self, batches: BatchSource, trainer: Trainer):
        self.batches, self.trainer, self.asked = batches, trainer, set[int]()

    def get(self, client: int, t: int) -> tuple[Tensor, Tensor]:
        now = seating_of(self.trainer).now
        assert client in {c for w, c in enumerate(now.clients) if w not in now.late}, (client, t)
        self.asked.add(client)
        return self.batches.get(client, t)


@every
def test_who_does_not_count_is_not_looked_at(name: str) -> None:
    """The data of clients that are away, not asked or late have no part in anything: nobody reads them."""
    trainer = Trainer(federation(name), corpus=corpus())
    assert trainer.setup.data is not None
    sealed = Sealed(trainer.setup.data.batches, trainer)
    object.__setattr__(trainer.setup.data, "batches", sealed)
    for _ in trainer.events():
        pass
    assert bool(sealed.asked) == (name != "supervised_only")  # whose clients do nothing


@every
def test_who_is_late_is_still_and_silent(name: str) -> None:
    """It receives what all receive; then nothing in its row moves, it hands in nothing, and it keeps what it had."""
    trainer = Trainer(federation(name), corpus=corpus())
    seated, late = Seated(0, []), list[int]()
    rows: dict[int, dict[str, Tensor]] = {}
    kept: dict[int, dict[str, Tensor]] = {}
    for event in trainer.events():
        if isinstance(event, Seated):
            before, kept = kept, kept_by(trainer)
            was_late = [seated.clients[w] for w in late]
            assert same_kept(*({c: x[c] for c in was_late if c in x} for x in (before, kept)), torch.equal)
            seated, late = event, event.late
            rows = {w: row_of(trainer, w) for w in late}
            if trainer.state.served:
                received = shared_of(trainer, trainer.state.shared["params"], 0)
        elif isinstance(event, Stepped):
            for w in late:
                assert event.loss_W[w] is None
                now = row_of(trainer, w)
                if name in OF_LABELS:  # its server trains before it hands out for the first time
                    received = shared_of(trainer, trainer.state.shared["params"], 0)
                if trainer.state.served and event.step == seated.step:
                    mixed = "own" in trainer.state.local  # with what it had itself
                    assert mixed or torch.equal(shared_of(trainer, trainer.fleet.params, w), received)
                else:
                    assert all(torch.equal(now[key], x) for key, x in rows[w].items()), event.step
                rows[w] = now
        elif isinstance(event, Sent) and event.op != "broadcast":
            assert not {*event.workers} & {*late}, event
    assert kept


def shared_of(trainer: Trainer, stack: Stack, row: int) -> Tensor:
    blocks = zip(stack.layout.blocks, stack.blocks, strict=True)
    return torch.cat([x[row].clone() for block, x in blocks if not block.personal])


@every
def test_who_goes_down_in_a_round_rests_until_it_is_back(name: str) -> None:
    """Row 2 is away in the second step: it does not send, and where that is in the midst of a round it does not move."""
    away = Scenario(outages=(Outage(worker=2, first=2, last=2),))
    trainer = Trainer(federation(name, scenario=away, steps=2), corpus=corpus())
    rows, losses = list[dict[str, Tensor]](), list[float | None]()
    for event in trainer.events():
        if isinstance(event, Stepped):
            rows.append(row_of(trainer, 2))
            losses.append(event.loss_W[2])
    assert [x is None for x in losses] == [False, True]
    assert not [r for r in trainer.comm.ledger if r.step == 2 and 2 in r.workers]
    if seating_of(trainer).period > 1:
        assert all(torch.equal(rows[1][key], x) for key, x in rows[0].items())


@every
@of_clients
def test_a_dry_run_sends_what_the_run_sends(name: str, kept: bool) -> None:
    """Record by record, who receives and who is late included; a calendar that leaves out what is alike says the same."""
    r = federation(name, kept=kept)
    sent = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Sent)]
    planned = list(calendar(build(r, dry=True).dry_run()))
    if "dry run" in exceptions(
        FEDERATED[name]
    ):  # how much is sent hangs on values: when, and at most how much is handed in
        when = [list(dict.fromkeys((e.step, e.op) for e in some if e.state != "mask")) for some in (planned, sent)]
        assert when[0] == when[1]
        most, real = (sum(e.bytes_all for e in some if e.op != "broadcast") for some in (planned, sent))
        assert most >= real > 0.8 * most
        return
    assert planned == sent == dry_run(r)
    assert any(len(e.workers) == 4 for e in sent if e.op == "broadcast")  # who is late as well


@every
def test_what_is_personal_is_not_sent(name: str) -> None:
    """No record has a byte of it, whatever the state: all norms, or one of two adapted maps, as if that one were not there."""
    personal = run(federation(name))
    assert [b.group for b in personal.fleet.layout.blocks if b.personal]
    if name not in ADAPTED:
        assert not [r for r in personal.comm.ledger if "norm" in r.payload_bytes]
    elif name != "hetlora":  # whose clients prune as their adapters are
        one_map = ADAPTERS | {"targets": ["attention.qkv"], "train": personal.recipe.lora.train}
        without = run(federation(name, personal=False, lora=one_map))
        assert list(personal.comm.ledger) == list(without.comm.ledger)


@every
def test_resumed_in_a_round_is_never_stopped(name: str, tmp_path: Path) -> None:
    """Stopped between two steps of the last round, with clients' states on disk, as a process that is killed leaves them."""
    r = federation(name, steps=6, checkpoint_every=1)
    whole, written = Trainer(r, corpus=corpus()), RunFolder(tmp_path / "whole")
    told = []
    for event in whole.events(written):
        told.append(event)
        if isinstance(event, Stepped) and event.step == 6:
            written.flush()
            shutil.copytree(written.path, tmp_path / "stopped")
    again = Trainer(r, corpus=corpus())
    assert story(again.events(RunFolder(tmp_path / "stopped"))) == story(told)
    want, got = whole.snapshot()[0], again.snapshot()[0]
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], x) for key, x in want.items())
    assert same_kept(kept_by(whole), kept_by(again), torch.equal)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_no_method_is_left_out() -> None:
    assert {*METHODS} <= {*FEDERATED}


WARM = {"name": "mt_dao", "sync_every": {"params": 2}, "warm": {"steps": 3}}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("fomoe", EXPERTS | {"placement": {"overlap": 2}}, "placement.overlap gives workers experts of their own"),
        ("prelort", {"lora": {"ranks": [1, 2, 2, 1]}}, "lora.ranks differ by worker, and clients sit down in any row"),
        (
            "photon",
            {"method": {"name": "photon", "samples": {0: 2.0}}},
            "method.samples names workers, but clients take",
        ),
        ("mt_dao", {"method": WARM}, "but clients keep exp_avg while they are away: set clients.inner_states=fresh"),
        *(
            (name, {"clients": {"num": 7, "personal": ["*lora_A*"]}}, "clients.personal has one factor of blocks.0.att")
            for name in ("fedex_lora", "flexlora", "flora", "hetlora", "raflora")
        ),
        ("ffa_lora", {"clients": {"num": 7, "personal": ["*lora_B*"]}}, "leaves no parameter that is trained together"),
    ],
)
def test_what_does_not_go_with_clients_is_refused_in_one_line(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)) as caught:
        Trainer(federation(name, **changes), corpus=corpus())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fedit", "prelort", "zero_padding"])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_one_factor_may_be_personal_where_factors_are_averaged(name: str, factor: str) -> None:
    trainer = run(federation(name, clients={"num": 7, "personal": [f"*lora_{factor}*"]}))
    sizes = {"A": 8 + 8, "B": 24 + 32}  # d_in and d_out of the two maps
    (other,) = {*sizes} - {factor}
    assert {r.bytes_each for r in trainer.comm.ledger} == {8 * 2 * sizes[other]}
