"""A run as one tidy table: a row for each local step, a column for each thing that was measured. For pandas, CSV and Parquet.

==========================  ========  ===================================================================================
column                      type      what, and its unit
==========================  ========  ===================================================================================
``step``                    int64     local step, counted from 1; 0 is what was seen before the first
``loss``                    float64   mean over the workers that were up, as the task counts it (text: nats per token)
``loss_worker_2``           float64   of each worker
``num_up``                  Int64     workers that took part
``lr_factor``               float64   what multiplied the learning rates: schedule and knob
``seconds``                 float64   wall clock of the step in the first process
``tokens``                  int64     of all workers since the start, up to and with this step; of a task beyond text ``examples``
``sent_bytes``              int64     payload of all workers in this step; ``sent_bytes_params`` and so on by state
``payload_bytes``           int64     payload of all workers since the start
``network_seconds``         float64   with a network: since the start, as it would have gone on it; ``joules`` likewise, with energy
``validation_loss``         float64   of the agreed model, as the task counts it; ``validation_accuracy`` and other scores
``drift_to_mean``           float64   root mean square over parameters and workers, before an average; ``drift_to_shared``
``drift_after_average``     float64   likewise, when the agreed model was evaluated
``clients_accuracy_mean``    float64   over clients, on what each holds out; ``…_worst_tenth``, ``clients_own_…`` with what each keeps
``updates_clipped``         float64   share of clients whose update was cut; ``updates_norm`` is the median before that, ``privacy_epsilon`` what is spent
``alignment_cosine`` …      float64   metrics that the recipe asks for; where they are lists, ``…_0``, ``…_1``
``knob_lr`` …               string    JSON of what a knob was set to, in the first step in which it counts
``warning``                 string    what the run warned of; several in one step on lines of their own
==========================  ========  ===================================================================================

What was not measured in a step is null. ``frame.attrs`` has the recipe (``recipe``), how the run ended (``status``) and the unit of each
column (``units``); Parquet keeps them, CSV does not.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lab.events import Adapted, ClientsScored, Clipped, Drifted, Ended, KnobChanged, Measured, Sent, Started, Warned
from lab.ground.errors import RecipeError, one_of
from lab.ground.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

Values = dict[str, Any]
TEXTS = ("knob_", "warning")  # columns of texts, by how their names begin
UNITS = {
    "step": "local steps",
    "num_up": "workers",
    "lr_factor": "factor",
    "seconds": "seconds",
    "network_seconds": "seconds",
    "joules": "joules",
    "tokens": "tokens",
    "examples": "examples",
    "payload_bytes": "bytes",
    "knob_": "JSON",
    "warning": "text",
    "loss": "as the task counts it",
    "validation_loss": "as the task counts it",
    "sent_bytes": "bytes",
    "drift_": "as the parameters",
}  # by how a name begins; of other columns: as the metric or the score has it


class Folded(Protocol):
    """What a table is made of: `lab.runs.columns.Columns`, which says what each of them is."""

    started: Started | None
    ended: Ended | None
    step: list[int]
    loss_W: list[list[float | None]]
    lr: list[float]
    seconds: list[float]
    eval_step: list[int]
    eval_loss: list[float]
    drift: list[float]
    scores: list[dict[str, float]]
    drifted: list[Drifted]
    turned: list[KnobChanged]
    warnings: list[Warned]
    clients_scored: list[ClientsScored]
    clipped: list[Clipped]
    adapted: list[Adapted]
    measured: list[Measured]

    @property
    def sent(self) -> Sequence[Sent]: ...


def frame(run: Folded, priced: Mapping[str, Mapping[int, float]] | None = None) -> pd.DataFrame:
    """The table of a run, finished or not. ``priced``: further columns, values by step."""
    import pandas as pd

    rows: dict[int, Values] = {step: {} for step in run.step}
    for step, values in _seen(run):
        rows.setdefault(step, {}).update(values)
    steps = sorted(rows)
    place = {step: i for i, step in enumerate(steps)}
    columns: dict[str, Any] = {"step": np.array(steps, dtype=np.int64)}
    columns |= _of_steps(run, place)
    columns |= _bytes(run.sent, place)
    for name, by_step in (priced or {}).items():
        columns[name] = np.array([by_step.get(step, 0.0) for step in steps], dtype=float)
    seen: dict[str, Any] = {}
    for step in steps:
        for name, value in rows[step].items():
            if name not in seen:
                seen[name] = [None if name.startswith(TEXTS) else math.nan] * len(steps)
            seen[name][place[step]] = value
    for name in sorted(seen, key=_order):
        columns[name] = pd.array(seen[name], dtype="string") if name.startswith(TEXTS) else seen[name]
    table = pd.DataFrame(columns)
    table["num_up"] = table["num_up"].astype("Int64")
    table.attrs = {
        "recipe": run.started.recipe if run.started is not None else None,
        "status": run.ended.status if run.ended is not None else "unfinished",
        "units": {name: unit(name) for name in table.columns},
    }
    return table


def unit(column: str) -> str:
    """The unit of a column, by its name."""
    found = [name for name in UNITS if column.startswith(name)]
    return UNITS[max(found, key=len)] if found else "as the metric or score has it"


def _order(column: str) -> int:
    """Of what there is in some steps only: evaluations first, then other numbers, then texts."""
    begins = [name for name in ("validation_", "drift_", *TEXTS) if column.startswith(name)]
    return {"validation_": 0, "drift_": 1, "knob_": 3, "warning": 4}[begins[0]] if begins else 2


def _of_steps(run: Folded, place: Mapping[int, int]) -> dict[str, np.ndarray]:
    """The columns of what there is in every finished local step."""
    num_workers = int(run.started.recipe["num_workers"]) if run.started is not None else 0
    names = ["loss", *(f"loss_worker_{w}" for w in range(num_workers)), "num_up", "lr_factor", "seconds"]
    out = {name: np.full(len(place), math.nan) for name in names}
    seen, of_one = np.zeros(len(place), dtype=np.int64), 0
    if run.started is not None and num_workers:
        of_one = run.started.tokens_per_step // num_workers
    for step, loss_W, lr, seconds in zip(run.step, run.loss_W, run.lr, run.seconds, strict=True):
        i, up = place[step], [x for x in loss_W if x is not None]
        if up:
            out["loss"][i] = sum(up) / len(up)
        for w, x in enumerate(loss_W):
            if x is not None:
                out[f"loss_worker_{w}"][i] = x
        out["num_up"][i], out["lr_factor"][i], out["seconds"][i] = len(up), lr, seconds
        seen[i] = of_one * len(up)
    counted = run.started.counted if run.started is not None else "tokens"
    return out | {counted: seen.cumsum()}


def _bytes(sent: Sequence[Sent], place: Mapping[int, int]) -> dict[str, np.ndarray]:
    """The columns of what was sent, whole numbers."""
    by_state: dict[str, np.ndarray] = {}
    for record in sent:
        if record.state not in by_state:
            by_state[record.state] = np.zeros(len(place), dtype=np.int64)
        by_state[record.state][place[record.step]] += record.bytes_all
    together = sum(by_state.values(), np.zeros(len(place), dtype=np.int64))
    states = {f"sent_bytes_{state}": numbers for state, numbers in by_state.items()}
    return {"sent_bytes": together, **states, "payload_bytes": together.cumsum()}


def _seen(run: Folded) -> Iterator[tuple[int, Values]]:
    """What there is in some steps only, as (step, values by column)."""
    for step, loss, drift, scores in zip(run.eval_step, run.eval_loss, run.drift, run.scores, strict=True):
        yield step, {"validation_loss": loss, **{f"validation_{k}": v for k, v in scores.items()}}
        yield step, {"drift_after_average": drift}
    for looked in run.drifted:
        both = {"drift_to_mean": rms(looked.to_mean_W), "drift_to_shared": rms(looked.to_shared_W)}
        yield looked.step, {name: x for name, x in both.items() if x is not None}
    for by_client in run.clients_scored:
        yield by_client.step, dict(over_clients(by_client))
    for cut in run.clipped:
        yield cut.step, dict(of_updates(cut))
    for adapted in run.adapted:
        yield adapted.step, dict(of_adapted(adapted))
    for event in run.measured:
        yield event.step, {name.replace("/", "_"): x for name, x in measured(event) if x is not None}
    for turned in run.turned:
        yield turned.step, {f"knob_{turned.knob}": json.dumps(turned.value)}
    texts: dict[int, list[str]] = {}
    for warned in run.warnings:
        texts.setdefault(warned.step, []).append(warned.message)
    yield from ((step, {"warning": "\n".join(lines)}) for step, lines in texts.items())


def over_clients(event: ClientsScored) -> Iterator[tuple[str, float]]:
    """What is to be followed of a distribution over clients: ``clients_loss_mean``, ``clients_own_loss_worst_tenth``."""
    for kind, by_score in (("", event.shared), ("own_", event.own)):
        for score, about in by_score.items():
            yield from (
                (f"clients_{kind}{score}_{what}", about[what]) for what in ("mean", "worst_tenth") if what in about
            )


def of_updates(event: Clipped) -> Iterator[tuple[str, float]]:
    """What is to be followed of updates that are clipped."""
    yield "updates_clipped", event.share
    if event.norms:
        yield "updates_norm", event.norms[2]
    if event.epsilon is not None:
        yield "privacy_epsilon", event.epsilon


def of_adapted(event: Adapted) -> Iterator[tuple[str, float]]:
    """Means over clients, ``adapted_ewc_accuracy``, and how many would be better off alone, ``underperformers_ewc_accuracy``."""
    of_all = {way: event.before_C if way == "none" else event.after_C[way] for way in event.ways} | {
        "local": event.local_C
    }
    for way, by_score in of_all.items():
        for score, values in by_score.items():
            known = [x for x in values if x is not None]
            if known:
                yield f"adapted_{way}_{score}", sum(known) / len(known)
            if event.relative_C(way, score) if way != "local" else ():
                yield f"underperformers_{way}_{score}", event.underperformers(way, score)


def rms(values_W: Sequence[float | None]) -> float | None:
    """Root mean square over the workers that have a value; None where none has."""
    up = [x for x in values_W if x is not None]
    return math.sqrt(sum(x * x for x in up) / len(up)) if up else None


def measured(event: Measured) -> Iterator[tuple[str, float | None]]:
    """The numbers of a metric by name: ``alignment/cosine``, or of a list with several ``gradients/norm/0``, ``gradients/norm/1``."""
    for key, values in event.values.items():
        if len(values) == 1:
            yield f"{event.metric}/{key}", values[0]
        else:
            yield from ((f"{event.metric}/{key}/{i}", x) for i, x in enumerate(values))


# --- files -----------------------------------------------------------------------------------------------------------

FORMATS = (".csv", ".parquet")


def to_csv(table: pd.DataFrame) -> str:
    """Numbers as they read back bit for bit, null as nothing."""
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def write(table: pd.DataFrame, file: Path) -> None:
    """Write a table as the ending of the file's name says, ``.csv`` or ``.parquet``: the whole file or none.

    Raises
    ------
    RecipeError
        for another ending, or where the file cannot be written.
    """
    if file.suffix not in FORMATS:
        raise RecipeError(one_of("ending of a table's name", file.suffix, FORMATS))
    if file.suffix == ".csv":
        data = to_csv(table).encode()
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        data = buffer.getvalue()
    try:
        write_atomically(file, data)
    except OSError as error:
        raise RecipeError(
            f"cannot write {file} ({error.strerror or error}): give a name in a folder that there is"
        ) from None
