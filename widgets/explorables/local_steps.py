"""Local steps and drift: how long may workers go without talking?

Local SGD (McMahan et al. 2017; Stich 2019) with AdamW, which stays at the workers: the same seed with every period K, from stored
runs. What is drawn is the fold of `widgets.drift.Drift`, bytes are those of the ledger, the loss is that of the averaged model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from lab.costs.network import human
from lab.engine.ledger import Ledger
from lab.events import Evaluated, Event, Sent, Started
from lab.recipes.recipe import Recipe
from widgets.boards import Board
from widgets.drift import Drift
from widgets.explorables.explorable import Explorable
from widgets.explorables.pieces import Exercise, Place, Prediction, Slip, loss_against, loss_difference
from widgets.explorables.stored_runs import events_of
from widgets.graphs import Dot, Graph, Link
from widgets.pictures import Lines, Series

NAME = "local_steps"
EVERY = (1, 2, 4, 8, 16, 32)
STEPS, WORKERS = 128, 4
FLOAT32 = 4  # bytes of a number
AROUND = ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5))  # where each worker would be at the largest distance
NAMED = 0.2  # of the largest distance: from there on a worker's dot has its number
ASKED = (4, 16)  # periods that the prediction compares
FACTORS = {
    "hardly farther": 1.0,
    "about twice as far": 2.0,
    "about four times as far": 4.0,
    "about eight times as far": 8.0,
}


def recipe_of(every: int) -> Recipe:
    return Recipe.of(
        {
            "model": "nano",
            "corpus": "stdlib",
            "num_workers": WORKERS,
            "batch_size": 8,
            "context": 64,
            "steps": STEPS,
            "schedule": {"kind": "constant", "warmup": 16},
            "eval_every": 1,
            "eval_windows": 16,
            "checkpoint_every": 0,
            "method": {"name": "local_sgd", "sync_every": every},
        }
    )


def recipes() -> list[Recipe]:
    return [recipe_of(every) for every in EVERY]


@dataclass(frozen=True)
class Run:
    """A stored run in numbers."""

    every: int
    events: list[Event]

    @classmethod
    def of(cls, every: int) -> Run:
        return cls(every, events_of(NAME, recipe_of(every)))

    @cached_property
    def view(self) -> Drift:
        return Drift.of(self.events)

    @property
    def num_params(self) -> int:
        return next(e.num_params for e in self.events if isinstance(e, Started))

    @cached_property
    def sent_bytes(self) -> int:
        """Payload of one worker in the whole run."""
        return Ledger(e for e in self.events if isinstance(e, Sent)).total_bytes(0)

    @cached_property
    def loss(self) -> float:
        """Of the averaged model, after the last average."""
        return [e.loss for e in self.events if isinstance(e, Evaluated)][-1]

    @property
    def apart(self) -> float:
        """Distance from the mean just before an average: the mean of those in the second half of the run."""
        looks = zip(self.view.step.values, self.view.to_mean.all.values, strict=True)
        before = [float(d) for t, d in looks if t % self.every == 0 and t > STEPS // 2]
        return sum(before) / len(before)


def payload_bytes(num_params: int, steps: int, every: int) -> int:
    """What a worker hands over: all its parameters, whenever a period is full."""
    return FLOAT32 * num_params * (steps // every)


def explorable() -> Explorable:
    runs = [Run.of(every) for every in EVERY]
    by_period = {run.every: run for run in runs}
    farther = by_period[ASKED[1]].apart / by_period[ASKED[0]].apart
    return Explorable(
        name=NAME,
        title="How long may workers go without talking?",
        question="Four workers train one model over a narrow link: what is lost if they average only now and then?",
        prediction=Prediction(
            f"They average every {ASKED[0]} steps. Now they do so every {ASKED[1]}, which takes a quarter of the bytes. How far apart "
            "are the workers just before an average, compared with before?",
            list(FACTORS),
            min(FACTORS, key=lambda words: abs(math.log(FACTORS[words] / farther))),
            f"With {ASKED[1]} steps between averages they are {farther:.2g} times as far apart as with {ASKED[0]}.",
        ),
        sentence="If the four average {dragged}, each of them hands over {bytes} in {steps} steps. Just before an average they are {apart} from "
        "their mean, on average over the second half of the run, and the model that they agree on ends with a loss of {loss}. Against an average in every step that is {less}, {farther}, and "
        "{worse}.",
        dragged="local steps between two averages",
        places=[_place(run, runs) for run in runs],
        start=EVERY.index(16),
        moment="local step",
        why=_why(by_period, farther),
        exercise=_exercise(),
        further=[
            ("Local SGD: what it sends, its options, its traps", "docs/methods/local_sgd.md"),
            ("DiLoCo: the same bytes, with an outer momentum", "docs/methods/diloco.md"),
            (
                "DES-LOC: every optimizer state on a period of its own (arXiv 2505.22549)",
                "https://arxiv.org/abs/2505.22549",
            ),
            ("Local SGD converges fast and communicates little (arXiv 1805.09767)", "https://arxiv.org/abs/1805.09767"),
        ],
        made_of=f"From {len(runs)} stored runs of one seed: {WORKERS} workers, a model of {runs[0].num_params:,} numbers that "
        f"reads the source text of Python's standard library, {STEPS} steps. Distances are root mean squares over the model's numbers; the loss is in nats per byte of text that was not "
        "trained on: minus the natural logarithm of the probability that the model gave to the byte that came. Payload is what workers hand over, without what a link adds.",
    )


def _place(run: Run, runs: list[Run]) -> Place:
    first, k = runs[0], run.every
    numbers = {
        "bytes": human(run.sent_bytes),
        "steps": f"{STEPS}",
        "apart": f"{run.apart:.3g}",
        "loss": f"{run.loss:.3f}",
        "less": "the same bytes" if k == 1 else f"{first.sent_bytes / run.sent_bytes:.3g} times fewer bytes",
        "farther": "the same distance" if k == 1 else f"{run.apart / first.apart:.2g} times the distance",
        "worse": loss_against(run.loss, first.loss),
    }
    farthest = max(max(d.values) for other in runs for d in other.view.to_mean.each_W)
    steps = [int(t) for t in run.view.step.values]
    value = "every step" if k == 1 else f"every {k} steps"
    moments = {f"step {t}": _board(run, runs, t, farthest) for t in steps[1::2]}
    return Place(value, numbers, moments)


def _board(run: Run, runs: list[Run], t: int, farthest: float) -> Board:
    """What is to be seen after local step ``t``."""
    row = run.view.step.values.tolist().index(t)
    apart_W = [float(d[row]) for d in run.view.to_mean.each_W]
    since = (t - 1) % run.every + 1
    last = "the last average" if t > run.every else "the start"
    where = "an average follows" if since == run.every else f"{since} of {run.every} steps since {last}"
    says = f"Step {t}: {where}; the workers are {float(run.view.to_mean.all[row]):.2g} from their mean."
    return Board(
        "Away from each other, and back", [_around(apart_W, farthest), _apart(run, t, farthest), _paid(run, runs)], says
    )


def _around(apart_W: list[float], farthest: float) -> Graph:
    dots, links = [Dot(0.5, 0.5, "the mean of all")], list[Link]()
    for w, (apart, (x, y)) in enumerate(zip(apart_W, AROUND, strict=True)):
        share = apart / farthest
        at = (round(0.5 + (x - 0.5) * share, 3), round(0.5 + (y - 0.5) * share, 3))
        label = [str(w)] if share > NAMED else []  # nearer, four labels would lie on one another
        dots.append(Dot(*at, f"worker {w}: {apart:.2g} from the mean", label=label, below=y == 0.5))
        links.append(Link("distance from the mean", [(0.5, 0.5), at]))
    words = "In the middle is their mean. Directions only tell the four apart; lengths are to scale."
    return Graph("Where are the workers now?", words, dots, links, "", radius=5, square=True)


def _apart(run: Run, t: int, farthest: float) -> Lines:
    view = run.view
    thin = [Series(f"worker {w}", view.step, d, faint=True, colour=0) for w, d in enumerate(view.to_mean.each_W)]
    line = Series("all (thin: each)", view.step, view.to_mean.all, colour=0)
    hover = "{name}, step {x}: {y}\nRoot mean square over parameters, before an average if there is one"
    return Lines(
        "How far apart are they?",
        "local step",
        "distance from the mean",
        [*thin, line],
        hover=hover,
        reach=(0.0, farthest),
        until=t,
    )


def _paid(run: Run, runs: list[Run]) -> Lines:
    every = Series("all periods", [float(r.sent_bytes) for r in runs], [r.loss for r in runs], colour=6)
    here = Series("this one", [float(run.sent_bytes)], [run.loss], colour=1)
    hover = "{name}: loss {y} for {x}"
    return Lines(
        "What does the loss cost?",
        "payload of a worker, bytes",
        "loss at the end",
        [every, here],
        log_x=True,
        hover=hover,
    )


def _why(by_period: dict[int, Run], farther: float) -> list[str]:
    one, rare = by_period[1], by_period[max(by_period)]
    params = one.num_params
    each = FLOAT32 * params
    lowest = min(by_period.values(), key=lambda run: run.loss)
    most = max(by_period.values(), key=lambda run: run.loss)
    return [
        f"<b>Bytes.</b> Between two averages nothing travels. At an average each worker hands over its whole copy once: {params:,} numbers of "
        f"{FLOAT32} bytes, {human(each)}. In {STEPS} steps with a period of K there are {STEPS} ∕ K averages, so K divides the bytes, and nothing "
        "else does: not the number of workers, not how long a step takes.",
        "<b>Drift.</b> Every worker starts from the same average and then follows the gradients of its own text. Were all its steps to go the same "
        "way, the distance after K of them would grow like K; were each of them to go anywhere, as in tossing a coin, like √K. From K = "
        f"{ASKED[0]} to {ASKED[1]} that is 4 times or 2 times; these workers came to be {farther:.2g} times as far apart.",
        "<b>Loss.</b> An average keeps what the workers have learned in common and cancels much of what their own batches made them do. "
        "It can do that while the copies are near enough to each other that the point between them is as good as they are. "
        f"Among these runs the lowest loss, {lowest.loss:.3f}, is that of K = {lowest.every}, and the highest, {most.loss:.3f}, that of "
        f"K = {most.every}. It is one run each: small differences are luck, which is why the notebooks of the lab compare several seeds.",
        f"<b>So:</b> from K = 1 to K = {rare.every} the bytes fall {one.sent_bytes / rare.sent_bytes:.0f} times, the distance grows "
        f"{rare.apart / one.apart:.2g} times, and the loss changes by {loss_difference(rare.loss, one.loss):+.3f}.",
    ]


def _exercise() -> Exercise:
    params, workers, steps, every = 12_000_000, 5, 1000, 64
    mega = 1e6
    copy = FLOAT32 * params / mega
    right = payload_bytes(params, steps, every) / mega
    return Exercise(
        question=f"{workers} workers train a model of {params:,} numbers (float32, {FLOAT32} bytes each) for {steps:,} steps and average every {every}. "
        "How much does one worker hand over in the whole run?",
        unit="MB",
        right=right,
        slips=[
            Slip(
                copy * steps / every,
                f"{steps:,} ∕ {every} is no whole number, and what would come after the last step does not take place: round down",
            ),
            Slip(copy * -(-steps // every), "the average after the end of the run does not take place: round down"),
            Slip(
                copy * (steps // every + 1),
                "one average too many: the first comes after a whole period, not at the start",
            ),
            Slip(right * workers, "that is what all workers hand over together: the question is about one of them"),
            Slip(
                right / workers,
                "a worker hands over its whole copy, not its share of one: do not divide by the workers",
            ),
            Slip(right * 8, "that is in megabits: a byte is 8 bits, and asked are megabytes"),
            Slip(right / FLOAT32, f"so many millions of numbers travel, but each of them is {FLOAT32} bytes long"),
            Slip(copy, "that is one copy, as it travels at one average: how many averages are there"),
            Slip(copy * steps, "that is one copy in every step: nothing travels between two averages"),
            Slip(copy * every, f"{every} is how many steps lie between two averages, not how many averages there are"),
            Slip(right * 2, "what comes back is not counted: asked is what a worker hands over"),
            Slip(right * mega, "that is in bytes: asked are MB, millions of them"),
            Slip(right * mega / 2**20, "that looks like MiB: networks count in MB, millions of bytes"),
        ],
        solution=f"{steps:,} ∕ {every} has room for {steps // every} averages, and at each of them {copy:,.0f} MB travel",
        hint="how many averages are there, and how large is one copy of the model",
    )
