"""A method in the training loop of a ``transformers.Trainer``: it is the trainer's optimizer, and a callback follows the trainer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lab.ground.errors import RecipeError
from lab.runs.attached import Attached

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise RecipeError(
        "attach is for a torch.nn.Module, a list of them, or a transformers.Trainer, which needs: pip install 'isthmus[hf]'"
    ) from None


def made_ready(trainer: Any) -> Trainer:
    """A trainer whose model is left as it is when training begins: on its device and under its autocast, wrapped in nothing.

    Raises
    ------
    RecipeError
        one line for a trainer that has what does not go with this, and for what is no trainer.
    """
    if not isinstance(trainer, Trainer):
        raise RecipeError(
            f"attach is for a torch.nn.Module, a list of them (one for each worker of this process) or a transformers.Trainer, "
            f"not {type(trainer).__name__}"
        )
    args, accelerator = trainer.args, trainer.accelerator
    refused = {
        "fp16=True (a GradScaler leaves out steps of one worker and not of others): use bf16=True": accelerator.scaler
        is not None
        or args.fp16,
        "an optimizer of its own, and the method has one: leave out optimizers= and optimizer_cls_and_kwargs=": trainer.optimizer
        is not None
        or trainer.optimizer_cls_and_kwargs is not None,
        "model_init, which makes another model when training begins: give it model=": trainer.model_init is not None,
        "torch_compile=True, which makes another module of the model: leave it out": args.torch_compile,
        "auto_find_batch_size=True, which begins again in one process and not in others: give a batch size": args.auto_find_batch_size,
        "DeepSpeed or FSDP, which keep parameters in parts: use plain processes": trainer.is_deepspeed_enabled
        or trainer.is_fsdp_enabled,
        "several GPUs in one process (DataParallel): start a process for each": args.n_gpu > 1,
    }
    for what, is_there in refused.items():
        if is_there:
            raise RecipeError(f"the trainer has {what}")
    model: Any = trainer.model
    # What Accelerate does for a model that is only used: device and autocast, and no DistributedDataParallel around it …
    accelerator.prepare_model(model, evaluation_mode=True)
    # … and Accelerate's own mark for one that it has prepared, so that it does no more when training begins.
    model._is_accelerate_prepared = True
    args.average_tokens_across_devices = False  # it exchanges counts in every step, and scales losses by them
    return trainer


def follow(trainer: Trainer, sync: Attached) -> None:
    """Let a trainer that was made ready train by an attached method."""
    backward = trainer.accelerator.backward

    def noting(loss: Tensor, **options: Any) -> None:
        sync.note(loss)
        backward(loss, **options)

    trainer.optimizer = sync
    trainer.accelerator.backward = noting
    trainer.add_callback(SyncCallback(sync))


class SyncCallback(TrainerCallback):
    """What has to happen with an attached method when a trainer begins, saves and ends.

    With a folder a checkpoint of all workers goes there whenever the trainer writes its own (which has the model and the
    states of the first process), and ``resume_from_checkpoint`` goes on from both.
    """

    def __init__(self, sync: Attached):
        self.sync = sync

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sync.go_on_after(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.sync.folder is not None:
            self.sync.save()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sync.close()
