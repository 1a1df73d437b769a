"""Who imitates, and the audit as a record: sampling, cells that are not done twice, and what a server sees of a federation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lab.cli import main
from lab.data.tasks.authors import Authors, Message
from lab.events import CellDone, Defended, Event, Imitated, Warned
from lab.ground.seeds import generator
from lab.models.abbie import Past
from lab.models.gpt import GPT, GPTModule
from lab.models.lora import LoRA, adapt_
from lab.models.shape import Shape
from lab.runs.records import Record
from lab.systems.imitation.audit import audit, cells
from lab.systems.imitation.bench import Bench
from lab.systems.imitation.federated import Done, as_numbers, cosine, masked, recipe_of
from lab.systems.imitation.found import band
from lab.systems.imitation.imitator import Model, Sampling, base_recipe, continued, kept, sample, tuned_recipe
from lab.systems.imitation.settings import Audit, Federation, One
from lab.systems.imitation.watermark import Watermark
from tests.support.texts import fails

TINY = Audit(
    authors=5,
    messages=60,
    targets=(0, 1, 2),
    counts=(0, 5),
    ways=("lora",),
    texts=3,
    perturbations=1,
    model=Model(dim=16, num_layers=1, num_heads=1, steps=2, epochs=1, most=2, least=1, batch_size=4),
    federation=Federation(methods=(), rounds=2, steps=2, ranks=(1, 2), noises=(1.0,), batch_size=2),
)
ENCODER = Authors(authors=2, messages=6).encoder
ASKED = [
    Message(0, "test", "send report monday budget call", ""),
    Message(0, "test", "cancel plan friday data tell", ""),
]


def gpt(adapters: bool = False, scale: float = 1.0) -> GPTModule:
    module = GPT(dim=16, num_layers=2, num_heads=2).build(256, ENCODER.context, seed=3)
    if adapters:
        adapt_(module, LoRA(ranks=(2,), targets=("attention.qkv", "mlp.0")), 2)
    for i, p in enumerate(module.parameters()):
        p.data = torch.randn(p.shape, generator=generator(i, "test")) * scale
    return module.eval().requires_grad_(False)  # type: ignore[return-value]


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", [False, True])
def test_kept_keys_and_values_give_the_same_logits(adapters: bool) -> None:
    module, past = gpt(adapters, 0.3), Past()
    ids = torch.randint(256, (3, 20), generator=generator(0, "ids"))
    parts = [continued(module, part, past) for part in ids.split([7, 1, 1, 11], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), module(ids), rtol=1e-4, atol=1e-4)


def test_what_is_drawn_from_by_hand() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05 of printable bytes; byte 5 is no text, however likely."""
    logits = torch.full((1, 256), -torch.inf)
    for byte, p in ((65, 0.5), (66, 0.3), (67, 0.15), (68, 0.05)):
        logits[0, byte] = np.log(p)
    logits[0, 5] = 9.0

    def left(**options: Any) -> list[int]:
        return (
            torch.isfinite(kept(logits.clone(), Sampling(**{"temperature": 1.0, **options}))).nonzero()[:, 1].tolist()
        )

    assert left() == [65, 66, 67, 68]
    assert left(top_k=2) == [65, 66]
    assert left(top_p=0.79) == [65, 66]
    assert left(top_p=0.81) == [65, 66, 67]
    assert left(top_p=0.01) == [65]
    colder = kept(logits.clone(), Sampling(temperature=0.5)).softmax(1)
    assert float(colder[0, 65] / colder[0, 66]) == pytest.approx((0.5 / 0.3) ** 2)


def test_the_coldest_text_is_the_likeliest_byte_after_byte() -> None:
    """Prompts of different lengths, each as if it were alone, and without keys and values that were kept."""
    module = gpt(scale=0.3)
    texts = sample(module, ASKED, ENCODER, 0, Sampling(temperature=1e-4))
    for message, asked in zip(texts, ASKED, strict=True):
        assert (message.part, message.asked) == ("imitated", asked.asked)
        ids = torch.tensor([[*asked.asked.encode(), 0x1F]])
        written: list[int] = []
        while ids.shape[1] < ENCODER.context:
            logits = module(ids)[:, -1]
            byte = int(kept(logits, Sampling(temperature=1.0)).argmax())
            if not byte:
                break
            written.append(byte)
            ids = torch.cat([ids, torch.tensor([[byte]])], 1)
        assert message.text == bytes(written).decode(errors="replace")


def test_texts_follow_from_the_seed_and_the_mark_moves_them() -> None:
    module = gpt(scale=0.1)
    one = sample(module, ASKED, ENCODER, 1)
    assert one == sample(module, ASKED, ENCODER, 1) != sample(module, ASKED, ENCODER, 2)
    assert one != sample(module, ASKED, ENCODER, 1, mark=Watermark())


def test_a_base_reads_everybody_else_and_an_imitator_what_it_has() -> None:
    base = base_recipe(TINY.model, {"authors": 5, "messages": 60}, [1, 3], 0)
    assert base.data is not None
    assert base.data.options["without"] == [1, 3]
    tuned = tuned_recipe(replace(TINY.model, epochs=3, least=1, most=7), {}, 4, 9, "lora", 0, "base.safetensors")
    assert tuned.data is not None
    assert (tuned.data.options["only"], tuned.data.options["first"], tuned.start) == ([4], 9, "base.safetensors")
    assert (tuned.steps, tuned.lora.ranks) == (7, (4,))  # three times three batches of four, and seven at most
    assert tuned_recipe(TINY.model, {}, 4, 9, "full", 0, "x.safetensors").lora.ranks == ()
    with fails("1 messages to fine-tune on"):
        tuned_recipe(TINY.model, {}, 4, 1, "lora", 0, "x.safetensors")


# --- the record -------------------------------------------------------------------------------------------------------


class Cut(Exception):
    pass


def said(record: Record) -> list[Event]:
    """Without what takes its time."""
    out: list[Event] = []
    for e in record.events:
        if isinstance(e, Imitated | Defended):
            out.append(replace(e, cpu_seconds=0.0))
        elif not isinstance(e, CellDone | Warned):
            out.append(e)
    return out


def test_an_audit_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    """With the very same rates as one that was never stopped; whole cells are not done again."""
    few = replace(TINY, authors=4, targets=(0, 1))
    whole = audit(few, tmp_path / "whole")
    assert [*whole.cells] == [*cells(few)]
    assert len([e for e in whole.events if isinstance(e, Imitated)]) == 2 * 2

    def stop(event: Event) -> None:
        if isinstance(event, Imitated) and (event.author, event.messages) == (1, 5):
            raise Cut

    with pytest.raises(Cut):
        audit(few, tmp_path / "cut", tell=stop)
    (path,) = (tmp_path / "cut/records").glob("imitation-*")
    half = Record(path)
    assert 0 < len(half.cells) < len(whole.cells)
    done = audit(few, tmp_path / "cut")
    assert said(done) == said(whole)
    assert {name: done.cells[name] for name in half.cells} == half.cells
    seen = next(e for e in done.events if isinstance(e, Imitated) and e.messages == 5)
    assert {len(x) for x in seen.accepted.values()} == {3}
    assert seen.accepted["signature"] == [0, 0, 0]
    assert all(len(x) == 2 and 0 <= x[0] <= 1 for x in seen.detected.values())
    defended = [e for e in done.events if isinstance(e, Defended)]
    assert [(e.accepts["signature"], e.impostors["signature"]) for e in defended] == [(1.0, 0.0)] * 2


def test_a_command_with_the_same_words(tmp_path: Path) -> None:
    options = [
        "authors=4",
        "messages=60",
        "targets=[0]",
        "counts=[0]",
        "texts=2",
        "perturbations=1",
        "federation.methods=[]",
    ]
    options += [
        "model.dim=16",
        "model.num_layers=1",
        "model.num_heads=1",
        "model.steps=1",
        "model.epochs=1",
        "model.most=1",
        "model.least=1",
    ]
    words = [word for option in options for word in ("-o", option)]
    first = CliRunner().invoke(main, ["audit", *words, "--runs", str(tmp_path)])
    assert first.exit_code == 0, first.output
    assert "author 0, 0 messages, base, seed 0" in first.output
    assert "people only" in first.output
    (path,) = (tmp_path / "records").iterdir()
    before = (path / "events.jsonl").read_bytes()
    assert CliRunner().invoke(main, ["audit", *words, "--runs", str(tmp_path)]).exit_code == 0
    assert (path / "events.jsonl").read_bytes() == before
    wrong = CliRunner().invoke(main, ["audit", "-o", "targets=[99]"])
    assert wrong.exit_code == 2
    assert "targets = [99]" in wrong.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ()}, "name at least one author"),
        ({"targets": (0, 0)}, "each once"),
        ({"authors": 4}, "leaves fewer than two of 4"),
        ({"counts": (1,)}, "give 0, or 2 to 40 messages"),
        ({"counts": (41,)}, "give 0, or 2 to 40 messages"),
        ({"texts": 11}, "use at most 10"),
        ({"targets": (0,), "federation": Federation(secure_sum=False)}, "a federation of one target is none"),
        ({"targets": (0, 1), "federation": Federation()}, "needs 3 clients"),
    ],
)
def test_what_is_not_allowed(options: dict[str, Any], says: str) -> None:
    with fails(says):
        replace(TINY, **options)


# --- bands ------------------------------------------------------------------------------------------------------------


def test_a_band_covers() -> None:
    """Of 200 made-up audits with a true rate of 0.3 (authors beta-distributed around it) about nineteen in twenty bands have it inside.

    Five authors are few for a bootstrap: four in five at the least, and nearly all at most.
    """
    inside = 0
    for k in range(200):
        rng = np.random.default_rng(k)
        texts = {a: rng.binomial(1, rng.beta(3, 7), 40).tolist() for a in range(5)}
        low, high = band(texts, times=300)
        inside += low <= 0.3 <= high
    assert 0.8 <= inside / 200 <= 0.99


def test_a_band_by_hand() -> None:
    """Nothing to draw: no width. One author: that of a binomial rate."""
    assert band({0: [1, 1], 1: [1, 1]}) == (1.0, 1.0)
    low, high = band({0: [1] * 50 + [0] * 50}, times=4000)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    wide = band({0: [1] * 50, 1: [0] * 50}, times=2000)
    assert wide == (0.0, 1.0)  # two authors that differ: all, none, or one of each


# --- federations ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return audit(replace(TINY, counts=(0,)), tmp_path_factory.mktemp("federation"))


def done(record: Record, one: One) -> tuple[Bench, Done]:
    bench = Bench(TINY)
    return bench, Done(recipe_of(bench, one, str(bench.start(record))))


def test_what_a_client_hands_in_is_its_own_adapter(record: Record) -> None:
    """The mean of what all hand in is the shared adapter; clipped ways have the norm at most."""
    _, fedit = done(record, One("fedit"))
    assert sorted(fedit.client_of(a) for a in (0, 1, 2)) == [0, 1, 2]
    handed = [fedit.handed_in(w, None) for w in range(3)]
    shared = dict(fedit.shared.named_parameters())
    for name, value in handed[0].items():
        torch.testing.assert_close(torch.stack([h[name] for h in handed]).mean(0), shared[name])
        assert not torch.equal(value, handed[1][name]) or not value.any()
    for clip in (1e-3, 1e3):
        cut = fedit.handed_in(0, clip)
        ways = {n: x - fedit.fetched[n] for n, x in cut.items()}
        norm = float(torch.stack([w.norm() for w in ways.values()]).norm())
        whole = float(torch.stack([(handed[0][n] - fedit.fetched[n]).norm() for n in ways]).norm())
        assert norm == pytest.approx(min(clip, whole), rel=1e-2)


def test_clients_of_prelort_hold_their_ranks_alone(record: Record) -> None:
    bench, prelort = done(record, One("prelort"))
    ranks = bench.s.federation.ranks_of("prelort", 3)
    assert ranks == [1, 2, 1]
    of = {w: max(int(n.rpartition(".")[2]) for n in prelort.handed_in(w, None)) for w in range(3)}
    assert of == {0: 0, 1: 1, 2: 0}  # segments


def test_a_secure_sum_hides_the_parts_and_not_the_mean(record: Record) -> None:
    parts = [torch.randn(2000, generator=generator(i, "part")) for i in range(3)]
    seen = masked(parts)
    mean = torch.stack([x.double() for x in parts]).mean(0)
    assert float((as_numbers(torch.stack(seen).sum(0)) - mean).abs().max()) < 1e-12
    assert max(abs(cosine(as_numbers(s), x)) for s, x in zip(seen, parts, strict=True)) < 5 / 2000**0.5
    assert min(float(as_numbers(s).abs().max()) for s in seen) > 1e4  # of numbers around 1
    plain, secure = (
        dict(done(record, one)[1].shared.named_parameters()) for one in (One("fedit"), One("fedit", secure=True))
    )
    for name, value in plain.items():
        torch.testing.assert_close(secure[name], value, rtol=1e-4, atol=1e-6)


def test_rows_of_a_federation(record: Record, tmp_path: Path) -> None:
    """Shared at every rank, and its own of every client; noise says what is spent; of a secure sum what is masked."""
    settings = replace(TINY, counts=(0,), federation=replace(TINY.federation, methods=("fedit", "prelort")))
    found = audit(settings, tmp_path)
    rows = [(e.federation, e.way, e.rank, e.author) for e in found.events if isinstance(e, Imitated) and e.federation]
    assert rows == [
        *[("fedit, plain", "shared", 2, a) for a in range(3)],
        *[("fedit, plain", "own", 0, a) for a in range(3)],
        *[("fedit, noise 1", "shared", 2, a) for a in range(3)],
        *[("fedit, noise 1", "handed in", 0, a) for a in range(3)],
        *[("prelort, plain", "shared", r, a) for r in (1, 2) for a in range(3)],
        *[("prelort, plain", "own", 0, a) for a in range(3)],
        *[("prelort, noise 1", "shared", r, a) for r in (1, 2) for a in range(3)],
        *[("prelort, noise 1", "handed in", 0, a) for a in range(3)],
        *[("fedit, secure sum", "shared", 2, a) for a in range(3)],
        *[("fedit, secure sum", "masked", 0, a) for a in range(3)],
    ]
    told = [e.message for e in found.events if isinstance(e, Warned)]
    assert [m.split(",")[0] for m in told[1:]] == ["fedit", "prelort", "fedit"]
    assert "is spent" in told[1]
    assert "the sum is the mean to within" in told[3]


def test_the_model_of_a_record_is_the_one_that_was_trained(record: Record) -> None:
    bench = Bench(TINY)
    module = bench.base(record)
    assert isinstance(module, GPTModule)
    fresh = GPT(dim=16, num_layers=1, num_heads=1).module(Shape(256, bench.encoder.context), 0)
    assert not torch.equal(module.embedding, fresh.embedding)  # type: ignore[arg-type]
