"""The one who imitates: a small model of the lab that has read all other authors, fine-tuned on a few messages, and what it then writes.

The pipeline is Panza's (arXiv 2407.10994), reduced: pairs of what to write about and the message, cross entropy on the message alone, sampled
text by text. It is trained as any run of the lab is, by recipes.

Legend: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn

from lab.data.tasks.authors import Message
from lab.data.tasks.data import Encoder
from lab.data.tasks.examples import Example
from lab.ground.config import Count, Positive, config
from lab.ground.errors import RecipeError
from lab.ground.files import write_atomically
from lab.ground.seeds import generator
from lab.ground.seeds.surroundings import one_core
from lab.models.abbie import Past
from lab.models.gpt import GPTModule
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from lab.systems.imitation.watermark import Watermark

Way = Literal["lora", "full"]
PRINTABLE = 32  # bytes below are no text, but for the end of a line
TARGETS = ("attention.qkv", "attention.out", "mlp.0", "mlp.2")  # all linear maps of a GPT


@config
class Model:
    """The model that reads and writes, and how it is trained.

    dim, num_layers, num_heads
        of a GPT over bytes.
    steps, batch_size, lr
        of reading all other authors: AdamW, both halves of a batch at workers of their own (`lab.methods.ddp`), cosine schedule.
    epochs, most, least
        of fine-tuning: times that all messages are gone through, in batches of ``batch_size``, and the steps that are taken at most and at
        least. Panza takes 5 epochs of a model with billions of parameters; a small one needs more to learn a habit [inferred].
    rank
        of LoRA, in all linear maps.
    lora_lr, full_lr
        of the two ways of fine-tuning.
    """

    dim: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    steps: Count = 600
    batch_size: Count = 16
    lr: Positive = 3e-3
    epochs: Count = 12
    most: Count = 100
    least: Count = 20
    rank: Count = 4
    lora_lr: Positive = 5e-3
    full_lr: Positive = 1e-3


@config
class Sampling:
    """How text is drawn: the logits by ``temperature``, of the ``top_k`` likeliest bytes, and of these the likeliest with a mass of ``top_p``.

    The first two are Panza's, for tokens that are words; its top-p of 0.7 would leave bytes almost no choice [inferred].
    """

    temperature: Positive = 0.7
    top_k: Count = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, eq=False)
class Trained:
    """A model, and what making it has cost: seconds of CPU time of this process, and messages that were read."""

    model: GPTModule
    cpu_seconds: float
    messages: int


def _recipe(model: Model, data: dict[str, Any], steps: int, lr: float, seed: int) -> dict[str, Any]:
    return {
        "method": {
            "name": "ddp",
            "inner": {"name": "AdamW", "lr": lr, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}},
        },
        "model": {"dim": model.dim, "num_layers": model.num_layers, "num_heads": model.num_heads},
        "data": {"name": "authors", **data},
        "num_workers": 2,
        "batch_size": max(1, model.batch_size // 2),
        "steps": steps,
        "schedule": {"kind": "cosine", "warmup": min(20, steps // 4)},
        "eval_every": 0,
        "checkpoint_every": 0,
        "seed": seed,
    }


def base_recipe(model: Model, data: dict[str, Any], targets: Sequence[int], seed: int) -> Recipe:
    """Of the base, which reads everybody but those who are to be imitated."""
    return Recipe.of(_recipe(model, {**data, "without": list(targets)}, model.steps, model.lr, seed))


def tuned_recipe(
    model: Model, data: dict[str, Any], author: int, num: int, way: Way, seed: int, start: str | Path
) -> Recipe:
    """Of fine-tuning the base (the file ``start``) on the first ``num`` messages of an author; two at least, one for each worker."""
    if num < 2:
        raise RecipeError(f"{num} messages to fine-tune on: give 2 or more, or take the base itself")
    per_epoch = -(-num // model.batch_size)
    steps = min(max(model.epochs * per_epoch, model.least), model.most)
    chosen = {**data, "only": [author], "first": num}
    made = _recipe(model, chosen, steps, model.lora_lr if way == "lora" else model.full_lr, seed)
    lora = {"lora": {"ranks": [model.rank], "targets": list(TARGETS)}} if way == "lora" else {}
    return Recipe.of(made | lora | {"start": str(start)})


def trained(recipe: Recipe, messages: int = 0) -> Trained:
    """Run a recipe to its end; the agreed model in eval mode."""
    began = time.process_time()
    trainer = Trainer(recipe)
    for _ in trainer.events():
        pass
    model = trainer.fleet.whole_model(trainer.agreed())
    trainer.fleet.close()
    return Trained(_as_gpt(model), time.process_time() - began, messages)


def _as_gpt(model: nn.Module) -> GPTModule:
    if not isinstance(model, GPTModule):
        raise RecipeError(f"{type(model).__name__} does not write text byte by byte here: use a GPT")
    return model.eval()


def keep(model: nn.Module, file: Path) -> Path:
    """Write the parameters of a base, by name, for recipes that begin with them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, save({name: p.detach().contiguous() for name, p in model.named_parameters()}))
    return file


def continued(model: GPTModule, ids: Tensor, past: Past) -> Tensor:
    """Logits ``[B, T, V]`` of T further tokens after those that ``past`` (at first ``Past()``) has seen; it grows by them."""
    here = slice(past.num_tokens, past.num_tokens + ids.shape[1])
    x = F.embedding(ids, model.embedding)
    cos, sin = model.cos[here].to(x.dtype), model.sin[here].to(x.dtype)
    for block in model.blocks:
        x = x + past.attend(block.attention, block.attention_norm(x), cos, sin)  # type: ignore[operator, arg-type]
        x = x + block.mlp(block.mlp_norm(x))  # type: ignore[operator]
    past.turn_(ids.shape[1])
    return F.linear(model.norm(x), model.embedding)


def kept(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits ``[B, V]`` as they are drawn from: −∞ where a byte is not among those that `Sampling` leaves."""
    logits = logits / sampling.temperature
    logits[:, :PRINTABLE] = logits[:, :PRINTABLE].where(_allowed(logits)[:PRINTABLE], -torch.inf)
    order = logits.sort(1, descending=True)
    mass = order.values.softmax(1)
    out = mass.cumsum(1) - mass >= sampling.top_p  # before it the mass is there already
    out[:, sampling.top_k :] = True
    out[:, 0] = False
    return logits.masked_fill(out.scatter(1, order.indices, out), -torch.inf)


def _allowed(logits: Tensor) -> Tensor:
    """Bool ``[V]``: the end of a text and of a line, and all that can be printed."""
    index = torch.arange(logits.shape[1])
    return (index >= PRINTABLE) | (index == 0) | (index == ord("\n"))


@torch.no_grad()
def sample(
    model: GPTModule,
    asked: Sequence[Message],
    encode: Encoder,
    seed: int,
    sampling: Sampling | None = None,
    mark: Watermark | None = None,
) -> list[Message]:
    """A text on each subject of ``asked``, all at once, marked as imitated, with the number of the author it is to look like.

    Prompts are of different lengths: while a row's goes on, what is drawn for it is put aside. Keys and values are kept, so that a byte
    costs one position. ``mark``: green bytes get their bias before anything is cut off.
    """
    with one_core():  # of products this small, more threads make nothing faster
        return _sampled(model, asked, encode, generator(seed, "sample"), sampling or Sampling(), mark)


def _sampled(
    model: GPTModule,
    asked: Sequence[Message],
    encode: Encoder,
    draw: torch.Generator,
    sampling: Sampling,
    mark: Watermark | None,
) -> list[Message]:
    given = encode.rows([Example(m.asked, "", "") for m in asked])
    size, ids = torch.from_numpy(given.first), torch.from_numpy(given.tokens.astype("int64"))[:, : encode.context]
    first, past, going = int(size.min()), Past(), torch.ones(len(asked), dtype=torch.bool)
    new = ids[:, :first]
    for at in range(first, encode.context):
        logits = continued(model, new, past)[:, -1].float()
        logits = torch.nan_to_num(logits, nan=0.0)  # of a model that gives none, every byte is as likely
        logits = kept(mark.biased(logits, ids[:, :at]) if mark else logits, sampling)
        drawn = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
        drawn = torch.where(going, drawn, 0)
        ids[:, at] = torch.where(at < size, ids[:, at], drawn)
        going &= (at < size) | (drawn != 0)
        new = ids[:, at : at + 1]
        if not going.any():
            break
    texts = [_text(row[n:]) for row, n in zip(ids, size.tolist(), strict=True)]
    return [m._replace(part="imitated", text=text) for m, text in zip(asked, texts, strict=True)]


def _text(ids: Tensor) -> str:
    """Bytes up to the end, or as far as the row goes."""
    written = ids.tolist()
    end = written.index(0) if 0 in written else len(written)
    return bytes(written[:end]).decode("utf-8", errors="replace")
