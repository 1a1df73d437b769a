"""A method in a training loop that is somebody's own: it takes the optimizer's place, and is written down like a run of the lab."""

from __future__ import annotations

import inspect
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from lab.engine.checkpoint import Checkpoint, Json, Part, restore_, snapshot
from lab.engine.codecs import codec
from lab.engine.comm import Communicator
from lab.engine.ledger import Ledger
from lab.engine.stack import Block
from lab.engine.state import State
from lab.engine.world import OneProcess, World
from lab.events import VERSION, Ended, Evaluated, Event, Started, Stepped
from lab.ground.errors import Diverged, RecipeError, shown
from lab.ground.seeds.surroundings import isolated
from lab.methods import name_of
from lab.methods.registry import round_steps
from lab.probes.drift import DriftProbe
from lab.probes.health import not_finite
from lab.probes.probe import Agreed, Setup
from lab.recipes.recipe import Recipe
from lab.runs.adopted import UNWRAPPED, Structure, adopt, check_unmoved, digests, wrapped
from lab.runs.buffers import BufferSync
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.handed import Gradients, Losses
from lab.runs.parts import Holders, States
from lab.runs.shared_folder import SharedFolder
from lab.runs.stream import Stream, leave


class Attached(torch.optim.Optimizer):
    """What `lab.attach` returns: a torch optimizer whose step is a local step of a method, with what a run of the lab has.

    Its one parameter group has the learning rate of the method's inner optimizer, for schedulers of torch: what they set there
    is what the inner optimizer takes. Gradients are what ``backward`` has left at the parameters, in one pass or several, clipped
    or not; `step` leaves them there, as torch's optimizers do.

    Several processes all make the same calls of `step`, `save`, `agreed` and `close`, in the same order.

    t
        finished local steps; where a run goes on, those of before as well.
    events
        what has happened so far (`lab.events`); at the first process also what its folder held.
    """

    _step_supports_amp_scaling = True  # a GradScaler then says that it is there, instead of leaving out steps by itself

    def __init__(
        self,
        recipe: Recipe,
        modules: Sequence[nn.Module],
        world: World,
        stream: Stream,
        group: Callable[[str], str],
        examples: int = 0,
    ):
        self.recipe, self.modules, self.world, self.examples = recipe, list(modules), world, examples
        self.folder: SharedFolder | None = None
        mine = range(recipe.num_workers) if world.mine is None else world.mine
        self.fleet, self._held = adopt(modules, mine, recipe.num_workers, group)
        base = recipe.method.inner.lr
        torch.optim.Optimizer.__init__(self, [h.param for h in self._held], {"lr": base, "initial_lr": base})
        self.comm = Communicator(self.fleet, {name: codec(spec) for name, spec in recipe.codecs.items()}, world)
        self.run_state = State.of(self.fleet, lambda t: Factor(float(self.param_groups[0]["lr"]), base))
        self._gradients = Gradients(self._held, self.run_state, name_of(recipe.method))
        setup = Setup(recipe, self.fleet, self.run_state, self.comm, world, None, None, None, self._gradients.at)
        self._setup, self._drift = setup, DriftProbe(setup)
        self.comm.subscribe(self._drift.before_average)
        self._parts: list[Part] = [
            Holders(self.fleet, None),
            States(self.run_state, self.comm),
            self._drift,
            _Rates(self),
        ]
        self.stream = stream
        self.t = 0
        self._noted: list[Tensor] = []
        self._structure: Structure | None = None  # of the modules, once they were looked at
        self._last = time.perf_counter()
        with isolated(one_core=False):
            self._begin()

    def _begin(self) -> None:
        """All workers start from the values of the first, and the method makes what it needs."""
        known = self.world.all_gather_by_worker(digests(self.fleet))
        others = [w for w, digest in known.items() if digest != known[0]]
        if others:  # as DistributedDataParallel does
            params = self.fleet.params
            self.comm.broadcast_(params.first(), params, "params", others, known_by=[w == 0 for w in known])
            names = ", ".join(map(str, others[:8])) + (", …" if len(others) > 8 else "")
            self.stream.notes.append(
                f"workers {names} began with other values than worker 0: they were sent its parameters"
            )
        self.recipe.method.init(self.run_state)
        period = round_steps(self.recipe.method)
        self._buffers = BufferSync(self.recipe.buffers, self.run_state, self.comm, lambda: period)
        self.world.begin_(self.run_state.served)
        for block in self.fleet.layout.blocks:
            self.world.note_up(block, self.fleet.up)

    def write_to(self, path: Path) -> None:
        """Write into a folder from now on, and go on from the last checkpoint there. All processes call it.

        Raises
        ------
        RecipeError
            where the folder holds the run of something else.
        """
        folder = SharedFolder(self.world, RunFolder(path))
        leave(path)
        with isolated(one_core=False):
            folder.lock()
            checkpoint, notes = folder.load(self.recipe)
            if checkpoint is not None:
                self.restore(checkpoint)
                notes.append(f"resumed after step {self.t}")
            folder.open(self.recipe, checkpoint.events_bytes if checkpoint is not None else 0, self.t)
            self.folder = folder
            self.stream.write_to(folder, path, notes)

    # a local step

    def step(self, loss: Losses | Callable[[], Losses] | None = None) -> None:  # type: ignore[override]
        """One local step of the method at every worker, with what that sends.

        Parameters
        ----------
        loss
            what was differentiated, for the events: a number, or one for each worker of this process; or a closure that computes
            and returns it, as torch's optimizers take one. None: the events have no losses.

        Raises
        ------
        RecipeError
            before anything is changed: where parameters are no longer those that were attached, the model was wrapped since, a
            GradScaler is at work, or the run has ended.
        Diverged
            where a loss is no finite number; in all processes, when they next exchange their losses.
        PeerLost
            if another process has ended, or does not answer.
        """
        if callable(loss):
            with torch.enable_grad():
                loss = loss()
        noted, self._noted = self._noted, []
        if loss is None and noted:
            loss = sum(noted[1:], noted[0])
        self._refuse()
        with isolated(one_core=False):
            if not self.stream.begun:
                self.stream.begin(self.started())
            t = self.comm.t = self.t + 1
            self._gradients.take_(loss)
            self.recipe.method.step(self.run_state, self._gradients, self.comm, t)
            self._buffers.after_(t)
            self.t = t
            self._report(t)

    def note(self, loss: Tensor) -> None:
        """What ``backward`` was called on, for the events of the next `step`, where that cannot be given it; of several their sum."""
        self._noted.append(loss.detach())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, as torch's optimizers do.

        With ``set_to_none=False`` they are zeros where the method looks for them, and ``backward`` adds to them in place: a copy of the
        gradients less in memory, and a little slower.
        """
        if not set_to_none:
            torch._foreach_zero_(self.fleet.grads.blocks)
        for h in self._held:
            h.param.grad = None if set_to_none else h.grad

    def _refuse(self) -> None:
        """Raises RecipeError where a step would not be what it is taken for."""
        if self.stream.ended is not None:
            raise RecipeError(
                f"the run has ended after step {self.t:,} ({self.stream.ended.status}): attach the model again for another one"
            )
        if "grad_scale" in vars(self):
            raise RecipeError(
                "a GradScaler (fp16) leaves out steps of one worker and not of others: use bfloat16, which needs none "
                '(mixed_precision="bf16", torch.autocast(..., dtype=torch.bfloat16))'
            )
        if self._structure is None or self._structure.now() != self._structure.was:
            for w, module in zip(self.fleet.mine, self.modules, strict=True):
                check_unmoved(module, w, self._held)
            for ddp in wrapped(self.modules) if self._structure is None else ():
                raise RecipeError(
                    f"the model was wrapped in {type(ddp).__name__} after lab.attach, which averages gradients behind the method's back: {UNWRAPPED}"
                )
            self._structure = Structure(self.modules)

    def _report(self, t: int) -> None:
        now = time.perf_counter()
        stepped = Stepped(t, [*self._gradients.losses], float(self.run_state.schedule(t)), now - self._last)
        self._last = now
        sent = self.comm.ledger.new()
        self.stream.add(t, stepped, *sent, *self._drift.by_worker(t, Agreed(self._setup)))
        if sent or self.world.meets_every_step or self._setup.evaluates(t):
            self.stream.flush()

    def started(self) -> Started:
        """What the run is, before its first step."""
        N = self.recipe.num_workers
        return Started(
            version=VERSION,
            recipe=self.recipe.to_dict(),
            num_params=self.fleet.num_params(),
            params_per_worker=[self.fleet.num_params(w) for w in range(N)],
            tokens_per_step=N * self.examples,
            counted=self.recipe.counted,
            floor_nats=None,
            bytes_per_token=1.0,
            environment={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "platform": platform.platform(),
                "cores": os.cpu_count(),
                "device": str(self.fleet.device),
                "processes": self.world.num,
                "threads": self.world.num,  # workers that compute at the same time: one in each process
                "threads_per_worker": torch.get_num_threads(),
            },
        )

    # looking

    @property
    def events(self) -> list[Event]:
        """All that has happened so far. With several processes, losses are known when these next exchange something."""
        return self.stream.events

    @property
    def workers(self) -> Sequence[int]:
        """The numbers of this process's workers, of `num_workers` in all: which examples are theirs is the loop's affair."""
        return self.fleet.mine

    @property
    def num_workers(self) -> int:
        return self.recipe.num_workers

    @property
    def ledger(self) -> Ledger:
        """What was sent in this process's lifetime, by all workers."""
        return self.comm.ledger

    @property
    def columns(self) -> Columns:
        """The events as columns (`lab.runs.columns`)."""
        return self.stream.columns

    @torch.no_grad()
    def agreed(self) -> dict[str, Tensor]:
        """The agreed model as a state dict, for ``load_state_dict`` of a model like the attached one. All processes call it, and all get it.

        Parameters are those of a server, or else the means over the workers; buffers that training moves likewise. It travels and
        is not counted, as nothing that only looks is.
        """
        with isolated(one_core=False):
            values, module = Agreed(self._setup).here, self.modules[0]
            buffers = self._agreed_buffers()
            name_of_param = {id(p): name for name, p in module.named_parameters()}
            names = {n: name_of_param[id(p)] for n, p in module.named_parameters(remove_duplicate=False)}
            return {
                key: (values[names[key]][0] if names.get(key) in values.layout.place else buffers.get(key, x))
                .detach()
                .clone()
                for key, x in module.state_dict().items()
            }

    def _agreed_buffers(self) -> Mapping[str, Tensor]:
        """Those of the agreed model, which the first process has, at every process."""
        found = self.fleet.agreed_buffers
        names = self.world.all_gather_json(sorted(found))[0]
        some = {n: found[n] if self.world.first else self.fleet.constants[n].to("meta") for n in names}
        return self.world.scatter_from_server(dict.fromkeys(range(self.recipe.num_workers), some))[self.fleet.mine[0]]

    def evaluated(self, loss: float, scores: Mapping[str, float] | None = None) -> None:
        """Write down what a model (that of `agreed`, say) was worth on validation data after the present step, for views and comparisons.

        What the first process says counts. Numbers, or tensors of one element.

        Raises
        ------
        RecipeError
            for what is no number.
        """
        numbers = {name: _as_number(name, x) for name, x in {**(scores or {}), "loss": loss}.items()}
        if not self.stream.begun:
            self.stream.begin(self.started())
        self.stream.add(self.t, Evaluated(self.t, numbers.pop("loss"), math.nan, numbers))
        if self.world.meets_every_step:
            self.stream.flush()

    # keeping

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """What this process has beside parameters and buffers (which are the model's): optimizer and method states, step, learning rate.

        Tensors and plain values. Other processes have others: a checkpoint of all is `save`.
        """
        parts = self._parts_here()
        values: Json = {}
        tensors: dict[str, Tensor] = {}
        for part in parts:
            values |= part.json()
            tensors |= {p.key: p.tensor for p in part.tensors() if not p.key.startswith("local/params/")}
        groups = [
            {k: v for k, v in g.items() if k != "params"} | {"params": list(range(len(g["params"])))}
            for g in self.param_groups
        ]
        return {
            "state": tensors,
            "param_groups": groups,
            "run": {"step": self.t, "workers": list(self.fleet.mine), "values": values},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Take over what `state_dict` has returned in a process with the same workers; parameters are loaded with the model.

        Where the run has a folder, that of other workers is left alone: the checkpoint in the folder is that of all.

        Raises
        ------
        RecipeError
            for the state of something else, or without a folder, of other workers.
        """
        run = state_dict.get("run")
        if run is None:
            raise RecipeError(
                "this is the state of another optimizer: load what state_dict() of an attached run has returned"
            )
        if list(run["workers"]) != list(self.fleet.mine):
            if self.folder is not None:
                return
            raise RecipeError(
                f"this is the state of worker {run['workers']}, and this process has {list(self.fleet.mine)}: give lab.attach a folder=, where "
                "sync.save() writes the states of all"
            )
        tensors = {key: x.clone() for key, x in state_dict["state"].items()}
        for optimizer in self.run_state.optimizers.values():
            optimizer.state.clear()
        parts = self._parts_here()
        for part in parts:
            part.load_json(run["values"], run["step"])
        for part in parts:
            part.load_tensors(tensors, run["step"])
        self.t = self.comm.t = run["step"]

    def _parts_here(self) -> list[Part]:
        """The parts of the run, as if there were no other processes; without buffers, which the model saves."""
        alone = Communicator(self.fleet, world=_Alone())
        alone.residuals = self.comm.residuals
        return [States(self.run_state, alone), *self._parts[2:]]

    def save(self) -> None:
        """Write a checkpoint into the run's folder: parameters, buffers and states of all workers. All processes call it.

        Raises
        ------
        RecipeError
            without a folder.
        Diverged
            where parameters are not finite.
        """
        if self.folder is None:
            raise RecipeError(
                "there is no folder to save into: give lab.attach a folder=, or keep state_dict() and the model's"
            )
        with isolated(one_core=False):
            self.stream.flush()
            for found in self.world.all_gather_json(not_finite(self.fleet.params, self.t)[:1]):
                if found:
                    raise Diverged(f"{found[0]}nothing was saved")
            self.stream.tell(self.folder.save(self.t, *snapshot(self._parts, self.world, self.fleet.device)))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on as after a checkpoint: all processes call it, and the first has its tensors."""
        with isolated(one_core=False):
            restore_(self._parts, checkpoint, self.world, self.fleet.device)
        self.t = self.comm.t = checkpoint.step

    def go_on_after(self, step: int) -> None:
        """The loop goes on after this local step, which has to be that of the run or of the checkpoint in its folder. All processes call it.

        Raises
        ------
        RecipeError
            where it is neither.
        """
        if self.folder is not None and step:
            checkpoint, _ = self.folder.load(self.recipe)
            if checkpoint is not None and checkpoint.step == step:
                self.restore(checkpoint)
        if self.t != step:
            raise RecipeError(
                f"the loop goes on after step {step:,}, and the attached run is at step {self.t:,}: begin both anew, or give lab.attach the folder= in "
                "which checkpoints of both are saved"
            )

    def close(self) -> None:
        """The run is done: write its end. All processes call it; a context manager does it by itself."""
        if self.stream.ended is None:
            with isolated(one_core=False):
                self.stream.flush()
            self.stream.end(Ended(self.t, "done", ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self.stream.ended is None:  # the others may be gone: nothing is exchanged
            stopped = isinstance(error, KeyboardInterrupt)
            self.stream.end(Ended(self.t, "stopped" if stopped else "failed", f"{type(error).__name__}: {error}"))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise RecipeError(
                "an attached run has one parameter group, that of the method's inner optimizer: leave add_param_group out"
            )
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)  # the wrapper imports a compiler


class Factor(float):
    """What a method's learning rate is multiplied with; times that very rate it is to the last bit what a scheduler has set."""

    lr: float
    base: float

    def __new__(cls, lr: float, base: float) -> Self:
        made = super().__new__(cls, lr / base)
        made.lr, made.base = lr, base
        return made

    def __rmul__(self, rate: float) -> float:
        return self.lr if rate == self.base else rate * float(self)


class _Alone(OneProcess):
    """For what a process keeps by itself: it owns what it holds."""

    def owners(self, block: Block) -> Sequence[int]:
        return block.holders


class _Rates(Part):
    """The learning rate, which a scheduler may have set."""

    def __init__(self, optimizer: Attached):
        self.optimizer = optimizer

    def json(self) -> Json:
        group = self.optimizer.param_groups[0]
        return {"lr": float(group["lr"]), "initial_lr": float(group["initial_lr"])}

    def load_json(self, values: Json, step: int) -> None:
        self.optimizer.param_groups[0].update({name: values[name] for name in ("lr", "initial_lr")})


def _as_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise RecipeError(
            f"evaluated: {name} = {shown(value)} is no number: give a float, or a tensor of one element"
        ) from None
