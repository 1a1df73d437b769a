"""Tasks: text to adapt a pre-trained model to, and examples of any other kind with their classes or numbers.

Text: ``load_task("packages", …)`` gives batches in which only the completion has targets, the samples that each worker has,
and scores of any module with ``forward(ids) -> logits``. Two tasks are made from the installed standard library; others
are data sets of the hub. `lab.runs.pretrain` pre-trains a model to start from.

Tensors: `lab.data.tasks.task.Task` says what a task is, `lab.data.tasks.tensors` has one for classes and one for numbers, and
`lab.data.tasks.registry` those that have a name. To add one: a file here with `task` above its function.
"""

import importlib
import pkgutil

from lab.data.tasks.data import TaskBatches, TaskData, load_task
from lab.data.tasks.examples import TASKS, Example, task_name
from lab.data.tasks.scores import generate

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["TASKS", "Example", "TaskBatches", "TaskData", "generate", "load_task", "task_name"]
