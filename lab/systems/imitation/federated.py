"""Authors who train adapters together: what the shared adapter gives away of each, their own ones, every rank, and what a server is handed.

What each protection is for: noise at the server (`lab.methods.private`) is for whoever has the model, and not against the server, which is
handed every update before there is any noise; a secure sum (`lab.processes.secure_sum`) hides each update from the server, and not the sum,
which is the shared adapter itself.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lab.data.tasks.authors import Message
from lab.events import Clipped, Event, Imitated, Stepped, Warned
from lab.ground.seeds import derive
from lab.models.gpt import GPTModule
from lab.models.lora import cut_to
from lab.processes.secure_sum import BITS, Masks
from lab.recipes.recipe import Recipe
from lab.runs.records import Record
from lab.runs.trainer import Trainer
from lab.systems.imitation.bench import Bench
from lab.systems.imitation.imitator import TARGETS, sample
from lab.systems.imitation.settings import One

Values = dict[str, Tensor]


def recipe_of(bench: Bench, one: One, start: str) -> Recipe:
    """As any run of the lab: clients are authors, the base is frozen."""
    f, model, targets = bench.s.federation, bench.s.model, list(bench.s.targets)
    made: dict[str, Any] = {
        "method": {
            "name": one.method,
            "sync_every": f.steps,
            "weight": "uniform",
            "inner": {"name": "AdamW", "lr": f.lr, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}},
        },
        "model": {"dim": model.dim, "num_layers": model.num_layers, "num_heads": model.num_heads},
        "data": {"name": "authors", **bench.options, "only": targets},
        "split": "by:author",
        "start": start,
        "lora": {"ranks": f.ranks_of(one.method, len(targets)), "targets": list(TARGETS)},
        "num_workers": len(targets),
        "batch_size": f.batch_size,
        "steps": f.rounds * f.steps,
        "eval_every": 0,
        "checkpoint_every": 0,
        "seed": derive(bench.s.seed, "federation") % 2**31,
    }
    if one.noise is not None:
        made["privacy"] = {"clip": f.clip, "noise": one.noise}
    if one.secure:
        made["privacy"] = {"secure_sum": True}
    return Recipe.of(made)


class Done:
    """A federation that has trained, and what it left: ``fetched`` is the server's state at the beginning of the last round."""

    def __init__(self, recipe: Recipe):
        self.trainer, self.fetched, self.epsilon = Trainer(recipe), Values(), None
        last = recipe.steps - recipe.to_dict()["method"]["sync_every"]
        self.fetched = self._shared()
        for event in self.trainer.events():
            if isinstance(event, Stepped) and event.step == last:
                self.fetched = self._shared()
            if isinstance(event, Clipped):
                self.epsilon = event.epsilon
        self.shared = cast(GPTModule, self.trainer.fleet.whole_model(self.trainer.agreed()))

    def _shared(self) -> Values:
        agreed = self.trainer.state.shared["params"]
        return {name: agreed[name][0].clone() for name in agreed.names()}

    def client_of(self, author: int) -> int:
        """Which row of the fleet an author is."""
        data = self.trainer.setup.data
        assert data is not None
        assert data.column_of is not None
        return data.column_of("author").index(author)

    def own(self, client: int) -> GPTModule:
        """A copy of a client's model, as it is when it hands in."""
        module = self.trainer.fleet.modules[client]
        before, module.loss = module.loss, None  # type: ignore[assignment]
        try:
            made = cast(GPTModule, copy.deepcopy(module)).eval()
        finally:
            module.loss = before
        return made.requires_grad_(False)

    def handed_in(self, client: int, clip: float | None) -> Values:
        """What a client hands in, as the server gets it: with clipping, the way from what it had fetched cut to that norm."""
        held = {n: p.detach() for n, p in self.own(client).named_parameters() if ".lora_" in n}
        if clip is None:
            return held
        ways = {n: x - self.fetched[n] for n, x in held.items()}
        norm = torch.stack([w.double().norm() for w in ways.values()]).norm()
        return {n: self.fetched[n] + w * min(1.0, clip / float(norm)) for n, w in ways.items()}


@torch.no_grad()
def with_values(model: GPTModule, values: Mapping[str, Tensor]) -> GPTModule:
    """The model with these values in the place of its own, in place; what is no number becomes one."""
    for name, value in values.items():
        model.get_parameter(name).copy_(torch.nan_to_num(value, nan=0.0, posinf=1e6, neginf=-1e6))
    return model


def masked(handed: Sequence[Tensor]) -> list[Tensor]:
    """What a server sees of what clients hand in to a secure sum, and takes for numbers: float64, of the same shape each.

    Each client's flat tensor ``[P]`` becomes whole numbers with its weight in the mean, and gets the masks that it shares with each of the
    others. Added up modulo 2⁶⁴ they are the mean.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    num = len(handed)
    secrets = [X25519PrivateKey.generate() for _ in handed]
    public = {i: secret.public_key().public_bytes_raw() for i, secret in enumerate(secrets)}
    seen = []
    for i, x in enumerate(handed):
        part = (x.double() / num * 2.0**BITS).round().to(torch.int64)[None]
        others = {j: key for j, key in public.items() if j != i}
        Masks({i: secrets[i]}, others, b"audit").add_(part, range(num))
        seen.append(part[0])
    return seen


def as_numbers(whole: Tensor) -> Tensor:
    """Whole numbers of a secure sum as the numbers that they stand for, float64."""
    return whole.double() * 2.0**-BITS


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def looked_at(bench: Bench, one: One, record: Record) -> Iterator[Event]:
    """Train one federation; write with the shared adapter (at each of its ranks), with every client's own, and with what the server was handed."""
    done = Done(recipe_of(bench, one, str(bench.start(record))))
    if done.epsilon is not None:
        yield Warned(len(record.cells), f"{one.name}: ε = {done.epsilon:.3g} is spent")
    rounds = _Rows(bench, one, record, done)
    yield from rounds.shared()
    if one.secure:
        yield from rounds.masked()
    else:
        yield from rounds.own()


@dataclass(frozen=True, eq=False)
class _Rows:
    """The events of one federation."""

    bench: Bench
    one: One
    record: Record
    done: Done

    def shared(self) -> Iterator[Imitated]:
        """Texts of one model, judged by the verifiers of every client: the shared adapter does not know whom it is to imitate."""
        ranks = self.bench.s.federation.ranks_of(self.one.method, len(self.bench.s.targets))
        for rank in sorted(set(ranks)):
            began = time.process_time()
            with cut_to(self.done.shared, rank):
                texts = self._texts(self.done.shared, self.bench.s.targets[0], f"shared {rank}")
                losses = {a: self.bench.loss(self.done.shared, a) for a in self.bench.s.targets}
            for author in self.bench.s.targets:
                yield self._row(author, "shared", texts, losses[author], began, rank)

    def own(self) -> Iterator[Imitated]:
        """Each client's adapter at the end of the last round, which is what it hands in; where there is clipping, what that has made of it."""
        clip = None if self.one.noise is None else self.bench.s.federation.clip
        for author in self.bench.s.targets:
            client = self.done.client_of(author)
            model = self.done.own(client)
            if clip is not None:
                with_values(model, self.done.handed_in(client, clip))
            yield self._of_model(author, "own" if clip is None else "handed in", model)

    def masked(self) -> Iterator[Event]:
        """What the server sees of each client under a secure sum, in the place of its adapter, and whether the sum is the mean."""
        clients = {a: self.done.client_of(a) for a in self.bench.s.targets}
        handed = {a: self.done.handed_in(c, None) for a, c in clients.items()}
        flat = {a: torch.cat([x.flatten() for x in values.values()]) for a, values in handed.items()}
        seen = dict(zip(flat, masked([*flat.values()]), strict=True))
        mean = torch.stack([x.double() for x in flat.values()]).mean(0)
        apart = float((as_numbers(torch.stack([*seen.values()]).sum(0)) - mean).abs().max())
        like = max(abs(cosine(as_numbers(seen[a]), flat[a])) for a in flat)
        yield Warned(
            len(self.record.cells),
            f"{self.one.name}: what the server sees of a client has a cosine of at most {like:.3f} to what it hands in; the sum is the mean "
            f"to within {apart:.1e}",
        )
        for author, client in clients.items():
            parts = as_numbers(seen[author]).float().split([x.numel() for x in handed[author].values()])
            values = {n: p.view_as(x) for (n, x), p in zip(handed[author].items(), parts, strict=True)}
            yield self._of_model(author, "masked", with_values(self.done.own(client), values))

    def _of_model(self, author: int, way: str, model: GPTModule) -> Imitated:
        began = time.process_time()
        texts = self._texts(model, author, way)
        return self._row(author, way, texts, self.bench.loss(model, author), began)

    def _texts(self, model: GPTModule, author: int, what: str) -> list[Message]:
        seed = derive(self.bench.s.seed, "federated texts", author, self.one.name, what)
        return sample(model, self.bench.subjects(author), self.bench.encoder, seed, self.bench.s.sampling)

    def _row(
        self, author: int, way: str, texts: Sequence[Message], loss: float | None, began: float, rank: int = 0
    ) -> Imitated:
        num = len(self.bench.of(author, "train"))
        judged = self.bench.judged(self.record, author, [m._replace(author=author) for m in texts])
        spent = time.process_time() - began
        return Imitated(len(self.record.cells), author, num, way, 0, judged, {}, {}, spent, self.one.name, rank, loss)
