"""What a recipe asks for that makes no difference: one line each, said before anything starts.

What cannot mean anything is refused (`lab.recipes.recipe`). What means something and changes nothing here is allowed, but may well be a
mistake: a run tells it as `Warned` events, ``lab plan`` as lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from lab.data.splits import parse_split
from lab.ground.config import unused
from lab.methods.registry import declared, method_notes, name_of, round_steps
from lab.recipes.recipe import Recipe
from lab.recipes.weighting import GATED, TO_ANCHORS


def notes(recipe: Recipe, up_TW: np.ndarray | None = None) -> list[str]:
    """One line for everything that makes no difference; ``up_TW`` is who is up, where that is known (`Scenario.trace`)."""
    of_method = method_notes(recipe.method, recipe)
    rest = (
        _never(recipe),
        _away(recipe, up_TW),
        _never_sent(recipe),
        _unused(recipe),
        _unused_weighting(recipe),
        _twice(recipe),
        _unprotected(recipe),
    )
    return [*of_method, *(line for lines in rest for line in lines)]


def _never(recipe: Recipe) -> Iterator[str]:
    """What is to happen only after the end."""
    steps = recipe.steps
    end = f"the {steps:,} steps of the run"
    if recipe.metrics and recipe.metrics_every > steps:
        yield f"metrics_every = {recipe.metrics_every:,} is longer than {end}: metrics are not measured"
    if recipe.placement.moves(recipe.num_workers) and recipe.placement.every * round_steps(recipe.method) >= steps:
        yield f"placement.every = {recipe.placement.every:,} rounds are not over before {end}: no expert moves"
    if recipe.keep_every > steps:
        yield f"keep_every = {recipe.keep_every:,} is longer than {end}: the last checkpoints alone stay"
    if recipe.buffers.kind == "averaged" and (recipe.buffers.every or 0) > steps:
        yield f"buffers.every = {recipe.buffers.every:,} is longer than {end}: buffers are not averaged"
    if recipe.adaptation.asked_for and recipe.adaptation.every > steps:
        yield f"adaptation.every = {recipe.adaptation.every:,} is longer than {end}: clients adapt the model after the last step alone"
    for outage in recipe.scenario.outages:
        if outage.first > steps:
            yield f"worker {outage.worker} is to be down from step {outage.first:,} on, after {end}"


def _away(recipe: Recipe, up_TW: np.ndarray | None) -> Iterator[str]:
    """Who takes no part, by fixed times or, where the trace is known, by chance; who is never sampled is none of these."""
    sample, N = recipe.scenario.sample, recipe.num_workers
    if sample is not None:
        if N >= 64 and 4 * sample <= N:
            yield (
                f"scenario.sample = {sample:,} of {N:,} workers: memory and the seconds of a step grow with all of them, since each "
                "keeps its params, gradients and states all the time"
            )
        return
    if up_TW is not None:
        gone = np.flatnonzero(~up_TW.any(0)).tolist()
    else:
        gone = [w for w in sorted({o.worker for o in recipe.scenario.outages}) if _always_down(recipe, w)]
    if len(gone) == N:
        yield "all workers are down in every step: nothing is trained"
    elif gone:
        some = ", ".join(map(str, gone[:8])) + (" …" if len(gone) > 8 else "")
        yield f"down in every step, and so without a part in anything: worker{'s' * (len(gone) > 1)} {some}"


def _always_down(recipe: Recipe, worker: int) -> bool:
    free = 1  # the first step that no outage covers so far
    for first, last in sorted((o.first, o.last) for o in recipe.scenario.outages if o.worker == worker):
        free = max(free, last + 1) if first <= free else free
    return free > recipe.steps


def _never_sent(recipe: Recipe) -> Iterator[str]:
    averaged = recipe.method.averages
    if recipe.buffers.kind == "averaged":
        averaged += ("buffers",)
    for state, codec in recipe.codecs.items():
        if state not in averaged:
            but = (
                f"never sends {state}, but {', '.join(averaged)}"
                if averaged
                else "takes no mean that a codec could serve"
            )
            yield f"codecs.{state} = {codec!r}: {name_of(recipe.method)} {but}"


def _unused(recipe: Recipe) -> Iterator[str]:
    """Settings of what is not switched on, where they are not the default."""
    scenario, schedule, lora = recipe.scenario, recipe.schedule, recipe.lora
    adapters, experts, clients = bool(lora.ranks), recipe.model.layers_and_experts[1], recipe.clients
    adaptation = recipe.adaptation
    of_rounds = ("inner_states", "sampling", "available", "spread", "wait_for", "deadline")
    for where, part, names, used, needs in (
        ("scenario.", scenario, ("mean_outage",), scenario.failure_rate, "scenario.failure_rate"),
        ("scenario.", scenario, ("sample_every",), scenario.sample, "scenario.sample"),
        ("clients.", clients, of_rounds, clients.num, "clients.num"),
        ("clients.", clients, ("scored",), clients.held_out, "clients.held_out"),
        ("clients.", clients, ("round_hours",), clients.available, "clients.available"),
        ("adaptation.", adaptation, ("every", "clients"), adaptation.asked_for, "adaptation.ways or local_steps"),
        ("adaptation.", adaptation, ("steps", "inner"), adaptation.ways, "adaptation.ways"),
        ("adaptation.", adaptation, ("local_inner",), adaptation.local_steps, "adaptation.local_steps"),
        ("adaptation.", adaptation, ("head",), "frozen_base" in adaptation.ways, "frozen_base in adaptation.ways"),
        ("adaptation.", adaptation, ("strength",), "ewc" in adaptation.ways, "ewc in adaptation.ways"),
        ("adaptation.", adaptation, ("temperature", "share"), "kd" in adaptation.ways, "kd in adaptation.ways"),
        (
            "clients.",
            clients,
            ("deadline",),
            clients.spread or not clients.num or (clients.deadline or 1) < 1,
            "clients.spread",
        ),
        ("server.", recipe.server, ("labelled",), recipe.data is not None, "data, a task with classes"),
        ("schedule.", schedule, ("decay_fraction",), schedule.kind == "wsd", "schedule.kind=wsd"),
        ("schedule.", schedule, ("final",), schedule.kind != "constant", "schedule.kind=cosine, wsd or exponential"),
        ("lora.", lora, ("targets", "scale", "alpha", "train", "init"), adapters, "lora.ranks"),
        ("placement.", recipe.placement, ("every", "layers", "warmup"), experts, "a model with experts"),
        ("privacy.", recipe.privacy, ("delta",), recipe.privacy.noise, "privacy.noise"),
        ("buffers.", recipe.buffers, ("every",), recipe.buffers.kind == "averaged", "buffers.kind=averaged"),
        ("mean.", recipe.mean, ("trim",), recipe.mean.by == "trimmed", "mean.by=trimmed"),
        ("", recipe, ("routing_every",), experts, "a model with experts"),
        ("", recipe, ("metrics_every",), recipe.metrics, "metrics"),
        ("", recipe, ("corpus", "tokenizer"), recipe.data is None, "running text: data names a task"),
    ):
        if not used:
            yield from unused(part, names, needs, where)
    if clients.num and clients.inner_states == "kept" and getattr(recipe.method, "inner_states", "kept") == "reset":
        yield "clients.inner_states = 'kept' makes no difference: with method.inner_states = 'reset' every round begins with a fresh optimizer"
    split = parse_split(recipe.split)
    if clients.held_out and split.kind == "draw" and split.number == 1:
        yield f"clients.held_out = {clients.held_out:g} holds out nothing: with split = {recipe.split!r} a client has one example, to train on"
    if adapters and lora.alpha is not None and lora.scale != type(lora)().scale:
        yield f"lora.scale = {lora.scale:g} makes no difference beside lora.alpha"


def _unused_weighting(recipe: Recipe) -> Iterator[str]:
    """Settings of weights of samples that this way of weighing does not have."""
    weighting = recipe.weighting
    by_likeness = weighting.by in TO_ANCHORS and weighting.by != "hard"
    for names, used, needs in (
        (("reduce",), weighting.asked_for, "weighting.by"),
        (("anchors", "source"), weighting.has_anchors, "weighting.target"),
        (("every", "center"), weighting.of_states, "weighting.by=adapt, softmax or hard"),
        (("tau",), by_likeness, "weighting.by=adapt, bm25 or softmax"),
        (("clip",), weighting.by in GATED, "weighting.by=adapt or bm25"),
        (("standardize",), weighting.by == "adapt", "weighting.by=adapt"),
        (("terms",), weighting.by == "bm25", "weighting.by=bm25"),
        (("share",), weighting.by in ("hard", "random"), "weighting.by=hard or random"),
        (("cap",), weighting.by == "lin_upper", "weighting.by=lin_upper"),
        (("domains",), weighting.by == "domains", "weighting.by=domains"),
    ):
        if not used:
            yield from unused(weighting, names, needs, "weighting.")


def _unprotected(recipe: Recipe) -> Iterator[str]:
    """Privacy that is none, or less than one may think."""
    privacy, num = recipe.privacy, recipe.num_clients
    if privacy.clip is not None and not privacy.noise:
        yield "privacy.clip without privacy.noise bounds what one client can do to the model, and protects nobody: ε = ∞"
    if privacy.noise and num > 1 and privacy.delta >= 1 / num:
        yield (
            f"privacy.delta = {privacy.delta:g} is not below 1 / {num:,} clients: to publish what one of them has, drawn by chance, would "
            "be allowed"
        )
    if privacy.secure_sum and (told := [*_told_apart(recipe)]):
        yield (
            f"privacy.secure_sum hides what workers hand in; over several processes the first is still told single ones by {', '.join(told)}"
        )


def _told_apart(recipe: Recipe) -> Iterator[str]:
    """What brings the states of single workers to the first process, beside what the method sends."""
    clients = recipe.clients
    kept = clients.take_turns(recipe.num_workers) and (clients.personal or clients.inner_states == "kept")
    of_method = declared(recipe.method).keeps and clients.take_turns(recipe.num_workers)
    for what, there in (
        ("checkpoints (checkpoint_every)", recipe.checkpoint_every),
        ("metrics alignment and spectrum", {"alignment", "spectrum"} & {*recipe.metrics}),
        ("looks at adapters (lora)", recipe.lora.ranks),
        ("what clients keep (clients.personal, clients.inner_states, the method)", kept or of_method),
        ("looks at personal parameters (clients.held_out)", clients.held_out and clients.personal),
    ):
        if there:
            yield what


def _twice(recipe: Recipe) -> Iterator[str]:
    for where, names in (("metrics", recipe.metrics), ("lora.targets", recipe.lora.targets)):
        for name, times in Counter(names).items():
            if times > 1:
                yield f"{where} names {name} {times} times: once is enough"
