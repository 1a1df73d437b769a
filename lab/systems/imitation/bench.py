"""What an audit works with: the base, and for each author who is imitated all that its defender has made beforehand.

Who has what: the one who imitates has the base, and the first n messages that the author trains on. The defender has all of these, a model of
its own (the base, fine-tuned on them), texts that this model has written (negatives for a verifier), and messages of other people. Thresholds
are set on messages to calibrate with; every rate is of messages held out. The defender's base is the very one that is used against it,
which favours the defender.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from lab.data.tasks.authors import VOCABULARY, Authors, Message, Part, rows
from lab.events import Defended, Imitated
from lab.ground.seeds import derive
from lab.models.gpt import GPTModule
from lab.models.shape import Shape
from lab.runs.records import Record
from lab.systems.imitation.detection import curvature, detected, likelihood_ratio, looks_of
from lab.systems.imitation.found import ATTACKER, IMITATIONS, MARK, PEOPLE, RATIO, SERVICE, SIGNATURE
from lab.systems.imitation.imitator import Trained, base_recipe, sample, trained, tuned_recipe
from lab.systems.imitation.provenance import Signer
from lab.systems.imitation.provenance import accepted as signed
from lab.systems.imitation.settings import Audit
from lab.systems.imitation.similarity import Copied, bleu, chrf, divergence
from lab.systems.imitation.verification import Features, Verifier, threshold_at

BASE = "base"
FEW = 5  # one in so many messages of other people is read by models


def _texts(found: Sequence[Message]) -> list[str]:
    return [m.text for m in found]


@dataclass(frozen=True)
class Defence:
    """Of one author.

    accepts
        by verifier, which of some texts it takes for the author's, bool ``[E]``.
    genuine
        by detector, the scores of the author's own texts that nothing was fitted on.
    """

    accepts: Mapping[str, Callable[[Sequence[Message]], np.ndarray]]
    personal: GPTModule
    genuine: Mapping[str, np.ndarray]


class Bench:
    """Lives as long as a process works on a record; what it makes follows from the settings alone."""

    def __init__(self, settings: Audit):
        self.s = settings
        self.written = Authors(settings.authors, settings.messages, seed=settings.seed)
        self.options = {"authors": settings.authors, "messages": settings.messages, "seed": settings.seed}
        self.encoder = self.written.encoder
        self._base: GPTModule | None = None
        self._defences: dict[int, Defence] = {}

    # texts

    def of(self, author: int, part: Part) -> list[Message]:
        return self.written.of(author, part)

    def others(self, author: int, part: Part) -> list[Message]:
        return [m for a in range(self.s.authors) if a != author for m in self.of(a, part)]

    def genuine(self, author: int) -> list[Message]:
        """Of an author, what no model was trained on."""
        return [*self.of(author, "calibration"), *self.of(author, "test")]

    def subjects(self, author: int) -> list[Message]:
        """What an imitation is to be about: what the author's own test messages are about."""
        return self.of(author, "test")[: self.s.texts]

    @cached_property
    def features(self) -> Features:
        return Features([m.text for a in range(self.s.authors) for m in self.of(a, "train")])

    @cached_property
    def words(self) -> list[str]:
        """That perturbations are drawn from: those of people who are not imitated."""
        others = [a for a in range(self.s.authors) if a not in self.s.targets]
        return sorted({w for a in others for m in self.of(a, "train") for w in m.text.split(" ")})

    # models

    def read_all_others(self, record: Record) -> float:
        """Train the base and leave it in the record; CPU seconds."""
        made = trained(base_recipe(self.s.model, self.options, self.s.targets, self.s.seed))
        record.keep(BASE, dict(made.model.named_parameters()))
        return made.cpu_seconds

    def start(self, record: Record) -> Path:
        """The file that fine-tuning begins with."""
        return record.path.resolve() / "files" / f"{BASE}.safetensors"

    def model(self, record: Record, name: str) -> GPTModule:
        """One that a cell has left, in eval mode."""
        recipe = base_recipe(self.s.model, self.options, self.s.targets, self.s.seed)
        module = cast(GPTModule, recipe.model.module(Shape(VOCABULARY, self.encoder.context), 0))
        module.load_state_dict(record.kept(name))
        return module.eval().requires_grad_(False)

    def base(self, record: Record) -> GPTModule:
        if self._base is None:
            self._base = self.model(record, BASE)
        return self._base

    # defences

    def defend(self, record: Record, author: int, step: int) -> Defended:
        """Make the author's own model, leave it in the record, and say what its defences are like."""
        began = time.process_time()
        num = len(self.of(author, "train"))
        recipe = tuned_recipe(
            self.s.model, self.options, author, num, "full", derive(self.s.seed, "own", author), self.start(record)
        )
        record.keep(f"own {author}", dict(trained(recipe).model.named_parameters()))
        defence = self.defence(record, author)
        own, others = self.of(author, "test"), self.others(author, "test")[::FEW]
        return Defended(
            step,
            author,
            {name: float(accepts(own).mean()) for name, accepts in defence.accepts.items()},
            {name: float(accepts(others).mean()) for name, accepts in defence.accepts.items()},
            float(Copied(_texts(self.of(author, "train"))).shares(_texts(own)).mean()),
            time.process_time() - began,
        )

    def defence(self, record: Record, author: int) -> Defence:
        """Verifiers of one author; the model is the one in the record, and all else is made once in a process."""
        if author not in self._defences:
            self._defences[author] = self._made(record, author)
        return self._defences[author]

    def _made(self, record: Record, author: int) -> Defence:
        personal, base = self.model(record, f"own {author}"), self.base(record)
        own, others = self.of(author, "train"), _texts(self.others(author, "train"))
        impostors = self.others(author, "calibration")
        made_up = sample(
            personal, own[: 2 * self.s.texts], self.encoder, derive(self.s.seed, "negatives", author), self.s.sampling
        )
        rate = self.s.false_accept
        by_people = Verifier.fitted(self.features, _texts(own), others, _texts(impostors), rate)
        by_both = Verifier.fitted(self.features, _texts(own), others, _texts(impostors), rate, _texts(made_up))

        def ratio(found: Sequence[Message]) -> np.ndarray:
            return likelihood_ratio(looks_of(personal, found, self.encoder), looks_of(base, found, self.encoder))

        least = threshold_at(ratio(impostors[::FEW]), rate)
        verifiers = {
            PEOPLE: lambda found: by_people.accepts(_texts(found)),
            IMITATIONS: lambda found: by_both.accepts(_texts(found)),
            RATIO: lambda found: ratio(found) > least,
        }
        if importlib.util.find_spec("cryptography") is not None:
            verifiers[SIGNATURE] = _by_signature(author)
        return Defence(verifiers, personal, self._scores(base, personal, self.genuine(author)))

    # imitations

    def judged(self, record: Record, author: int, texts: Sequence[Message]) -> dict[str, list[int]]:
        """By verifier, 1 of each text that it accepts."""
        return {
            name: accepts(texts).astype(int).tolist() for name, accepts in self.defence(record, author).accepts.items()
        }

    def imitate(self, record: Record, author: int, num: int, way: str, seed: int, step: int) -> Imitated:
        """Fine-tune on ``num`` messages (none: the base itself), write on the subjects of the author's test messages, and be judged."""
        began = time.process_time()
        made = self._tuned(record, author, num, way, seed)
        draw = derive(self.s.seed, "texts", author, num, way, seed)
        texts = sample(made.model, self.subjects(author), self.encoder, draw, self.s.sampling)
        spent = time.process_time() - began
        marked = sample(made.model, self.subjects(author), self.encoder, draw, self.s.sampling, self.s.mark)
        return Imitated(
            step,
            author,
            num,
            way,
            seed,
            self.judged(record, author, texts),
            self._detected(record, author, texts, marked),
            self._similar(author, num, texts),
            spent,
            loss=self.loss(made.model, author),
        )

    def _tuned(self, record: Record, author: int, num: int, way: str, seed: int) -> Trained:
        if not num:
            return Trained(self.base(record), 0.0, 0)
        drawn = derive(self.s.seed, "imitator", author, num, seed)
        return trained(
            tuned_recipe(self.s.model, self.options, author, num, way, drawn, self.start(record)),  # type: ignore[arg-type]
            num,
        )

    def loss(self, model: GPTModule, author: int) -> float | None:
        """Nats per byte of the author's own test messages, each message alike."""
        nats = -float(looks_of(model, self.of(author, "test"), self.encoder).log_p.mean())
        return nats if np.isfinite(nats) else None

    def _detected(
        self, record: Record, author: int, texts: Sequence[Message], marked: Sequence[Message]
    ) -> dict[str, list[float]]:
        """By detector; all are tried on what the attacker has decoded, one also on what a service has marked."""
        defence = self.defence(record, author)
        scores = self._scores(self.base(record), defence.personal, texts)
        pairs = {name: (of_texts, defence.genuine[name]) for name, of_texts in scores.items()}
        pairs[SERVICE] = self._counted(marked), defence.genuine[MARK]
        pairs[ATTACKER] = pairs.pop(MARK)
        return {name: [*vars(detected(*both)).values()] for name, both in pairs.items()}

    def _scores(self, base: GPTModule, personal: GPTModule, found: Sequence[Message]) -> dict[str, np.ndarray]:
        """By detector, high for what a model has written, float64 ``[E]``."""
        by_base, by_own = (looks_of(model, found, self.encoder) for model in (base, personal))
        return {
            "log-likelihood": by_base.log_p,
            "log-rank": -by_base.log_rank,
            RATIO: -likelihood_ratio(by_own, by_base),
            "curvature": self._curvature(base, found),
            "curvature, own model": self._curvature(personal, found),
            MARK: self._counted(found),
        }

    def _curvature(self, model: GPTModule, found: Sequence[Message]) -> np.ndarray:
        return curvature(model, found, self.encoder, self.words, seed=self.s.seed, times=self.s.perturbations)

    def _counted(self, found: Sequence[Message]) -> np.ndarray:
        return self.s.mark.scores(*rows(found, self.encoder), VOCABULARY)

    def _similar(self, author: int, num: int, texts: Sequence[Message]) -> dict[str, float]:
        written, wanted = _texts(texts), _texts(self.subjects(author))
        return {
            "bleu": bleu(written, wanted),
            "chrf": chrf(written, wanted),
            "divergence": divergence(written, _texts(self.of(author, "test"))),
            "copied": float(Copied(_texts(self.of(author, "train")[:num])).shares(written).mean()),
        }


def _by_signature(author: int) -> Callable[[Sequence[Message]], np.ndarray]:
    """A text is sent with a signature: the author's own messages with the author's, all others with one that somebody else has made."""
    own, other = Signer(author), Signer(author)

    def accepts(found: Sequence[Message]) -> np.ndarray:
        by = [own if m.author == author and m.part != "imitated" else other for m in found]
        return np.array([signed(signer.sign(m.text), own.public) for m, signer in zip(found, by, strict=True)])

    return accepts
