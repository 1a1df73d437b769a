"""MLflow: where ``MLFLOW_TRACKING_URI`` says, by default the database ``mlflow.db``; ``mlflow ui`` shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
TAG = "isthmus.run"  # of its runs: the name here
MOST_METRICS = 1000  # at a time: MLflow's own limit
MOST_PARAMS = 100
MOST_CHARACTERS = 6000  # of a parameter
EVERY_SECONDS = 2.0  # values are written together, as every write is a transaction


class Mlflow:
    """``experiment``: the name of the one that runs are filed under."""

    def __init__(self, experiment: str):
        self.experiment = experiment
        self._waiting: list[Metric] = []
        self._written = 0.0

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        self.client = MlflowClient()
        experiment = self.client.get_experiment_by_name(self.experiment)
        number = experiment.experiment_id if experiment is not None else self.client.create_experiment(self.experiment)
        there = self.client.search_runs([number], f"tags.`{TAG}` = '{name}'", max_results=1) if resume else []
        if there:
            self.id = there[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return max((m.step for m in self.client.get_metric_history(self.id, "seconds/step")), default=0)
        self.id = self.client.create_run(number, run_name=name, tags={TAG: name}).info.run_id
        params = [Param(key, value[:MOST_CHARACTERS]) for key, value in _flat(recipe)]
        for k in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.id, params=params[k : k + MOST_PARAMS])
        return 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = time.time()
        if len(self._waiting) + len(values) > MOST_METRICS:  # a step is written as a whole
            self._write()
        self._waiting += [Metric(name, value, int(now * 1000), step) for name, value in values.items()]
        if now > self._written + EVERY_SECONDS:
            self._write()

    def note(self, text: str, step: int, warning: bool) -> None:
        self.client.set_tag(self.id, f"{'warning' if warning else 'knobs'}.{step}", text)

    def finish(self, status: str) -> None:
        self._write()
        self.client.set_terminated(self.id, STATUS[status])

    def _write(self) -> None:
        for k in range(0, len(self._waiting), MOST_METRICS):
            self.client.log_batch(self.id, metrics=self._waiting[k : k + MOST_METRICS])
        self._waiting.clear()
        self._written = time.time()


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """``{"a": {"b": 1}}`` → ``[("a.b", "1")]``: MLflow's parameters are texts by name."""
    out: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            out += _flat(value, f"{before}{name}.")
        else:
            out.append((f"{before}{name}", value if isinstance(value, str) else json.dumps(value)))
    return out


def made(place: str) -> Mlflow:
    return Mlflow(place)
