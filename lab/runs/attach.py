"""A training loop that is one's own, with a method of the lab in the optimizer's place: `attach`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.engine.codecs import codec
from lab.engine.comm import Communicator
from lab.engine.state import Loss, State
from lab.engine.world import World
from lab.events import Event
from lab.ground.errors import RecipeError
from lab.ground.files import located
from lab.ground.seeds.surroundings import isolated
from lab.methods import METHODS, Method, declared, name_of, parse_method
from lab.methods.registry import method_notes, round_steps
from lab.models.hf import HFModule
from lab.processes.peers import TIMEOUT_SECONDS, present
from lab.recipes.recipe import Recipe
from lab.runs import own_loop
from lab.runs.adopted import check, dry_fleet, outline, trained
from lab.runs.attached import Attached
from lab.runs.folder import RunFolder
from lab.runs.stream import Stream
from lab.runs.track import Sink, Track, sinks

STEPS = 1000  # that a loop is taken to have where it does not say: the ends of axes in pictures
AGREED = ("workers", "parameters (a digest of names, shapes and dtype)", "options of lab.attach")
MOST = 4096  # steps of a rehearsal


def attach(
    model: Any,
    method: str | Mapping[str, Any] | Method = "des_loc",
    *,
    folder: str | Path | None = None,
    codecs: Mapping[str, str] | None = None,
    buffers: str | Mapping[str, Any] = "local",
    steps: int | None = None,
    examples: int = 0,
    each: Callable[[Event], None] | None = None,
    track: Track | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    **options: Any,
) -> Attached:
    """Put a method into a training loop that is one's own: ``loss.backward(); sync.step(loss); sync.zero_grad()``.

    Every process of the default process group, or else of a launcher (``torchrun``, ``accelerate launch``), calls this with the same number of
    models of the same parameters. All workers start from the values of the first.

    Parameters
    ----------
    model
        the module of this process's worker, a list with one for each worker, or a ``transformers.Trainer``, which then trains by it.
    method, options
        its name with its options, as in a recipe (``inner={"name": "AdamW", "lr": 1e-3}``), or the method itself.
    folder
        where the run is written, like any other; what was cut off there goes on after its last checkpoint, at step `Attached.t`.
    codecs, buffers
        what travels instead of a state; ``"averaged"``: floating buffers become their means (`lab.recipes.buffers.Buffers`).
    steps, examples
        local steps that the loop will take, and examples (or tokens) of a worker in one: for pictures.
    each, track
        called with every event, such as a view; trackers, such as ``"trackio"`` (`lab.runs.track`).
    timeout_seconds
        after which a process that does not answer counts as lost.

    Raises
    ------
    RecipeError
        before anything trains: a model or method that cannot be attached, processes that do not agree, a folder of another run.
    """
    trainer = None if isinstance(model, nn.Module | list | tuple) else _made_ready(model)
    models = model if trainer is None else trainer.model
    modules: list[Any] = [models] if isinstance(models, nn.Module) else list(models)
    plan = partial(_recipe, modules, method, options, codecs, buffers, steps or STEPS)
    place = located(folder) if folder is not None else None
    sync = _attached(modules, plan, place, examples, each, track, timeout_seconds)
    if steps is not None:
        sync.stream.notes += method_notes(sync.recipe.method, sync.recipe)
    return sync if trainer is None else _followed(trainer, sync)


def _made_ready(trainer: Any) -> Any:
    from lab.runs.attach_trainer import made_ready  # imports transformers

    return made_ready(trainer)


def _followed(trainer: Any, sync: Attached) -> Attached:
    from lab.runs.attach_trainer import follow

    follow(trainer, sync)
    return sync


def _attached(
    modules: Sequence[nn.Module],
    plan: Callable[[int], Recipe],
    folder: Path | None,
    examples: int,
    each: Callable[[Event], None] | None,
    track: Track | None,
    timeout_seconds: float,
) -> Attached:
    world, recipe = _agree_on(modules, plan, timeout_seconds)
    told = _sinks(world, recipe, RunFolder(folder) if folder is not None else None, track)
    sync = Attached(recipe, modules, world, Stream(world, each, told), _grouping(modules[0]), examples)
    if folder is not None:
        sync.write_to(folder)
    return sync


def _agree_on(
    modules: Sequence[nn.Module], plan: Callable[[int], Recipe], timeout_seconds: float
) -> tuple[World, Recipe]:
    """The processes, and what all of them are going to run. Raises RecipeError, in all alike."""
    if not modules:
        raise RecipeError("attach was given an empty list: give a module for each worker of this process")
    problem, recipe, digest, device = None, Recipe(), "", "cpu"
    if isinstance(modules[0], nn.Module):
        device = next((str(p.device) for p in modules[0].parameters()), device)
    world = present(len(modules), timeout_seconds, device)
    try:
        check(modules)
        recipe, digest = plan(len(modules) * world.num), outline(modules[0])
        _rehearse(recipe, modules[0])
    except RecipeError as error:
        problem = str(error)
    said = world.all_gather_json([problem, len(modules), digest, recipe.id])
    for wrong, *_ in said:
        if wrong is not None:
            raise RecipeError(wrong)
    for process, (_, *theirs) in enumerate(said):
        for what, first, there in zip(AGREED, said[0][1:], theirs, strict=True):
            if first != there:
                raise RecipeError(
                    f"process {process} has other {what} than process 0 ({there} and {first}): all need the same"
                )
    return world, recipe


def _sinks(world: World, recipe: Recipe, folder: RunFolder | None, track: Track | None) -> list[Sink]:
    """What trackers are told at the first process. Raises RecipeError, in all alike; also where the run in the folder is done."""
    told: list[Sink] = []
    problem = None
    if world.first:
        try:
            if folder is not None and folder.done:
                raise RecipeError(f"{folder.path} holds a run that is done: give another folder")
            told = sinks(track, recipe, folder)
        except RecipeError as error:
            problem = str(error)
    problem = world.all_gather_json(problem)[0]
    if problem is not None:
        raise RecipeError(problem)
    return told


def _chosen(method: str | Mapping[str, Any] | Method, options: Mapping[str, Any]) -> Method:
    """The method with its options. Raises RecipeError for one that an own loop cannot give what it needs."""
    spec = {"name": method} if isinstance(method, str) else method
    if options and not isinstance(spec, Mapping):
        raise RecipeError(
            f"attach was given a method and its options ({', '.join(options)}): put them into the method, or give its name"
        )
    found = parse_method({**spec, **options} if isinstance(spec, Mapping) else spec)
    need, why = declared(found), ""
    if need.server:
        why = "a server hands out the model before gradients are computed"
    elif need.own_loss:
        why = "it trains a loss of its own"
    if why:
        able = [name for name, cls in METHODS.items() if not declared(cls).server and not declared(cls).own_loss]
        raise RecipeError(
            f"{need.name} cannot be attached: {why}, and in an own loop they are there already; use lab.train, or one of {', '.join(able)}"
        )
    return found


def _recipe(
    modules: Sequence[nn.Module],
    method: str | Mapping[str, Any] | Method,
    options: Mapping[str, Any],
    codecs: Mapping[str, str] | None,
    buffers: str | Mapping[str, Any],
    steps: int,
    num_workers: int,
) -> Recipe:
    """What is known of the run: the rest is in the script that has made the model and its loop."""
    named = trained(modules[0])
    num_params = sum(p.numel() for p in named.values())
    fields: dict[str, Any] = {
        "method": _chosen(method, options),
        "model": partial(own_loop.model, num_params=num_params, tensors=outline(modules[0])),
        "data": own_loop.data,
        "num_workers": num_workers,
        "steps": steps,
        "dtype": str(next(iter(named.values())).dtype).removeprefix("torch."),
        "codecs": dict(codecs or {}),
        "buffers": {"kind": buffers} if isinstance(buffers, str) else dict(buffers),
        "eval_every": 0,
        "checkpoint_every": 0,
    }
    recipe = Recipe(**fields)
    if recipe.buffers.kind not in ("local", "averaged"):
        raise RecipeError(
            f"buffers = {recipe.buffers.kind!r} is what happens around forward passes, which an own loop takes by itself: use local or averaged"
        )
    return recipe


def _grouping(module: nn.Module) -> Callable[[str], str]:
    """What its tensors are, for reading a ledger: as the module says, or by the words of Hugging Face's models."""
    of_hf = any(cls.__module__.split(".")[0] in ("transformers", "peft") for cls in type(module).__mro__)
    named: Callable[[str], str] = getattr(
        module, "tensor_group", HFModule.tensor_group if of_hf else lambda name: "all"
    )
    return named


def _rehearse(recipe: Recipe, module: nn.Module) -> None:
    """A round of the method on shapes alone, so that what cannot be is said before anything trains.

    Raises
    ------
    RecipeError
        for a method that asks for gradients not exactly once in a step, or of another loss, and for what a dry run refuses.
    """
    calls: list[Loss | None] = []

    def grad(s: State, loss: Loss | None = None) -> Tensor:
        calls.append(loss)
        return torch.full((recipe.num_workers,), math.nan, dtype=torch.float64)

    with isolated(one_core=False):
        state = State.of(dry_fleet(module, recipe.num_workers, _grouping(module)))
        comm = Communicator(state.fleet, {name: codec(spec) for name, spec in recipe.codecs.items()})
        recipe.method.init(state)
        for t in range(1, min(round_steps(recipe.method), MOST) + 1):
            comm.t = t
            calls.clear()
            recipe.method.step(state, grad, comm, t)
            if calls != [None]:
                what = f"asks for gradients {len(calls)} times" if len(calls) != 1 else "trains a loss of its own"
                raise RecipeError(
                    f"{name_of(recipe.method)} {what} in step {t}, and an own loop has computed them once: use lab.train"
                )
