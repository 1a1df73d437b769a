"""The ``lab`` command. Imports that take time wait until a command needs them, so that ``lab --help`` is quick."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lab.costs.energy import Energy
    from lab.costs.network import Network
    from lab.events import Event
    from lab.recipes.recipe import Recipe
    from lab.runs.columns import Columns
    from lab.runs.folder import RunFolder
    from lab.runs.index import Summary


INTERRUPTED = 130  # exit code of what Ctrl-C has ended
NO_PLACE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
SPECIAL = 4  # fields of a recipe that a list says a run differs from its preset in


class _Lab(click.Group):
    """Shows a user's mistake as one line (exit code 2) and keeps tracebacks for ``--debug``."""

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        if args is None:
            _in_utf8()
            from lab.runs.child import quick_

            quick_()
        return super().main(args, *rest, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            out = super().invoke(ctx)
            sys.stdout.flush()
            return out
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and "=" in error.message:
                hint = f"{error.message} Fields of a recipe are changed with -o, for example -o steps=500."
                raise click.UsageError(hint, error.ctx) from None
            raise
        except OSError as error:
            if ctx.params.get("debug") or error.errno == errno.EPIPE:  # a pipe that nobody reads: click ends in silence
                raise
            _give_up(error)
            ctx.exit(2 if _was_named(error, ctx.meta[__name__]) else 1)
        except Exception as error:
            from lab.ground.errors import LabError

            if ctx.params.get("debug") or not isinstance(error, LabError):
                raise
            if not _said_elsewhere(error.exit_code):
                click.echo(f"lab: {error}", err=True)
            ctx.exit(error.exit_code)


def _in_utf8() -> None:
    """Text is UTF-8 whatever the locale says: arguments, files and what is printed, here and in whatever starts from here."""
    if os.name == "posix" and not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _was_named(error: OSError, words: Sequence[str]) -> bool:
    """Whether the command line names a place that is none, or that may not be used: bad input, not a machine that fails."""
    if error.errno not in NO_PLACE or not isinstance(error.filename, str):
        return False
    place, named = Path(os.path.abspath(error.filename)), (word.rpartition("=")[2] for word in words)
    # an option that is given nothing (-o start=) names no place
    return any(place.is_relative_to(os.path.abspath(value)) for value in named if value)


def _give_up(error: OSError) -> None:
    """Say in one line what the system refused; where it was the output, nothing more is written there."""
    from lab.ground.errors import plain

    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.filename is None:  # what is printed; files are written under their names
        what = f"cannot write the output ({what}); what a run has done is in its folder, and the same command goes on"
        with contextlib.suppress(OSError):  # what still waits to be written goes nowhere, without a word
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        click.echo(f"lab: {plain(what)}", err=True)


def _launched() -> bool:
    """Whether `lab.runs.launch` has started this process and watches over it."""
    return "ISTHMUS_LAUNCHED" in os.environ


def _said_elsewhere(exit_code: int) -> bool:
    """Of several processes one speaks: about a lost one the launcher (75, `lab.processes.peers.PeerLost`), else the first here."""
    from lab.ground.errors import LabError
    from lab.processes.environment import launched

    if exit_code == 75:
        return _launched() and "ISTHMUS_MAILBOX" not in os.environ  # a site knows for whom it has waited
    try:
        here = launched()
    except LabError:  # it is this that is wrong
        return False
    return here is not None and not here.first_here


@click.group(cls=_Lab, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.version_option(package_name="isthmus")
def main(debug: bool) -> None:
    """Isthmus: train one model on many weakly connected workers, and count every byte they send."""


recipe_options = click.argument("recipe", default="des_loc")
override_option = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one field, e.g. -o steps=500 (JSON; the last one counts).",
)
energy_option = click.option(
    "--energy",
    metavar="FIGURE=…",
    help="What a byte and a step draw, e.g. joules_per_byte=6e-8,watts=300 (docs/links.md); none is assumed.",
)
runs_option = click.option("--runs", default="runs", show_default=True, help="Folder that holds the runs.")


accept_option = click.option(
    "--accept-new-text", is_flag=True, help="Go on although the text is not what the run was trained on until now."
)


track_option = click.option(
    "--track",
    multiple=True,
    metavar="TRACKER",
    help="Keep what happens there, too: trackio, tensorboard, wandb, mlflow.",
)


def process_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What decides over how many processes a run is spread, and what happens when one is lost."""
    for name, default, allowed, words in (
        ("--timeout", 600.0, click.FloatRange(1), "Seconds until a silent process is lost."),
        ("--restarts", 0, click.IntRange(0), "How often to go on when a process is lost."),
        ("--processes", 1, click.IntRange(1), "Spread the workers over so many processes."),
    ):  # help lists the last one first
        command = click.option(name, default=default, show_default=True, type=allowed, help=words)(command)
    words = "With --mailbox: seconds after which the run goes on without a site, until it is back."
    command = click.option("--deadline", metavar="SECONDS", type=click.FloatRange(0, min_open=True), help=words)(
        command
    )
    words = "A folder or URL (s3://…) that all processes reach: they leave messages there and open no sockets."
    return click.option("--mailbox", envvar="ISTHMUS_MAILBOX", metavar="PLACE", help=words)(command)


@main.command()
@recipe_options
@override_option
@runs_option
@click.option("--again", is_flag=True, help="Run anew even if this recipe has been run; the earlier run is kept.")
@click.option("--name", metavar="NAME", help="What to call the run, beside its id.")
@accept_option
@track_option
@process_options
@click.option(
    "--site",
    "sites",
    multiple=True,
    type=click.IntRange(0),
    help="With --mailbox: of the processes, start this one here.",
)
def run(
    recipe: str,
    overrides: tuple[str, ...],
    runs: str,
    again: bool,
    name: str | None,
    accept_new_text: bool,
    track: tuple[str, ...],
    processes: int,
    restarts: int,
    timeout: float,
    mailbox: str | None,
    deadline: float | None,
    sites: tuple[int, ...],
) -> None:
    """Train a RECIPE (a preset's name or a JSON file) and write runs/<id>/.

    The id follows from the recipe. A run that was cut off goes on; one that is finished is shown again.
    """
    from lab.ground.files import numbered
    from lab.recipes.recipe import Recipe
    from lab.runs.folder import RunFolder
    from lab.runs.index import named

    parsed = Recipe.of(recipe, overrides)
    for path, later in itertools.pairwise(numbered(Path(runs) / parsed.id)):
        if not path.exists() or not (again or (later.exists() and _is_of_other_files(RunFolder(path), parsed))):
            break
    folder = RunFolder(path)
    with named(folder, name):
        _train(parsed, folder, processes, restarts, timeout, accept_new_text, track, mailbox, deadline, sites)


def _is_of_other_files(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether a run is finished and read other text than the recipe names now, so that a later one may be meant."""
    from lab.ground.errors import RecipeError
    from lab.runs.finished import check_finished

    try:
        if folder.done:
            check_finished(folder.path, recipe)
    except RecipeError:
        return True
    return False


@main.command()
@click.argument("run")
@runs_option
@accept_option
@track_option
@process_options
def resume(
    run: str,
    runs: str,
    accept_new_text: bool,
    track: tuple[str, ...],
    processes: int,
    restarts: int,
    timeout: float,
    mailbox: str | None,
    deadline: float | None,
) -> None:
    """Go on with a RUN that was stopped or killed, from its last whole checkpoint (over any number of processes)."""
    from lab.runs.folder import find_run

    folder = find_run(run, runs)
    _train(folder.recipe(), folder, processes, restarts, timeout, accept_new_text, track, mailbox, deadline)


@main.command(name="fork")
@click.argument("run")
@click.option("--step", type=click.IntRange(1), help="After which step.  [default: the last checkpoint]")
@override_option
@runs_option
@click.option("--name", metavar="NAME", help="What to call the fork, beside its id.")
@track_option
@process_options
def fork_(
    run: str,
    step: int | None,
    overrides: tuple[str, ...],
    runs: str,
    name: str | None,
    track: tuple[str, ...],
    processes: int,
    restarts: int,
    timeout: float,
    mailbox: str | None,
    deadline: float | None,
) -> None:
    """Go on from a stored checkpoint of RUN as another run, with other knobs: -o method.inner.lr=0.001.

    The RUN stays as it is. The same fork has the same folder: one that was cut off goes on.
    """
    from lab.runs.fork import fork
    from lab.runs.index import named

    folder = fork(run, step, overrides, runs=runs)
    with named(folder, name):
        _train(folder.recipe(), folder, processes, restarts, timeout, False, track, mailbox, deadline)


@main.command()
@click.option(
    "--html", metavar="FILE", help="Write a page that needs no server.  [default: board.html in the folder of runs]"
)
@click.option("--notebook", metavar="FILE", help="Write a notebook that shows them, as make lab does.")
@runs_option
def board(html: str | None, notebook: str | None, runs: str) -> None:
    """All runs on one page: filter, sort, losses against steps, bytes, or seconds on a link of your own."""
    from lab.study.board import board as of_runs

    made = of_runs(runs)
    if notebook is not None:
        made.write_notebook(notebook)
    if html is not None or notebook is None:
        made.save(html or Path(runs) / "board.html")
    click.echo(made.answer())
    click.echo(str(notebook if html is None and notebook is not None else html or Path(runs) / "board.html"))


@main.command(name="name")
@click.argument("run")
@click.argument("name")
@runs_option
def name_(run: str, name: str, runs: str) -> None:
    """Call a RUN by a NAME, beside its id: in lists, and where a run is asked for."""
    from lab.runs.folder import find_run

    find_run(run, runs).call(name)


@main.command()
@click.argument("place")
@click.option("--site", required=True, type=click.IntRange(1), help="Which of the run's sites this is, from 1.")
@click.option(
    "--timeout", default=600.0, show_default=True, type=click.FloatRange(1), help="Seconds until a silent site is lost."
)
def join(place: str, site: int, timeout: float) -> None:
    """Be one site of the run in a PLACE (a folder or a URL), also again after it was lost. The recipe comes from there."""
    from lab.events import Stepped
    from lab.runs.sites import join_run

    said = time.monotonic()

    def each(event: Event) -> None:
        nonlocal said
        if isinstance(event, Stepped) and time.monotonic() - said > 10:
            click.echo(f"step {event.step:>6}")
            said = time.monotonic()

    def begun(recipe: Recipe) -> None:
        click.echo(f"site {site} of {recipe.id}: {recipe.num_workers} workers × {recipe.steps:,} steps")

    with _interruptible(f"stopped; go on with: lab join {place} --site {site}"):
        columns = join_run(place, site, timeout_seconds=timeout, each=each, begun=begun)
    done = columns.step[-1] if columns.step else 0
    click.echo(f"site {site}: {columns.ended.status if columns.ended else 'unfinished'}, {done:,} steps")


class _Terminal:
    """What a run says while it goes on: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, recipe: Recipe, folder: RunFolder):
        from tqdm.auto import tqdm

        from lab.runs.progress import Progress

        self.recipe, self.folder, self.progress = recipe, folder, Progress(recipe.steps)
        self.live = sys.stderr.isatty()
        self.bar = tqdm(total=recipe.steps, unit="step", disable=not self.live, dynamic_ncols=True)
        self.said = time.monotonic()

    def note(self, line: str) -> None:
        from lab.ground.errors import plain

        self.bar.write(plain(line), file=sys.stderr)

    def __call__(self, event: Event) -> None:
        from lab.costs.network import human
        from lab.events import Ended, Evaluated, Forked, KnobChanged, Started, Stepped, Warned

        self.progress(event)
        match event:
            case Started():
                self.bar.set_description(self.folder.path.name)
                counted = f", {event.tokens_per_step:,} {event.counted} a step" if event.tokens_per_step else ""
                self.note(
                    f"{self.folder.path}: {event.num_params:,} parameters, {self.recipe.num_workers} workers × "
                    f"{self.recipe.steps:,} steps{counted}"
                )
            case Stepped():
                self.bar.update(event.step - self.bar.n)
                self.bar.set_postfix_str(self.progress.present(), False)
                if not self.live and time.monotonic() - self.said > 10:
                    click.echo(f"step {event.step:>6}  {self.progress.present()}")
                    self.said = time.monotonic()
            case Evaluated():
                self.said = time.monotonic()
                if not self.live:
                    sent = human(self.progress.bytes_sent)
                    click.echo(f"step {event.step:>6}  validation {event.loss:.4f}  sent {sent}")
            case KnobChanged():
                self.note(f"from step {event.step} on: {event.knob} = {json.dumps(event.value)}")
            case Forked():
                self.note(event.words)
            case Warned():
                self.note(f"note: {event.message}")
            case Ended():
                self.bar.refresh()

    def sum_up(self, columns: Columns) -> None:
        from lab.costs.network import human
        from lab.ground.errors import plain
        from lab.runs.answers import answered, lines

        steps = columns.step[-1] if columns.step else 0
        loss, speed = self.progress.validation, columns.tokens_per_second
        click.echo(
            f"{plain(str(self.folder.path))}: {steps} steps, "
            + (f"validation loss {loss:.4f} {self.recipe.loss_unit}, " if loss is not None else "")
            + f"{human(self.progress.bytes_sent)} of payload from {self.recipe.num_workers} worker{'s' * (self.recipe.num_workers != 1)}"
            + (f", {human(columns.own_payload_bytes)} of it since the fork" if columns.forked else "")
            + (f", {speed:,.0f} {self.recipe.counted}/s" if speed else "")
        )
        if self.recipe.keep_every and (saved := self.folder.saved()):
            click.echo(
                f"  {len(saved)} checkpoints are kept, {human(sum(saved.values()))}: lab fork {self.folder.path} --step …"
            )
        for line in lines(answered(self.folder.events)):
            click.echo(plain(line))
        for line in _findings(columns):
            click.echo(f"  {plain(line)}")


def _findings(columns: Columns) -> Iterator[str]:
    """What else a run has to show at its end: scores of its task, its prefixes, its routing."""
    from lab.probes.membership import words as membership_words

    if columns.scores and columns.scores[-1]:
        yield ", ".join(f"{name} {value:.3f}" for name, value in columns.scores[-1].items())
    if columns.clients_scored and columns.clients_scored[-1].shared:
        last_look = columns.clients_scored[-1]
        yield last_look.words([*last_look.shared][-1])
    for adapted in columns.adapted[-1:]:
        yield from adapted.words([*adapted.before_C][-1]).splitlines()
    if columns.clipped:
        yield f"privacy: {columns.clipped[-1].words}"
    for seen in [e for e in columns.measured if e.metric == "membership"][-1:]:
        yield membership_words(seen)
    if columns.truncated and len(columns.truncated[-1].bounds_M) > 1:
        last = columns.truncated[-1]
        cuts = zip(last.bounds_M, last.loss_M, strict=True)
        yield "loss cut to rank " + ", ".join(f"{rank}: {loss:.4f}" for rank, loss in cuts)
    if columns.routed:
        ghosts = [x for row in columns.routed[-1].ghost_fraction_WL if row is not None for x in row]
        if any(ghosts):
            yield f"routing: {sum(ghosts) / len(ghosts):.1%} of choices fall on experts that the worker does not hold"


def _train(
    recipe: Recipe,
    folder: RunFolder,
    processes: int,
    restarts: int,
    timeout: float,
    accept_new_text: bool,
    track: Sequence[str],
    mailbox: str | None,
    deadline: float | None = None,
    sites: Sequence[int] = (),
) -> None:
    """Train here; or over processes that are started here; or as one of those that a launcher has started."""
    from lab.processes.environment import launched, restarted
    from lab.runs.trainer import train

    here = launched()
    if here is None:
        from lab.runs.sites import check_mailbox

        check_mailbox(mailbox, processes, recipe, restarts, sites, deadline, timeout)
    elif mailbox is not None:
        os.environ["ISTHMUS_MAILBOX"] = mailbox
    if here is None and processes > 1 and not folder.done:
        return _launch(recipe, folder, processes, restarts, timeout, accept_new_text, track, mailbox, deadline, sites)
    if here is not None:
        from lab.runs import launch

        here.check_options(processes, restarts)
        train = partial(launch.train, timeout_seconds=timeout, deadline_seconds=deadline)
        if here.index:
            with _interruptible():  # the first one, or the launcher, says what there is to say
                train(recipe, folder.path, accept_new_text=accept_new_text)
            return None
        if again := restarted():
            click.echo(f"note: a process was lost, so all start again from the last checkpoint ({again})", err=True)
    _train_and_show(partial(train, track=track), recipe, folder, accept_new_text)


def _launch(
    recipe: Recipe,
    folder: RunFolder,
    processes: int,
    restarts: int,
    timeout: float,
    accept_new_text: bool,
    track: Sequence[str],
    mailbox: str | None,
    deadline: float | None = None,
    sites: Sequence[int] = (),
) -> None:
    """Start the processes of a run and wait for them; the first of them shows how far it is."""
    from lab.runs import launch
    from lab.runs.sites import Host
    from lab.runs.trackers.tracker import tracker

    for name in track:
        tracker(name)  # refused here rather than there
    launch.prepare(folder, recipe, processes, timeout)
    try:
        if mailbox is None:
            launch.launch(folder, processes, restarts, timeout, accept_new_text, track)
        else:
            options = ["--accept-new-text"] * accept_new_text + [f"--track={name}" for name in track]
            here = sites or range(processes)
            Host(folder, recipe, processes, mailbox, here, timeout, restarts, options, deadline).run()
    except KeyboardInterrupt:
        through = "" if mailbox is None else f" --mailbox {mailbox}"
        through += "" if deadline is None else f" --deadline {deadline:g}"
        click.echo(f"stopped; go on with: lab resume {folder.path} --processes {processes}{through}", err=True)
        sys.exit(INTERRUPTED)


def _train_and_show(train: Callable[..., Columns], recipe: Recipe, folder: RunFolder, accept_new_text: bool) -> None:
    """Train with a bar or lines, and sum up; of what is finished, show that it is."""
    from lab.runs.finished import check_finished

    if folder.done:
        for note in check_finished(folder.path, recipe, accept_new_text):
            click.echo(f"note: {note}", err=True)
        click.echo(f"already finished: {folder.path} (`lab run … --again` runs it anew)")
    shown = _Terminal(recipe, folder)
    hint = None if _launched() else f"stopped; go on with: lab resume {folder.path}"  # else the launcher says so
    with _interruptible(hint), contextlib.closing(shown.bar):
        columns = train(recipe, folder.path, each=shown, progress=True, accept_new_text=accept_new_text)
    shown.sum_up(columns)


@contextlib.contextmanager
def _interruptible(hint: str | None = None) -> Iterator[None]:
    """Ctrl-C ends this process at once, with a hint: a worker may be in the middle of a long step, and all is on disk."""
    try:
        yield
    except KeyboardInterrupt:
        if hint is not None:
            click.echo(hint, err=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)


@main.command()
@override_option
@runs_option
@click.option("--again", is_flag=True, help="Do all of it anew, also what is done.")
def unlearn(overrides: tuple[str, ...], runs: str, again: bool) -> None:
    """Make a small model forget some of the facts that it knows: LUNAR, its rivals, attacks, a sequence of requests, a federation.

    Trains a model for each of -o seeds=[0,1,2] first, unless that is done. The same command goes on where it was cut off.
    """
    from lab.events import Unlearned
    from lab.ground.config import given
    from lab.systems.unlearning import study

    def tell(event: Event) -> None:
        if isinstance(event, Unlearned):
            click.echo(event.words())

    settings = given(study.Unlearning, overrides)
    with _interruptible("stopped; the same command goes on"):
        record = study.unlearn(settings, runs, again=again, tell=tell)
    click.echo(f"record: {record.path}")


@main.command()
@override_option
@runs_option
@click.option("--again", is_flag=True, help="Do all of it anew, also what is done.")
def agents(overrides: tuple[str, ...], runs: str, again: bool) -> None:
    """Agents that answer together: a policy learns who hears whom, then it and its rivals answer what is held out.

    In a synthetic world by default; -o world=arithmetic: copies of a small model that add; -o world=endpoint: any server that speaks OpenAI's
    protocol (-o endpoint.base_url=…, endpoint.model=…, endpoint.questions=FILE). The same command goes on where it was cut off.
    """
    from lab.events import Orchestrated, Warned
    from lab.ground.config import given
    from lab.systems.agents.orchestrate import POLICY, Orchestration, orchestrate

    def tell(event: Event) -> None:
        if isinstance(event, Orchestrated):
            click.echo((f"update {event.step}: " if event.learning else "held out: ") + event.words())
        elif isinstance(event, Warned):
            click.echo(f"note: {event.message}", err=True)

    settings = given(Orchestration, overrides)
    with _interruptible("stopped; the same command goes on"):
        record = orchestrate(settings, runs, again=again, tell=tell)
    click.echo(f"record: {record.path}")
    if settings.start is None:
        click.echo(f"policy: {record.path / POLICY} (-o start=… tests it elsewhere)")


@main.command()
@click.argument("run")
@runs_option
def answers(run: str, runs: str) -> None:
    """Say what came of a stored RUN: the question of every view that has something to say, and its answer in one sentence."""
    from lab.ground.errors import LabError, plain
    from lab.runs.answers import answered, lines
    from lab.runs.folder import find_run

    folder = find_run(run, runs)
    said = lines(answered(folder.events), indent="")
    if not said:
        raise LabError(
            f"nothing to say of {folder.path}: it has taken no step, or no views are installed (pip install isthmus)"
        )
    for line in said:
        click.echo(plain(line))


@main.command()
@click.argument("names", nargs=-1)
@click.option("--out", default="explorables", show_default=True, metavar="FOLDER", help="Where the pages are written.")
def explore(names: tuple[str, ...], out: str) -> None:
    """Write pages that explain one idea each, by something to drag: those of NAMES, or all. Any browser opens them, without a network."""
    from lab.study.explorables import write

    for file in write(names, out).values():
        click.echo(str(file))


@main.command()
@click.argument("run")
@runs_option
def scenario(run: str, runs: str) -> None:
    """Print the recipe of a RUN with what happened to its workers as its scenario, so that it can be had again: lab run FILE."""
    from lab.runs.again import as_it_was
    from lab.runs.folder import find_run

    click.echo(json.dumps(as_it_was(find_run(run, runs)).to_dict(), indent=1))


@main.command()
@click.argument("run")
@runs_option
@click.option("--speed", default=10.0, show_default=True, help="Times as fast as it was; inf: all at once.")
def replay(run: str, runs: str, speed: float) -> None:
    """Show a stored RUN again, knobs included. Nothing is trained."""
    from lab.ground.errors import RecipeError
    from lab.runs.columns import Columns
    from lab.runs.folder import find_run
    from lab.runs.live import paced

    if not speed > 0:
        raise RecipeError(f"--speed {speed:g}: give a number greater than 0, for example 10 for ten times as fast")
    folder, columns = find_run(run, runs), Columns()
    show = _Terminal(folder.recipe(), folder)
    try:
        for event in paced(folder.events(), speed):
            columns.add(event)
            show(event)
    finally:
        show.bar.close()
    if columns.started is None:
        raise RecipeError(f"{folder.path} has no events yet")
    show.sum_up(columns)


@main.command()
@recipe_options
@override_option
@click.option(
    "--network",
    "networks",
    multiple=True,
    help="A named network (see lab list), 3Mbit,20ms, or 10Gbit:3Mbit,20ms inside federations and between; may be given again.",
)
@click.option("--device", default="h100", show_default=True, help="What a worker computes with (see lab list).")
@click.option("--devices-per-worker", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--step-seconds",
    type=click.FloatRange(0, min_open=True),
    help="What a local step takes a worker, instead of --device.",
)
@click.option("--measured", metavar="RUN", help="A stored run of such steps, for what they take a worker.")
@energy_option
@click.option(
    "--recommend",
    type=float,
    metavar="SHARE",
    help="Which sync periods keep workers computing for this share of the time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the ledger's totals.")
@runs_option
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    networks: tuple[str, ...],
    device: str,
    devices_per_worker: int,
    step_seconds: float | None,
    measured: str | None,
    energy: str | None,
    recommend: float | None,
    as_json: bool,
    runs: str,
) -> None:
    """Dry run: what a RECIPE will send and how long it takes, at any scale, before anything trains."""
    from lab.costs.energy import energy as of_energy
    from lab.costs.network import network
    from lab.data import corpora
    from lab.recipes.notes import notes
    from lab.recipes.recipe import Recipe
    from lab.runs.plan import plan as make_plan

    parsed, chosen = Recipe.of(recipe, overrides), {name: network(name) for name in networks} or None
    figures = None if energy is None else of_energy(energy)
    if measured is not None:
        step_seconds = _measured(measured, runs)
    corpora.check(parsed.corpus)
    for note in notes(parsed):
        click.echo(f"note: {note}", err=True)
    if sys.stderr.isatty():
        click.echo("dry run of this recipe, of DDP and of Local Adam …", err=True)
    steps: dict[str, Any] = {
        "device": device,
        "devices_per_worker": devices_per_worker,
        "step_seconds": step_seconds,
    }
    if recommend is not None:
        return _recommend(parsed, recommend, chosen, steps, Path(runs), as_json)
    result = make_plan(parsed, chosen, **steps, energy=figures)
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else result.to_text())


def _measured(run: str, runs: str) -> float:
    """Seconds of a local step of a stored run at a worker with a machine of its own."""
    from lab.ground.errors import RecipeError
    from lab.runs.columns import Columns, pace
    from lab.runs.folder import find_run

    columns = Columns.of(find_run(run, runs).events())
    seconds = 0.0 if columns.started is None else pace(columns.seconds, columns.started)
    if not seconds:
        raise RecipeError(
            f"--measured {run}: no step of it was timed: take a run that has trained, or give --step-seconds"
        )
    return seconds


def _recommend(
    recipe: Recipe, share: float, networks: dict[str, Network] | None, steps: dict[str, Any], runs: Path, as_json: bool
) -> None:
    from lab.costs.network import NETWORKS
    from lab.study.recommend import recommend, stored_claims

    claims = stored_claims(runs / "notebooks")
    chosen = networks or {"100Mbit": NETWORKS["100Mbit"]}
    found = [recommend(recipe, share, net, **steps, claims=claims) for net in chosen.values()]
    if as_json:
        click.echo(json.dumps([each.to_dict() for each in found], indent=1))
    else:
        click.echo("\n\n".join(each.to_text() for each in found))


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN…")
@runs_option
@click.option("--network", "network_name", default="100Mbit", show_default=True, help="Price the runs on this network.")
@energy_option
@click.option("--json", "as_json", is_flag=True)
def compare(names: tuple[str, ...], runs: str, network_name: str, energy: str | None, as_json: bool) -> None:
    """Runs side by side, the oldest first: loss, bytes, and seconds (and joules) on a network."""
    from lab.costs.energy import energy as of_energy
    from lab.costs.network import described, network
    from lab.ground.errors import RecipeError, plain
    from lab.runs.folder import find_run, runs_called

    net, figures = network(network_name), None if energy is None else of_energy(energy)
    rows: list[dict[str, Any]] = []
    exit_code = 0
    for name in names:
        folder = find_run(name, runs)
        if others := [run for run in runs_called(name, runs) if run.path != folder.path]:
            click.echo(
                f"note: {len(others) + 1} runs are meant by {plain(name)}: the newest is taken, {plain(folder.path.name)}",
                err=True,
            )
        try:
            row = _compared(folder, net, figures)
        except RecipeError as error:
            click.echo(f"lab: {error}: left out", err=True)
            exit_code = error.exit_code
            continue
        if row is None:
            click.echo(f"lab: {plain(str(folder.path))} has no events yet: left out", err=True)
        else:
            rows.append(row)
    rows.sort(key=lambda row: row["changed"])
    if as_json and (rows or not exit_code):
        click.echo(json.dumps(rows, indent=1))
    elif rows or not exit_code:
        _show_compared(rows, network_name, described(net))
    if exit_code:
        sys.exit(exit_code)


def _compared(folder: RunFolder, net: Network, figures: Energy | None) -> dict[str, Any] | None:
    """What a run has to show beside others; None where it has no events yet. Raises RecipeError where it is damaged."""

    from lab.methods import declared
    from lab.runs.columns import Columns

    folder.recipe()
    columns = Columns.of(folder.events())
    if columns.started is None:
        return None
    method = declared(columns.recipe.method)
    bill = columns.price(net)
    return {
        "run": folder.path.name,
        "name": folder.name,
        "changed": (folder.path / "events.jsonl").stat().st_mtime,
        "seed": columns.recipe.seed,
        "method": method.name,
        "workers": columns.num_workers,
        "steps": columns.step[-1] if columns.step else 0,
        "status": columns.ended.status if columns.ended else "unfinished",
        "validation_loss": columns.eval_loss[-1] if columns.eval_loss else None,
        "text": columns.recipe.corpus if columns.recipe.data is None else None,
        "data": columns.recipe.to_dict().get("data"),
        "model": columns.recipe.to_dict()["model"],
        "payload_bytes": columns.ledger.total_bytes(),
        "wire_bytes": float(bill.wire_bytes_W.sum()),
        "seconds": bill.total_seconds,
        **({} if figures is None else {"joules": columns.joules(figures, net).to_dict()}),
        **_by_client(columns),
        **_spent(columns),
    }


def _by_client(columns: Columns) -> dict[str, Any]:
    """Where clients were scored: the last of it, as `lab.events.ClientsScored` has it."""
    if not columns.clients_scored:
        return {}
    last = columns.clients_scored[-1]
    return {"over_clients": {"shared": last.shared, "own": last.own, "gain": last.gain}}


def _spent(columns: Columns) -> dict[str, Any]:
    """Where updates were clipped: the privacy that is spent, as `lab.events.Clipped` has it."""
    known = [e for e in columns.clipped if e.spent]
    return {"privacy": vars(known[-1]) | {"says": known[-1].spent}} if known else {}


def _show_compared(rows: list[dict[str, Any]], network_name: str, links: str) -> None:
    from lab.costs.energy import human_joules
    from lab.costs.network import human
    from lab.ground.errors import plain

    head = f"{'run':<28}{'steps':>7}{'status':>12}{'validation':>12}{'payload':>11}{'on wires':>11}"
    drawn = any("joules" in r for r in rows)
    apart = [what for what in ("text", "data") if _differ(rows, what)]
    click.echo(head + f"  {'on ' + network_name:>11}" + f"{'energy':>11}" * drawn)
    for r in rows:
        loss = "–" if apart or r["validation_loss"] is None else f"{r['validation_loss']:.4f}"
        click.echo(
            f"{plain(r['run']):<28}{r['steps']:>7}{r['status']:>12}{loss:>12}{human(r['payload_bytes']):>11}"
            f"{human(r['wire_bytes']):>11}{r['seconds']:>11.1f} s"
            + (f"{human_joules(r['joules']['total']):>11}" if drawn else "")
        )
    click.echo(
        f"seconds: computing as it went here, and links of {links} between workers, or to a server for methods that have one"
    )
    for r in rows:
        for score, about in [*r.get("over_clients", {}).get("shared", {}).items()][-1:]:
            own = r["over_clients"]["own"].get(score, {})
            kept = f", with what each keeps {own['mean']:.4g} and {own['worst_tenth']:.4g}" if "mean" in own else ""
            click.echo(
                f"{plain(r['run'])}: {score} over {about['num']:,} clients {about['mean']:.4g}, of the worst tenth "
                f"{about['worst_tenth']:.4g}{kept}"
            )
        if "privacy" in r:
            click.echo(f"{plain(r['run'])}: {r['privacy']['says']}")
    for r in rows:
        if r["name"]:
            click.echo(f'{plain(r["run"])} is called "{plain(r["name"])}"')
    if apart:
        click.echo(
            f"note: not all of these runs have the same {' and '.join(apart)}, so their losses are no comparison and are left out; "
            "--json has them"
        )
    elif _differ(rows, "model"):
        click.echo("note: not all of these runs have the same model, so their losses are no comparison of methods")


def _differ(rows: list[dict[str, Any]], what: str) -> bool:
    return len({json.dumps(r[what], sort_keys=True) for r in rows}) > 1


@main.command()
@click.argument("notebooks", nargs=-1, type=click.Path())
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="A notebook parameter.")
@click.option("--out", default="runs/notebooks", show_default=True, help="Folder for the executed notebooks.")
@click.option("--again", is_flag=True, help="Execute even what is already done.")
@click.option("--all", "everything", is_flag=True, help="All of notebooks/, as without a name.")
@click.option("--jobs", type=click.IntRange(1), help="Notebooks at a time.  [default: the cores]")
@click.option(
    "--firm", is_flag=True, help="With their firm profile: long runs, tuned rates, many seeds, from stored runs."
)
@click.option("--plan", "only_plan", is_flag=True, help="Say how many hours --firm takes, and end.")
@click.option("--single-file", is_flag=True, help="Pages that need nothing beside them, to be sent.")
def reproduce(
    notebooks: tuple[str, ...],
    parameters: tuple[str, ...],
    out: str,
    again: bool,
    everything: bool,
    jobs: int | None,
    firm: bool,
    only_plan: bool,
    single_file: bool,
) -> None:
    """Execute NOTEBOOKs (default: all in notebooks/) and end with a table of what holds of the papers' claims."""
    from lab.ground.errors import RecipeError
    from lab.study.execution import Pages
    from lab.study.reproduce import reproduce as execute

    if everything and notebooks:
        raise RecipeError(f"--all means all of notebooks/: leave it out, or leave out {notebooks[0]}")
    if only_plan and not firm:
        raise RecipeError("--plan is of --firm: what is quick needs none")
    pages = Pages.installed(single_file)
    sys.exit(execute(notebooks, parameters, Path(out), pages, again=again, jobs=jobs, firm=firm, plan=only_plan))


@main.command()
@click.argument("run")
@click.argument("folder")
@click.option(
    "--rank",
    metavar="R | MAP=R,…",
    help="Cut the adapters to this rank, or those of some maps (default: all that is used).",
)
@click.option("--merged", is_flag=True, help="Write the whole model with its adapters added, not the adapters.")
@click.option("--rslora", is_flag=True, help="Say the scale of adapters as alpha/sqrt(rank), not alpha/rank.")
@runs_option
def export(run: str, folder: str, rank: str | None, merged: bool, rslora: bool, runs: str) -> None:
    """Write what RUN trained into FOLDER: adapters in peft's format, or the whole model as safetensors."""
    from lab.models.peft import ranks_of
    from lab.runs.export import export_run
    from lab.runs.folder import find_run

    ranks = None if rank is None else ranks_of(rank)
    click.echo(export_run(find_run(run, runs), Path(folder), rank=ranks, whole=merged, rslora=rslora))


@main.command()
@click.argument("run")
@click.option("--out", metavar="FILE", help="A .csv or .parquet file.  [default: CSV to the screen]")
@click.option("--network", "network_name", help="Also the seconds since the start on this network.")
@energy_option
@runs_option
def table(run: str, out: str | None, network_name: str | None, energy: str | None, runs: str) -> None:
    """Write RUN as a table: a row for each local step, with losses, bytes, scores and what else was measured."""
    from lab.costs.energy import energy as of_energy
    from lab.costs.network import network
    from lab.runs.columns import Columns
    from lab.runs.folder import find_run
    from lab.runs.table import to_csv, write

    net, figures = network_name and network(network_name), energy and of_energy(energy)
    made = Columns.of(find_run(run, runs).events()).frame(net or None, figures or None)
    if out is None:
        click.echo(to_csv(made), nl=False)
    else:
        write(made, Path(out))
        click.echo(f"{len(made):,} local steps, {len(made.columns)} columns: {out}")


@main.command()
@recipe_options
@override_option
@click.option("--run", "stored", metavar="RUN", help="A stored run instead of a recipe, with the seconds that it took.")
@click.option("--out", default="traces", show_default=True, help="Folder for the files.")
@click.option("--steps", type=click.IntRange(1), help="Only the first local steps.")
@click.option("--device", default="h100", show_default=True, help="What a worker computes with (see lab list).")
@click.option("--devices-per-worker", default=1, show_default=True, type=click.IntRange(1))
@runs_option
def trace(
    recipe: str,
    overrides: tuple[str, ...],
    stored: str | None,
    out: str,
    steps: int | None,
    device: str,
    devices_per_worker: int,
    runs: str,
) -> None:
    """Write what a RECIPE will do as an execution trace (MLCommons Chakra), for simulators of networks such as ASTRA-sim."""
    from lab.recipes.recipe import Recipe
    from lab.runs.columns import Columns
    from lab.runs.folder import find_run
    from lab.study.trace import of_plan, of_run, write

    if stored is not None:
        folder = find_run(stored, runs)
        course = of_run(Columns.of(folder.events()), folder.path.name, steps)
    else:
        course = of_plan(Recipe.of(recipe, overrides), device, devices_per_worker, steps)
    click.echo(write(course, Path(out)))


@main.command()
@click.argument("notebook", type=click.Path())
@click.option(
    "-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE,VALUE…", help="A parameter and its values."
)
@click.option("--out", default="runs/notebooks", show_default=True, help="Folder for the executed notebooks.")
@click.option("--jobs", type=click.IntRange(1), help="Notebooks at a time.  [default: the cores]")
@click.option("--again", is_flag=True, help="Execute even what is already done.")
@track_option
@click.option("--slurm", is_flag=True, help="Each combination as a job of Slurm (docs/slurm.md); the extra slurm.")
@click.option("--partition", help="With --slurm: in which partition.")
@click.option("--time", "minutes", default=60, show_default=True, type=click.IntRange(1), help="Minutes of each job.")
@click.option("--cpus", default=1, show_default=True, type=click.IntRange(1), help="Of each job.")
@click.option("--gpus", default=0, show_default=True, type=click.IntRange(0), help="Of each job.")
@click.option(
    "--sbatch", "sbatch", multiple=True, metavar="KEY=VALUE", help="Another option of sbatch, as account=abc."
)
@click.option(
    "--cluster",
    default="slurm",
    show_default=True,
    type=click.Choice(("slurm", "local")),
    help="With --slurm: local tries it without, as processes of this machine.",
)
def sweep(
    notebook: str,
    parameters: tuple[str, ...],
    out: str,
    jobs: int | None,
    again: bool,
    track: tuple[str, ...],
    slurm: bool,
    partition: str | None,
    minutes: int,
    cpus: int,
    gpus: int,
    sbatch: tuple[str, ...],
    cluster: str,
) -> None:
    """Execute a NOTEBOOK with every combination of parameters, side by side, and compare what came out."""
    from lab.ground.errors import RecipeError
    from lab.runs.track import set_default
    from lab.study.execution import Pages
    from lab.study.slurm import Cluster
    from lab.study.sweep import sweep as execute

    set_default(track)
    wrong = next((text for text in sbatch if not text.partition("=")[2]), None)
    if wrong is not None:
        raise RecipeError(f"--sbatch {wrong}: write KEY=VALUE, as in --sbatch account=abc")
    options = {key.removeprefix("--"): value for key, _, value in (text.partition("=") for text in sbatch)}
    at = {"at_once": jobs} if jobs else {}
    if not slurm and (partition or sbatch):
        raise RecipeError("--partition and --sbatch are for jobs of Slurm: give --slurm as well")
    asked = Cluster(partition, minutes, cpus, gpus, where=cluster, options=options, **at) if slurm else None
    sys.exit(execute(notebook, parameters, Path(out), Pages.installed(), jobs=jobs, again=again, cluster=asked))


@main.command()
@click.argument("folder", default="notebooks", type=click.Path(file_okay=False))
def notebooks(folder: str) -> None:
    """Copy the notebooks that come with the lab into FOLDER, where they are not there yet."""
    from lab.study.notebooks import copy_shipped

    copied = copy_shipped(Path(folder))
    click.echo(f"{copied} notebooks copied to {folder}/" if copied else f"all notebooks are in {folder}/ already")
    click.echo(f"open one with: jupyter lab {Path(folder) / '00_start_here.ipynb'}")


@main.command()
@click.argument("notebook", type=click.Path())
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="A notebook parameter.")
@click.option("--out", default="runs/notebooks", show_default=True, help="Folder for the executed notebook.")
@click.option("--again", is_flag=True, help="Execute it even if it was.")
@click.option("--single-file", is_flag=True, help="Slides that need nothing beside them, to be sent.")
@click.option("--reveal", metavar="FILE", help="reveal.js-5.2.1.tgz, where there is no network to fetch it from once.")
def slides(
    notebook: str, parameters: tuple[str, ...], out: str, again: bool, single_file: bool, reveal: str | None
) -> None:
    """Make slides of a NOTEBOOK, such as a lesson, that need no network; it is executed first, unless it was."""
    from lab.ground.files import shown
    from lab.study.slides import slides as make

    made = make(notebook, parameters, Path(out), reveal=reveal, single_file=single_file, again=again)
    click.echo(
        f"{shown(made)}: arrows go through it, F fills the screen, S shows notes, ?print-pdf behind its name prints"
    )


@main.command(name="predictions")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--csv", "csv_file", metavar="FILE", help="Write a table for a spreadsheet.")
def predictions_(folder: str, csv_file: str | None) -> None:
    """What learners predicted, and how their exercises stand: from notebooks that they handed in to FOLDER."""
    from lab.ground.files import located, write_atomically
    from lab.study.predictions import gather

    found = gather(folder)
    if csv_file is None:
        return click.echo(found.to_text())
    write_atomically(located(csv_file), found.to_csv().encode("utf-8-sig"))  # with its mark, so that Excel reads UTF-8
    click.echo(f"{csv_file}: {found.answer}")


KINDS = ("methods", "presets", "models", "optimizers", "corpora", "tasks", "data", "networks", "devices", "runs")


@main.command()
@override_option
@runs_option
@click.option("--again", is_flag=True, help="Do all cells anew.")
def audit(overrides: tuple[str, ...], runs: str, again: bool) -> None:
    """Audit how well styles of drawn authors can be imitated, and who notices.

    An audit that was stopped goes on where it was. -o targets=[0,1,2], -o counts=[0,25,200], -o model.dim=64.
    """
    from lab.events import CellDone
    from lab.ground.config import given
    from lab.systems.imitation.audit import audit as do
    from lab.systems.imitation.found import Found
    from lab.systems.imitation.settings import Audit

    def tell(event: Event) -> None:
        if isinstance(event, CellDone):
            click.echo(f"{event.cell}  ({event.seconds:.0f} s)")

    with _interruptible("the same command goes on with the next cell"):
        record = do(given(Audit, overrides), runs, again=again, tell=tell)
    click.echo(Found.of(record.events).words())
    click.echo(str(record.path))


@main.command(name="list")
@click.argument("kind", required=False, metavar="[KIND]", type=click.Choice(KINDS))
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON, and nothing else.")
def list_(kind: str | None, runs: str, as_json: bool) -> None:
    """Methods, presets, models, corpora, tasks, networks, devices, and the runs that there are; or one KIND of them, a line each."""
    from lab.ground.errors import plain
    from lab.runs.index import summaries

    if as_json:
        return click.echo(json.dumps([asdict(run) for run in summaries(runs)], indent=1))
    if kind not in (None, "runs"):
        return _list(str(kind), _named(str(kind)))
    there = summaries(runs)
    for each in KINDS[:-1] if kind is None else ():
        found = _named(each)
        if each == "methods":
            _list(each, found)
        else:
            _row(f"{each:<13}", ", ".join(f"{name} ({words})" if each == "networks" else name for name, words in found))
    _row(f"runs in {plain(runs)}/", "" if there else ": none yet")
    for run in there:
        _row(f"  {plain(run.run):<32} ", plain(_in_short(run), 400))


def _list(kind: str, found: list[tuple[str, str]]) -> None:
    click.echo(kind)
    for name, words in found:
        _row(f"  {name:<16} " if words else f"  {name}", words)


def _named(kind: str) -> list[tuple[str, str]]:
    """What a recipe can name, and a few words on it each; also what installed packages offer, of which nothing is imported for that."""
    from lab.costs.network import DEVICES, NETWORKS, described
    from lab.data import CORPORA
    from lab.data.tasks import TASKS, registry
    from lab.engine.optim import ELEMENTWISE
    from lab.methods import METHODS, declared
    from lab.models.registry import MODELS
    from lab.recipes.presets import PRESETS, in_words
    from lab.recipes.recipe import SIZES

    match kind:
        case "methods":
            ours = sorted(METHODS.items(), key=lambda item: declared(item[1]).server)
            return [
                (name, _first_line(sys.modules[cls.__module__]) or _first_line(cls)) for name, cls in ours
            ] + _offered(kind, METHODS)
        case "models":
            sizes = [
                (name, f"{type(size).__name__}: {sum(size.num_params(256)):,} parameters for 256 tokens")
                for name, size in SIZES.items()
            ]
            return sizes + [(name, _first_line(cls)) for name, cls in MODELS.items()] + _offered(kind, MODELS)
        case "data":
            return [(name, _first_line(make)) for name, make in registry.TASKS.items()] + _offered(
                "tasks", registry.TASKS
            )
        case "networks":
            return [(name, described(net)) for name, net in NETWORKS.items()]
        case "presets":
            return [(name, in_words(name)) for name in PRESETS]
        case "tasks":
            return [(f"task:{name}", "") for name in TASKS]
    of: dict[str, Any] = {"optimizers": ELEMENTWISE, "corpora": CORPORA, "devices": DEVICES}
    return [(name, "") for name in of[kind]]


def _offered(kind: str, known: Container[str]) -> list[tuple[str, str]]:
    """What packages have under a name in their entry points, and where."""
    from lab.ground.config.references import offered

    return [
        (name, f"{where}, of package {package}")
        for name, where, package in offered(f"isthmus.{kind}")
        if name not in known
    ]


def _first_line(of: object) -> str:
    return (of.__doc__ or "").strip().partition("\n")[0]


def _row(head: str, text: str) -> None:
    """A line that is not wider than the terminal; elsewhere, and for whoever reads it with a program, one line."""
    line, width = head + text, terminal_width()
    if width is not None:
        indent = " " * (len(head) if width - len(head) >= 40 else 4)
        line = textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)
    click.echo(line)


def terminal_width() -> int | None:
    """Columns of the terminal that is written to; None where it is a file or a program."""
    return max(20, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _in_short(run: Summary) -> str:
    """Where a run stands: status, what it trains on what, steps, last validation loss, bytes; what is special about it; its name."""
    from lab.costs.network import human
    from lab.runs.index import as_options

    if run.status == "damaged":
        return f"{run.status:<12}{run.problem}"
    done = f"{run.step:,} of " if run.step not in (None, run.steps) else ""
    words = f"{run.status:<12}{run.model} on {run.data}, {done}{run.steps:,} steps"
    words += "" if run.loss is None else f", validation loss {run.loss:.4f}"
    words += f", sent {human(run.payload_bytes)}" if run.payload_bytes else ""
    words += f" ({human(run.own_payload_bytes)} itself)" if run.origin and run.own_payload_bytes is not None else ""
    options = as_options(run.differs)
    if options:
        more = f" and {len(options) - SPECIAL} more" if len(options) > SPECIAL else ""
        words += f" · {run.preset} with {' '.join(options[:SPECIAL])}{more}" if run.preset else ""
    words += f" · forked from {run.origin} after step {run.forked:,}" if run.origin else ""
    return words + (f' · "{run.name}"' if run.name else "")


if __name__ == "__main__":
    main()
