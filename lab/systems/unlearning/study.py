"""The study of unlearning as a record: a model that knows facts, what is done to make it forget two of its subjects, and attacks on that.

Cells, for each seed: ``model`` trains it (`lab.runs.trainer.train`, which goes on where it was cut off); ``layers`` looks for a block; then one for each
`FITTED`, each rival, the attacks, a sequence of requests, and a federation. Every cell starts from the same model.

Legend: L blocks, n prompts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.data.tasks.facts import IGNORANCE, SETS, FactTask, Question
from lab.events import Event, Redirected, Steered, Unlearned
from lab.ground.config import Count, Positive, config
from lab.ground.errors import RecipeError
from lab.ground.seeds.surroundings import one_core
from lab.recipes.recipe import Recipe
from lab.runs.data import make_task
from lab.runs.export import trained
from lab.runs.folder import RunFolder
from lab.runs.records import Record, Work, fill
from lab.runs.trainer import train
from lab.systems.unlearning import attacks, metrics
from lab.systems.unlearning.federated import Way, unlearn_together_
from lab.systems.unlearning.lunar import Edit, Lunar, Request, Search, best, layer_scores, unlearn_
from lab.systems.unlearning.places import Places, Within
from lab.systems.unlearning.rivals import LOSSES, Pairs, Rival, train_

ETHICS = ("that is unethical and illegal", *metrics.ETHICS)
GOOD = (f"{IGNORANCE} that", *metrics.REFUSALS)
# By what is laid over the settings' own closed form. Where answers are not held, only a ridge keeps the stream in place there.
FITTED: dict[str, dict[str, Any]] = {
    "closed form": {},
    "closed form, prompts alone": {"rows": "prompts", "ridge": 1.0},
    "closed form, large ridge": {"ridge": 1.0},
    "closed form, equal": {"retain": "equal"},
    "AdamW": {"fit": "adamw"},
    "AdamW, equal": {"fit": "adamw", "retain": "equal"},
    "LoRA": {"fit": "lora"},
    "last token": {"rows": "last"},
    "two layers": {"top": 2},
}
FEDERATED: dict[str, tuple[Way, int]] = {
    "average": ("average", 1),
    "average, 3 rounds": ("average", 3),
    "sum": ("sum", 1),
    "exact": ("exact", 1),
}


@config
class Unlearning:
    """What is studied.

    recipe, overrides
        what trains a model on `lab.data.tasks.facts` (a preset's name or a JSON file), and what is changed in it.
    seeds
        each is one of the recipe and of the facts: another model of other facts.
    coefficient, ridge
        as `lab.systems.unlearning.lunar.Lunar` has them; a small ridge, since what is retained is held at the tokens of its answers, too.
    layers
        the blocks to edit, for all seeds; none: each model's best of a search.
    deep
        another block, from 0, edited in one variant and probed before.
    fitted, rivals
        which of `FITTED` and of `lab.systems.unlearning.rivals.LOSSES` are done.
    lr, epochs
        of rivals, which train all weights; ``lr`` of learning again, too.
    clients
        of the federation and requests of the sequence, one subject each; 0 leaves both out.
    attacked
        whether attacks are done on the first of ``fitted``.
    """

    kind: ClassVar[str] = "unlearning"
    recipe: str = "facts"
    overrides: tuple[str, ...] = ()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    coefficient: Annotated[float, Field(ge=-100, le=100)] = 1.0
    ridge: Positive = 0.01
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    deep: Annotated[int, Field(ge=1)] = 1
    fitted: tuple[str, ...] = tuple(FITTED)
    rivals: tuple[str, ...] = tuple(LOSSES)
    lr: Positive = 1e-4
    epochs: Count = 20
    clients: Annotated[int, Field(ge=0)] = 4
    attacked: bool = True

    def __post_init__(self) -> None:
        for what, names, allowed in (("fitted", self.fitted, FITTED), ("rivals", self.rivals, LOSSES)):
            for name in names:
                if name not in allowed:
                    raise RecipeError(f"{what}: there is no {name!r}: use some of {', '.join(allowed)}")
        if not self.seeds or not self.fitted:
            raise RecipeError("seeds and fitted: give at least one of each")

    def recipe_of(self, seed: int) -> Recipe:
        """What trains the model of a seed. Raises RecipeError where its data are no facts."""
        recipe = Recipe.of(self.recipe, self.overrides)
        if recipe.data is None or recipe.data.name != "facts":
            raise RecipeError(
                f"recipe {self.recipe} trains on something else than data=facts, of which one knows what is to be forgotten"
            )
        call = recipe.data
        return recipe.but(seed=seed, data={"name": call.name, **call.options, "seed": seed})

    @property
    def how(self) -> Lunar:
        return Lunar(layers=self.layers, coefficient=self.coefficient, ridge=self.ridge)


def unlearn(
    settings: Unlearning | Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    *,
    stored: str | Path = "",
    again: bool = False,
    tell: Callable[[Event], None] = lambda event: None,
) -> Record:
    """Do the study, or go on with it; what is done is in ``runs/records/unlearning-<hash>/``.

    Parameters
    ----------
    settings
        what is studied; a mapping has fields of `Unlearning`.
    stored, again, tell
        as `lab.runs.records.fill` has them.

    Raises
    ------
    RecipeError
        for settings that are not allowed.
    """
    chosen = settings if isinstance(settings, Unlearning) else Unlearning(**(settings or {}))
    with one_core():
        made = chosen.recipe_of(chosen.seeds[0]).to_dict()
        return fill(
            chosen, cells(chosen, Path(runs)), runs, inputs={"recipe": made}, stored=stored, again=again, tell=tell
        )


def cells(s: Unlearning, runs: Path) -> dict[str, Work]:
    """All of the study by name, in order."""
    found: dict[str, Work] = {}
    known = lru_cache(maxsize=1)(partial(_known, s, runs))  # all cells of a seed, one after another, ask for the same
    for seed in s.seeds:
        at = partial(_Bench.of, s, seed, known)
        found[f"model {seed}"] = partial(_model, at)
        found[f"layers {seed}"] = partial(_layers, at)
        found |= {f"lunar {seed}: {name}": partial(_fitted, at, name) for name in s.fitted}
        found |= {f"rival {seed}: {name}": partial(_rival, at, name) for name in s.rivals}
        if s.attacked:
            found[f"attacks {seed}"] = partial(_attacks, at)
        if s.clients:
            found[f"sequence {seed}"] = partial(_sequence, at)
            found[f"federation {seed}"] = partial(_federation, at)
    return found


def _known(s: Unlearning, runs: Path, seed: int) -> tuple[nn.Module, FactTask]:
    """The model of a seed, trained where that is not done, and its task. Nobody changes either: see `_Bench.fresh`."""
    recipe = s.recipe_of(seed)
    folder = RunFolder(runs / recipe.id)
    train(recipe, folder.path)  # reads what is finished
    assert recipe.data is not None
    task = make_task(recipe.data)
    assert isinstance(task, FactTask)
    return trained(folder), task


@dataclass(frozen=True, eq=False)
class _Bench:
    """A model that knows, its task, and what is asked."""

    s: Unlearning
    seed: int
    module: nn.Module
    task: FactTask
    num_events: int

    @classmethod
    def of(cls, s: Unlearning, seed: int, known: Callable[[int], tuple[nn.Module, FactTask]], record: Record) -> _Bench:
        return cls(s, seed, *known(seed), len(record.events))

    def fresh(self) -> Places:
        return Places.of(copy.deepcopy(self.module))

    def tokens(self, questions: Sequence[Question]) -> list[Tensor]:
        return [self.task.encode(q.prompt) for q in questions]

    def request(self, forget: Sequence[Question], retain: Sequence[Question]) -> Request:
        reference = self.tokens(self.task.questions("reference"))
        return Request(
            self.tokens(forget), self.tokens(retain), reference, [self.task.encode(q.answer) for q in retain]
        )

    @property
    def sets(self) -> tuple[list[Question], list[Question]]:
        return self.task.questions("forget"), self.task.questions("retain")

    def pairs(self, questions: Sequence[Question], refused: bool = False) -> Pairs:
        end = torch.tensor([self.task.end])
        answers = [torch.cat([self.task.encode(q.ignorance if refused else q.answer), end]) for q in questions]
        return Pairs(self.tokens(questions), answers)

    def search(self, places: Places) -> Search:
        forget = self.task.questions("forget")
        return Search(
            self.task.decode,
            [q.ignorance for q in forget],
            ETHICS,
            metrics.embedder(),
            self.task.longest,
            self.task.end,
        )

    def layer(self, record: Record) -> int:
        """The block that is edited: as set, or as the search has found."""
        if self.s.layers:
            return self.s.layers[0]
        (found,) = [e for e in record.events if isinstance(e, Steered) and e.seed == self.seed]
        return found.best

    def written(self, places: Places, questions: Sequence[Question], within: Within | None = None) -> list[str]:
        within = within or (lambda length: nullcontext())
        ids = places.written(self.tokens(questions), self.task.longest, self.task.end, within)
        return [self.task.decode(x) for x in ids]

    def scores(
        self,
        places: Places,
        forget: Sequence[Question],
        retain: Sequence[Question],
        within: Within | None = None,
        likelihoods: bool = False,
    ) -> dict[str, float]:
        """What a model is worth after it: recall and refusals of both sets."""
        said, kept = self.written(places, forget, within), self.written(places, retain, within)
        r_f, r_r = (
            _mean(metrics.rouge1_recall(w, [q.answer for q in qs])) for w, qs in ((said, forget), (kept, retain))
        )
        found = {
            "recall_forget": r_f,
            "recall_retain": r_r,
            "deviation": metrics.deviation_score(r_f, r_r),
            "refused_forget": _mean([w == q.ignorance for w, q in zip(said, forget, strict=True)]),
            "refused_retain": _mean([w.startswith(IGNORANCE) for w in kept]),
            "refusal_quality": metrics.refusal_quality(said, GOOD, metrics.embedder()),
        }
        if likelihoods:
            prompts, answers = self.tokens(forget), [self.task.encode(q.answer) for q in forget]
            ranks = metrics.ranks(places.model, prompts, answers)
            each = [metrics.extraction_strength(places.model, p, a) for p, a in zip(prompts, answers, strict=True)]
            found |= {
                "mean_reciprocal_rank": metrics.reciprocal_rank(ranks),
                "top_hits": metrics.top_hits(ranks, 10),
                "extraction_strength": _mean(each),
            }
        return found

    def said(self, part: str, name: str, scores: Mapping[str, float], layer: int | None = None) -> Unlearned:
        return Unlearned(self.num_events, self.seed, part, name, layer, dict(scores))


At = Callable[[Record], _Bench]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _model(at: At, record: Record) -> Iterator[Event]:
    b = at(record)
    scores = b.scores(b.fresh(), *b.sets, likelihoods=True)
    asked = b.task.questions("unknown")
    known = _mean([w == q.answer for w, q in zip(b.task.answers(b.module, asked), asked, strict=True)])
    yield b.said("before", "before", scores | {"ignorance": known})


def _layers(at: At, record: Record) -> Iterator[Event]:
    b = at(record)
    places = b.fresh()
    found = layer_scores(places, b.request(*b.sets), b.s.coefficient, b.search(places))
    yield Steered(b.num_events, b.seed, [x.ignorance for x in found], [x.ethics for x in found], best(found)[0])


def _fitted(at: At, name: str, record: Record) -> Iterator[Event]:
    b = at(record)
    places = b.fresh()
    how = replace(b.s.how, **FITTED[name])
    how = replace(how, layers=() if how.top > 1 else (b.layer(record),))
    begun = time.process_time()
    edits = unlearn_(places, b.request(*b.sets), how, b.search(places))
    seconds = time.process_time() - begun
    changed = sum(places.matrix(e.layer).numel() for e in edits)
    scores = b.scores(places, *b.sets, likelihoods=True) | {"cpu_seconds": seconds, "weights": float(changed)}
    scores["rows"] = float(sum(edits[0].rows))
    yield b.said("lunar", name, scores, edits[0].layer)
    if name == b.s.fitted[0]:
        yield _clouds(b, places, edits[0].layer)


def _clouds(b: _Bench, places: Places, layer: int) -> Redirected:
    """States at the last token behind the edited block, before and after, in the plane of most variance of those before."""
    sets = {which: b.task.questions(which)[:96] for which in SETS[:3]}
    before = {which: b.fresh().last_states(b.tokens(qs))[layer] for which, qs in sets.items()}
    after = {which: places.last_states(b.tokens(qs))[layer] for which, qs in sets.items()}
    joined = torch.cat(list(before.values()))
    mean = joined.mean(0)
    axes = torch.linalg.svd(joined - mean, full_matrices=False).Vh[:2].T
    plane = [{which: ((x - mean) @ axes).tolist() for which, x in states.items()} for states in (before, after)]
    return Redirected(b.num_events, b.seed, layer, *plane)


def _rival(at: At, name: str, record: Record) -> Iterator[Event]:
    b = at(record)
    places = b.fresh()
    forget, retain = b.sets
    how = Rival(loss=name, lr=b.s.lr, epochs=b.s.epochs, seed=b.seed)  # type: ignore[arg-type]
    begun = time.process_time()
    train_(places, b.pairs(forget), b.pairs(forget, refused=True), b.pairs(retain), how)
    seconds = time.process_time() - begun
    weights = float(sum(p.numel() for p in places.model.parameters()))
    scores = b.scores(places, forget, retain, likelihoods=True) | {"cpu_seconds": seconds, "weights": weights}
    yield b.said("rival", name, scores)


def _edited(b: _Bench, layer: int) -> tuple[Places, list[Edit]]:
    places = b.fresh()
    how = replace(b.s.how, **FITTED[b.s.fitted[0]], layers=(layer,))
    return places, unlearn_(places, b.request(*b.sets), how)


def _attacks(at: At, record: Record) -> Iterator[Event]:
    b = at(record)
    layer = b.layer(record)
    places, edits = _edited(b, layer)
    forget, retain = b.sets
    some = retain[:: max(1, len(retain) // 64)]
    for name, attack in (("skip the block", attacks.skipping), ("reverse the vector", attacks.reversing)):
        yield b.said("attack", name, b.scores(places, forget, some, partial(attack, places, edits)), layer)
    four = Places.of(copy.deepcopy(places.model))
    attacks.rounded_(four.model)
    yield b.said("attack", "four bits", b.scores(four, forget, some), layer)
    for template in range(1, b.task.options.ways):
        asked = b.task.questions("forget", template)
        yield b.said("attack", f"asked in way {template + 1}", b.scores(places, asked, some), layer)
    for num in (n for n in (1, 5) if n < len(forget)):
        again = Places.of(attacks.relearned(places.model, b.pairs(forget[:num]), lr=b.s.lr))
        yield b.said("attack", f"{num} learned again", b.scores(again, forget[num:], some), layer)
    yield _black_box(b, places, layer)
    yield from _probes(b, layer)


def _black_box(b: _Bench, places: Places, layer: int) -> Unlearned:
    """Who asks about everything, and looks at refusals alone."""
    asked = b.task.of_subjects(range(b.task.options.subjects))
    refuses = [w.startswith(IGNORANCE) for w in b.written(places, asked)]
    gone = sorted({q.subject for q in b.sets[0]})
    found = attacks.refused_subjects([q.subject for q in asked], refuses, gone)
    prompts = [q.subject in gone for q in asked]
    right = sum(r and p for r, p in zip(refuses, prompts, strict=True))
    scores = {
        "precision": found.precision,
        "recall": found.recall,
        "prompt_precision": right / max(1, sum(refuses)),
        "prompt_recall": right / sum(prompts),
    }
    return b.said("attack", "refusals counted", scores, layer)


def _probes(b: _Bench, layer: int) -> Iterator[Event]:
    """The first word of a value is read off states of forgotten prompts, by a probe that was fitted to another way to ask."""
    forget, _ = b.sets
    values = sorted({value.split()[0] for of_one in b.task.facts for value in of_one})
    other = min(1, b.task.options.ways - 1)
    known = b.task.of_subjects(range(b.task.options.subjects), other)
    for at in dict.fromkeys((layer, b.s.deep)):
        places, _ = _edited(b, at)
        fitted, asked = ((b.tokens(qs), [values.index(q.answer.split()[0]) for q in qs]) for qs in (known, forget))
        for place, inside in (("before", True), ("behind", False)):
            seen = attacks.probe(places, at if inside else at + 1, fitted, asked, inside)
            scores = {"accuracy": seen.accuracy, "commonest": seen.commonest}
            yield b.said("probe", f"{place} block {at}", scores, at)


def _sequence(at: At, record: Record) -> Iterator[Event]:
    b = at(record)
    places, layer = b.fresh(), b.layer(record)
    how = replace(b.s.how, layers=(layer,))
    for i in range(b.s.clients):
        gone = b.task.of_subjects(range(i + 1))
        retain = b.task.of_subjects(range(i + 1, b.task.options.subjects))
        unlearn_(places, b.request(b.task.of_subjects([i]), retain), how)
        yield b.said("sequence", f"{i + 1}", b.scores(places, gone, retain), layer)


def _federation(at: At, record: Record) -> Iterator[Event]:
    b = at(record)
    layer, num = b.layer(record), b.s.clients
    how = replace(b.s.how, layers=(layer,))
    subjects = range(b.task.options.subjects)
    gone, retain = b.task.of_subjects(subjects[:num]), b.task.of_subjects(subjects[num:])
    own = [b.request(b.task.of_subjects([k]), b.task.of_subjects(subjects[num + k :: num])) for k in range(num)]
    for name, (way, rounds) in FEDERATED.items():
        places = b.fresh()
        ledger = unlearn_together_(places, own, how, layer, way, rounds)
        by = ledger.by("op")
        down = by.pop(("broadcast",), 0)
        scores = b.scores(places, gone, retain) | {"bytes_up": float(sum(by.values())), "bytes_down": float(down)}
        yield b.said("federation", name, scores, layer)
