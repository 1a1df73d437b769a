"""Tasks to adapt a pre-trained model to: prompts with the completions that are wanted, dealt to workers, and their scores.

``load_task("packages", …)`` gives batches in which only the completion has targets, the samples that each worker has,
and scores of any module with ``forward(ids) -> logits``. Two tasks are made from the installed standard library; others
are data sets of the hub. `lab.runs.pretrain` pre-trains a model to start from.
"""

from lab.data.tasks.data import TaskBatches, TaskData, load_task
from lab.data.tasks.examples import TASKS, Example, task_name
from lab.data.tasks.scores import generate

__all__ = ["TASKS", "Example", "TaskBatches", "TaskData", "generate", "load_task", "task_name"]
