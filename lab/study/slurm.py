"""Notebooks executed as jobs of a cluster: each a job of its own in Slurm, by `submitit`, which writes the batch script and puts jobs back.

A job is the same process that a sweep starts on this machine (`lab.study.execution`), and leaves word in the same way: what came out is read from
the executed notebook and a file beside it, never from what submitit keeps. Submitit hands a job over as a pickled object in ``slurm/`` in
the folder of the results, which only its user can look into; nothing else is in there than which notebook to execute. Before a job's time
is over, or when another one takes its place, Slurm sends a signal; the job is then put back into the queue and executes its notebook again, in which
finished runs are read and the one that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from lab.ground.errors import RecipeError, plain
from lab.ground.files import shown, write_atomically
from lab.runs import child
from lab.study.execution import ONE_THREAD, Execution, Pages, ended, last_line, order

LOOK_SECONDS = 1.0  # between two looks at the jobs
SETTLE_SECONDS = 10.0  # until a network mount shows what a job has written at its end
SAFE = "PYTHONSAFEPATH"  # nothing that lies in the working directory is imported


@dataclass(frozen=True)
class Cluster:
    """What each job asks for.

    minutes
        until Slurm ends it; ``requeues`` times it may be put back and go on.
    where
        ``slurm``; or ``local``: processes of this machine, to try it without.
    options
        of ``sbatch``, such as ``{"account": "abc", "mem": "8G"}``.
    """

    partition: str | None = None
    minutes: int = 60
    cpus: int = 1
    gpus: int = 0
    requeues: int = 10
    at_once: int = 256
    where: str = "slurm"
    options: dict[str, str] = field(default_factory=dict)

    def executor(self, folder: Path) -> Any:
        """Submitit's. Raises RecipeError where it is not installed, or there is no Slurm."""
        if find_spec("submitit") is None:
            raise RecipeError("--slurm needs submitit: pip install 'isthmus[slurm]'")
        import submitit

        try:
            made = submitit.AutoExecutor(
                folder=folder, cluster=self.where, **{f"{self.where}_max_num_timeout": self.requeues}
            )
        except RuntimeError as error:  # no srun here
            raise RecipeError(
                f"--slurm: {plain(str(error).strip())}: start it where jobs are submitted, or try it with --cluster local"
            ) from None
        made.update_parameters(
            name="isthmus",
            timeout_min=self.minutes,
            cpus_per_task=self.cpus,
            gpus_per_node=self.gpus,
            tasks_per_node=1,
            slurm_array_parallelism=self.at_once,
            **({"slurm_partition": self.partition} if self.partition else {}),
            **({"slurm_additional_parameters": dict(self.options)} if self.options else {}),
        )
        return made


@dataclass(frozen=True)
class Job:
    """One notebook, as submitit calls it."""

    order: dict[str, Any]
    safe_path: str | None  # of who has submitted it

    def __call__(self) -> None:
        env = child.environment() | ONE_THREAD
        env.pop(SAFE, None)
        env |= {} if self.safe_path is None else {SAFE: self.safe_path}
        command = child.command("lab.study.execution", json.dumps(self.order))
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        try:
            if process.wait():
                raise SystemExit(process.returncode)  # its last words are in the log
        finally:  # its time is over: it is put back, and nothing of it goes on alone
            ended([process])

    def checkpoint(self) -> Any:
        """The same again: runs keep themselves."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def execute_as_jobs(executions: Sequence[Execution], pages: Pages, out: Path, cluster: Cluster) -> None:
    """Submit each, and wait for all. Those that an earlier call has submitted and that still wait or run are not submitted again.

    A job that died is a problem of its execution, named with where its words are; whoever asks again submits only what is missing.
    """
    folder = out / "slurm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    executor = cluster.executor(folder)
    jobs = {one.target: _still_there(one, folder, cluster) for one in executions}
    fresh = [one for one in executions if jobs[one.target] is None]
    jobs |= _submit(fresh, pages, folder, executor)
    for one in executions:
        click.echo(f"{one.name}: job {jobs[one.target].job_id}" + ("" if one in fresh else ", submitted before"))
    waiting = list(executions)
    while waiting:
        for one in list(waiting):
            job = jobs[one.target]
            if job.done():
                waiting.remove(one)
                one.problem = _outcome(one, job, folder)
                click.echo(f"{one.name}: " + (f"failed: {one.problem}" if one.problem else "done"))
        if waiting:
            time.sleep(LOOK_SECONDS)


def _submit(executions: Sequence[Execution], pages: Pages, folder: Path, executor: Any) -> dict[Path, Any]:
    """The job of each, all of them together as one array."""
    if not executions:
        return {}
    given, jobs = os.environ.get(SAFE), list[Any]()
    os.environ[SAFE] = "1"
    try:
        with executor.batch():
            for one in executions:
                outcome = _file(one, folder, "outcome")
                outcome.unlink(missing_ok=True)
                jobs.append(executor.submit(Job(order(one, pages, outcome), given)))
    finally:
        os.environ.pop(SAFE)
        os.environ.update({} if given is None else {SAFE: given})
    for one, job in zip(executions, jobs, strict=True):
        write_atomically(_file(one, folder, "job"), json.dumps(job.job_id).encode())
    return {one.target: job for one, job in zip(executions, jobs, strict=True)}


def _still_there(one: Execution, folder: Path, cluster: Cluster) -> Any:
    """The job that an earlier call has submitted for it, if that has not ended; else None."""
    try:
        number = json.loads(_file(one, folder, "job").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(number, str) or not re.fullmatch(r"[0-9]+(_[0-9]+)?", number):
        return None
    import submitit

    job: Any = (submitit.LocalJob if cluster.where == "local" else submitit.SlurmJob)(folder=folder, job_id=number)
    return None if job.done(force_check=True) else job


def _outcome(one: Execution, job: Any, folder: Path) -> str | None:
    """What went wrong, or None."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            problem: str | None = json.loads(_file(one, folder, "outcome").read_text(encoding="utf-8"))
            return problem
        except (OSError, ValueError):
            if time.monotonic() > until or job.state in ("INTERRUPTED", "FAILED"):
                break
            time.sleep(LOOK_SECONDS)
    said = plain(last_line(Path(job.paths.stderr)), 200)
    return f"its job {job.job_id} ended without a word, {job.state} ({said or 'nothing said'}; see {shown(Path(job.paths.stderr))})"


def _file(one: Execution, folder: Path, kind: str) -> Path:
    return folder / f"{one.target.stem}.{kind}"
