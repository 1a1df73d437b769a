"""From a recipe to all that its run works with, checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lab.costs.calendar import calendar
from lab.data import Corpus
from lab.data.training_data import HeldOut, TrainingData
from lab.engine.checkpoint import Part
from lab.engine.codecs import Codec, codec
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet, num_cores
from lab.engine.state import State
from lab.engine.vectorised import Vectorised
from lab.engine.world import OneProcess, World
from lab.ground.errors import RecipeError
from lab.ground.seeds.surroundings import isolated
from lab.methods import declared
from lab.methods.lora_factors import Adapters
from lab.methods.private import private_of
from lab.methods.registry import labels_of, prepared, round_steps
from lab.models.abbie import AbbIE
from lab.models.gpt import GPT
from lab.models.hf import HF
from lab.models.in_groups import with_losses
from lab.models.lora import adapt_
from lab.models.moe import MoE
from lab.models.own import Factory, TaskLoss, skeleton
from lab.models.peft import load_adapter_
from lab.models.shape import Shape
from lab.probes.adaptation import AdaptationProbe, rows_at_once
from lab.probes.adapters import AdapterProbe
from lab.probes.drift import DriftProbe
from lab.probes.evaluation import EvaluationProbe
from lab.probes.fairness import FairnessProbe
from lab.probes.groups import GroupProbe
from lab.probes.iterations import IterationsProbe
from lab.probes.labels import LabelProbe
from lab.probes.masks import MaskProbe
from lab.probes.measure import measures
from lab.probes.privacy import PrivacyProbe
from lab.probes.probe import Probe, Setup
from lab.probes.routing import RoutingProbe
from lab.probes.trees import TreeProbe
from lab.probes.weights import WeightsProbe
from lab.processes.moving import follow_rows
from lab.processes.robust_means import RobustMeans
from lab.processes.secure_sum import SecureSum
from lab.recipes.compute import device_of, vectorised
from lab.recipes.groups import Groups
from lab.recipes.placement import Experts, resident
from lab.recipes.recipe import Recipe
from lab.runs.buffers import BufferSync
from lab.runs.data import groups_of, labelled_of, shape_of, training_data
from lab.runs.dry import DryRun
from lab.runs.gradients import Gradients
from lab.runs.inputs import Inputs, of_run
from lab.runs.knobs import Knobs
from lab.runs.parts import Holders, States
from lab.runs.pretrain import base_file
from lab.runs.roll_call import RollCall
from lab.runs.seating import Seating
from lab.runs.start import start_values_
from lab.runs.trial import floats_kept, try_out
from lab.runs.weights import Weights


@dataclass(frozen=True)
class Built:
    """What a run works with.

    ``parts`` are all objects with state, in the order in which checkpoints restore them: who holds what comes first. Whatever a run is to
    remember beside it is added there, and nowhere else.
    """

    setup: Setup
    grad: Gradients
    knobs: Knobs
    buffers: BufferSync
    roll_call: RollCall
    probes: list[Probe]
    parts: list[Part]
    inputs: Inputs

    def dry_run(self) -> DryRun:
        return DryRun(self.setup, self.knobs.method, self.grad, self.buffers, self.roll_call)


def build(
    recipe: Recipe,
    *,
    dry: bool = False,
    corpus: Corpus | None = None,
    progress: bool = False,
    world: World | None = None,
    fleet: Fleet | None = None,
    base_model: Callable[[str], Path] = base_file,
) -> Built:
    """Read the data, make the fleet and all that works on it. Raises RecipeError for what this machine cannot do.

    Parameters
    ----------
    dry
        for a dry run: tensors have no storage, no text is read.
    corpus
        one that is there already, instead of the recipe's.
    world
        the processes, if the workers are spread over several.
    fleet
        of another dry run with the same table (the same model, placement and adapters), to be taken over.
    base_model
        the file of a base model that a recipe starts from, by its size.
    """
    world = world or OneProcess()
    with isolated():
        device = torch.device("meta") if dry else device_of(recipe.compute, recipe.dtype)
        workers = recipe.num_workers if world.mine is None else len(world.mine)
        check_size(recipe, workers, device)
        data = None if dry else _data(recipe, corpus, progress, device)
        experts, groups = recipe.experts, groups_of(recipe, data)
        if fleet is None:
            shape = shape_of(recipe, data)
            if data:
                try_out(recipe, data, shape)
                check_memory(recipe, shape, workers, device)
            loss = data.loss if data else None
            fleet = build_fleet(recipe, shape, device, experts, world.mine, base_model, loss, groups)
        inputs: Inputs = of_run(recipe, data) if data else {}
        return _assembled(recipe, fleet, experts, data, world, inputs, groups)


def _data(recipe: Recipe, corpus: Corpus | None, progress: bool, device: torch.device) -> TrainingData:
    data = training_data(recipe, corpus, progress)
    return replace(data, validation=[(ids.to(device), targets.to(device)) for ids, targets in data.validation])


def _assembled(
    recipe: Recipe,
    fleet: Fleet,
    experts: Experts | None,
    data: TrainingData | None,
    world: World,
    inputs: Inputs,
    groups: Groups,
) -> Built:
    codecs = {state: codec(spec) for state, spec in recipe.codecs.items()}
    if data and (recipe.privacy.secure_sum or not recipe.mean.plain or any(c.sparse for c in codecs.values())):
        # Whether they fit is known when the method first sends: better now than in mid-run.
        calendar(build(recipe, dry=True).dry_run())
    comm, knobs = communicator(recipe, fleet, codecs, world), Knobs(recipe)
    schedule = recipe.schedule
    adapters, names = None, list(fleet.layout.place)
    if recipe.lora.ranks:
        adapters = Adapters.of(recipe.lora, recipe.num_workers, names, recipe.clients.is_personal)
    state = State.of(
        fleet,
        lambda t: schedule.at(t, recipe.steps) * knobs.values.get("lr", 1.0) if data else 1.0,
        experts,
        adapters,
        data.samples_W if data else None,
        declared(recipe.method).server,
    )
    state.labelled = labelled_of(recipe, data, fleet.device)
    state.private, state.groups = recipe.privacy.of_run(recipe.seed), groups
    recipe.method.init(state)
    world.begin_(state.served)
    if world.num > 1:
        follow_rows(state, comm, world)
    weights = _weights(recipe, fleet, data)
    grad = Gradients(recipe, data, comm, _at_once(recipe, fleet) if data else None, weights)
    setup = Setup(recipe, fleet, state, comm, world, data, experts, adapters, lambda t: grad.at(t, state))
    come_and_go = recipe.clients.take_turns(recipe.num_workers)
    buffers = BufferSync(recipe.buffers, state, comm, lambda: round_steps(knobs.method), come_and_go)
    seating = Seating(setup) if come_and_go else None
    roll_call = RollCall(setup, lambda: knobs.values.get("down", ()), seating, buffers.catch_up_)
    probes = [] if setup.dry else probes_of(setup, seating)
    probes += [] if weights is None else [WeightsProbe(setup, weights.taken)]
    for probe in probes:
        comm.subscribe(probe.before_average)
    parts: list[Part] = [Holders(fleet, experts), States(state, comm), roll_call, knobs, *probes]
    parts += [part for part in (seating, weights) if part is not None]
    return Built(setup, grad, knobs, buffers, roll_call, probes, parts, inputs)


def _at_once(recipe: Recipe, fleet: Fleet) -> Vectorised | None:
    """All workers in one pass, where that is faster."""
    if recipe.compute.vectorised is False or recipe.weighting.asked_for:
        return None
    come_and_go = recipe.clients.num > recipe.num_workers
    return vectorised(fleet, recipe.compute, recipe.per_batch, come_and_go, not recipe.own)


def _weights(recipe: Recipe, fleet: Fleet, data: TrainingData | None) -> Weights | None:
    """Those of samples in the loss. Raises RecipeError for a model that has nothing to weigh them by."""
    if not recipe.weighting.asked_for:
        return None
    name = recipe.model.call.name if isinstance(recipe.model, Factory) else type(recipe.model).__name__
    recipe.weighting.check_model("with_hidden" in dir(fleet.modules[0]), name)
    return Weights(recipe, fleet, data) if data else None


def communicator(recipe: Recipe, fleet: Fleet, codecs: Mapping[str, Codec], world: World) -> Communicator:
    """What moves the tensors of a run: plain means, sums of which nobody sees a part, or means that a few cannot move far."""
    if recipe.privacy.secure_sum:
        return SecureSum(fleet, codecs, world)
    return Communicator(fleet, codecs, world) if recipe.mean.plain else RobustMeans(fleet, codecs, world, recipe.mean)


def probes_of(setup: Setup, seating: Seating | None = None) -> list[Probe]:
    """Return the probes of a run, in the order in which the trainer calls them."""
    probes = [*measures(setup), EvaluationProbe(setup)]
    if setup.data is not None and setup.data.held_out is not None:
        probes.append(
            FairnessProbe(setup, setup.data.held_out, seating.personal if seating is not None else lambda clients: {})
        )
    if (private := private_of(setup.state)) is not None:
        probes.append(PrivacyProbe(setup, private))
    if setup.recipe.adaptation.asked_for and setup.data is not None and setup.data.held_out is not None:
        probes.append(_adaptation(setup, setup.data, setup.data.held_out, seating))
    if declared(setup.recipe.method).prunes:
        probes.append(MaskProbe(setup))
    if labels_of(setup.recipe.method) is not None:
        probes.append(LabelProbe(setup))
    if setup.adapters is not None:
        probes.append(AdapterProbe(setup, setup.adapters))
    elif setup.experts is not None and setup.recipe.routing_every:
        probes.append(RoutingProbe(setup, setup.experts.table))
    if isinstance(setup.recipe.model, AbbIE) and setup.recipe.model.looks:
        probes.append(IterationsProbe(setup, setup.recipe.model))
    if setup.state.facts.get("nodes"):
        probes.append(TreeProbe(setup))
    if setup.state.groups:
        probes.append(GroupProbe(setup))
    return [*probes, DriftProbe(setup)]


def _adaptation(setup: Setup, data: TrainingData, held_out: HeldOut, seating: Seating | None) -> AdaptationProbe:
    recipe = setup.recipe
    compute = replace(recipe.compute, vectorised=recipe.compute.vectorised and None)  # some ways need each by itself

    def gradients(fleet: Fleet, comm: Communicator) -> Gradients:
        return Gradients(recipe, data, comm, vectorised(fleet, compute, recipe.per_batch, True, not recipe.own))

    return AdaptationProbe(setup, held_out, seating.personal if seating is not None else lambda clients: {}, gradients)


def build_fleet(
    recipe: Recipe,
    shape: Shape,
    device: str | torch.device = "cpu",
    experts: Experts | None = None,
    mine: Sequence[int] | None = None,
    base_model: Callable[[str], Path] = base_file,
    loss: TaskLoss | None = None,
    groups: Groups | None = None,
) -> Fleet:
    """The fleet of a recipe: every worker starts from the same values, with the experts and rank segments that it holds.

    ``loss``: a task's, for a module's own ``loss(inputs, targets)``; ``groups`` of clients, if they are known."""
    model, lora, dtype = recipe.model, recipe.lora, getattr(torch, recipe.dtype)
    model = model.from_here() if isinstance(model, HF) else model  # modules are built again later, wherever one is then
    named, dry = groups_of(recipe) if groups is None else groups, str(device) == "meta"
    ranks_W = lora.ranks_W(recipe.num_workers) if lora.ranks else ()
    made: dict[str, nn.Module] = {}  # a dry fleet needs each kind of worker once
    own: list[nn.Module] = []  # the one module of a factory, without values: those of the workers have the same parts

    def build(worker: int | None) -> nn.Module:
        held = resident(experts.table, worker) if experts is not None and worker is not None else None
        kind = "" if held is None or len(held[0]) == len(experts.table[0]) else repr(held)  # type: ignore[union-attr]
        rank = (ranks_W[worker] if worker is not None else lora.bounds[-1]) if ranks_W else 0
        of_groups = [name for name, clients in named.items() if worker is None or worker in clients]
        kind += f" {rank} {of_groups}"
        if not dry or kind not in made:
            repeats = dry and not ranks_W  # what is adapted is changed layer by layer
            if isinstance(model, MoE):
                module = model.build(shape.tokens_for("MoE"), shape.context, recipe.seed, held, repeats)
            elif own:
                module = skeleton(own[0])
            else:
                module = model.module(shape, recipe.seed)
                if isinstance(model, Factory):
                    own.append(skeleton(module))
            values = worker is None and not next(module.parameters()).is_meta  # else the fleet gives it views of them
            if values and recipe.start:
                start_values_(module, recipe.start, base_model)
            module = adapt_(module, lora, rank, recipe.seed) if ranks_W else module
            module = prepared(recipe.method, recipe.buffers.freeze_(module), values, of_groups)
            made[kind] = with_losses(module, loss)
            if values and lora.values:
                load_adapter_(module, lora.values)
        return made[kind] if dry else made.pop(kind)

    movable, personal = experts is not None and experts.movable, recipe.clients.is_personal
    fleet = Fleet(build, recipe.num_workers, mine=mine, device=device, dtype=dtype, movable=movable, personal=personal)
    recipe.clients.check_personal(list(fleet.layout.place))
    return fleet


MOST_NUMBERS = 1 << 58  # whose bytes torch counts in 64 bits
Needs = dict[str, float]  # bytes, by what they are for
CPU = torch.device("cpu")
# What Python takes for modules and their views, measured: of a layer, of an expert, and of a worker (a dry one is a few numbers).
LAYER_BYTES, EXPERT_BYTES, WORKER_BYTES, DRY_WORKER_BYTES = 50_000, 8_000, 20_000, 1_000


def check_size(recipe: Recipe, workers: int, device: torch.device) -> None:
    """Refuse what this machine cannot hold, on numbers alone: before text is read, and before anything is made.

    Where text or adapters decide it asks for too little: `check_memory` looks again when they are known. In a dry run (device
    ``meta``) there is little to hold.
    """
    model, scenario = recipe.model, recipe.scenario
    host: Needs = {
        f"who is up in {recipe.steps} steps": recipe.steps * recipe.num_workers * (5 if scenario.failure_rate else 1)
    }
    if isinstance(model, GPT | MoE):
        params = sum(model.num_params(model.vocab_size or 256))
        if max(params * recipe.num_workers, recipe.context * model.dim) > MOST_NUMBERS:
            raise RecipeError(
                f"{recipe.num_workers} workers with {params:.3g} parameters each, or contexts of {recipe.context} tokens, are more than "
                "can be counted, even in a dry run: use a smaller model, fewer workers or a shorter context"
            )
    if device.type == "meta":
        host[f"{recipe.num_workers} workers"] = recipe.num_workers * DRY_WORKER_BYTES
        return _refuse_above(host)
    if not isinstance(model, GPT | MoE):  # its shape stands in its files, or the data say it
        return _refuse_above(host)
    vocab_size = model.vocab_size or 256
    everywhere, in_experts = model.num_params(vocab_size)
    copies = _copies(recipe, workers)
    experts = model.num_layers * model.num_experts if isinstance(model, MoE) else 0
    layers = LAYER_BYTES * model.num_layers * (workers + 1)  # the whole model is one more
    host[f"the modules of {workers} workers"] = WORKER_BYTES * workers + layers + EXPERT_BYTES * experts * copies
    whole = everywhere + in_experts
    held, frozen = (0.0, whole) if recipe.lora.ranks else (everywhere * workers + in_experts * copies, 0)
    angles = recipe.context * (model.dim // model.num_heads) * (workers + 1)
    floats = recipe.context * model.floats_per_token(vocab_size)
    needs = _needs(recipe, held, frozen, floats, workers, device) | {"positions": angles * torch.float32.itemsize}
    if device.type == "cpu":
        return _refuse_above(needs | host)
    _refuse_above(host)
    _refuse_above(needs, device)


def check_memory(recipe: Recipe, shape: Shape, workers: int, device: torch.device) -> None:
    """Refuse a recipe whose tensors cannot fit: stacks of so many workers, and activations of those that run at once."""
    model = recipe.model
    with torch.device("meta"):
        module = model.module(shape, recipe.seed)
    if isinstance(model, GPT | MoE | HF):
        floats = recipe.context * model.floats_per_token(shape.vocab_size)
    else:
        floats = floats_kept(module, shape)
    unit = getattr(module, "tensor_unit", lambda name: None)
    frozen = 0
    if recipe.lora.ranks:
        module = adapt_(module, recipe.lora, recipe.lora.bounds[-1])
        frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    held = sum(p.numel() * (_copies(recipe, workers) if unit(n) else workers) for n, p in named)
    _refuse_above(_needs(recipe, held, frozen, floats, workers, device), device)


def _copies(recipe: Recipe, workers: int) -> float:
    """Return how many copies of an expert so many of the workers hold, on average."""
    return (recipe.placement.overlap or recipe.num_workers) * workers / recipe.num_workers


def _needs(recipe: Recipe, held: float, frozen: int, floats: int, workers: int, device: torch.device) -> Needs:
    """Bytes by what they are for; ``held`` numbers are trained by all workers together, ``frozen`` ones kept, and made, once.

    ``floats``: what a backward pass needs of a sequence or an example.
    """
    compute, states = recipe.compute, len(recipe.method.inner.state_names)
    outer = getattr(recipe.method, "outer", None)
    agreed = held / workers * (2 + (len(outer.state_names) if outer is not None else 0))
    written = held * (1 + states) if recipe.checkpoint_every and device.type == "cpu" else 0
    at_once = workers if compute.vectorised else min(workers, num_cores()) if device.type == "cpu" else 1
    rows = math.ceil(recipe.batch_size / compute.accumulate)
    element = getattr(torch, recipe.dtype).itemsize
    what = f"sequences of {recipe.context} tokens" if recipe.data is None else "examples"
    adapting, whole = recipe.adaptation, held / workers
    at_once_adapting = min(rows_at_once(recipe.num_workers, int(whole)), adapting.sampled(recipe.num_clients))
    copies = (
        3 + max(len(x.state_names) for x in (adapting.inner, adapting.local_inner or adapting.inner))
    ) * adapting.asked_for
    return {
        f"{at_once_adapting} clients that adapt the model": at_once_adapting * whole * copies * element,
        f"the states of {workers} workers": (held * (2 + states) + 2 * frozen) * element,
        "what they agree on": agreed * element,
        "a checkpoint": written * element,
        f"the activations of {at_once} × {rows} {what}": at_once * rows * floats * element,
    }


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes."""
    import psutil

    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _refuse_above(needs: Needs, device: torch.device = CPU) -> None:
    free = free_bytes(device)
    needed = sum(needs.values())
    if needed <= free:
        return
    parts = ", ".join(f"{x / 1e9:,.1f} for {what}" for what, x in needs.items() if x > 0.01 * needed)
    raise RecipeError(
        f"this needs about {needed / 1e9:,.1f} GB of memory ({parts}), and {free / 1e9:,.1f} GB are free"
        f"{'' if device.type == 'cpu' else f' on {device}'}: use fewer workers or steps, a smaller model, batch_size or context, "
        "compute.accumulate (passes into which a batch is cut), or `lab plan` for a dry run"
    )
