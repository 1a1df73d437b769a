"""Any causal language model of Hugging Face's ``transformers``, from the hub or from a folder, as a model of the lab.

Needs the extra: ``pip install 'isthmus[hf]'``. Weights are read from ``safetensors`` files alone, and code that comes with a
model is never executed. A folder that does not hold exactly the tensors of its model is refused: ``transformers`` itself would
fill what is missing with random numbers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lab.ground.config import RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds.draws import Draws, same_draws
from lab.models.files import Unreadable, check_ordinary, in_one_line, located, open_tensors, read_json
from lab.models.gpt import cross_entropy
from lab.models.shape import Shape

# While it builds or loads a model, transformers exchanges torch's functions for first values, methods of its own classes, and
# torch's default dtype, each for the whole process: two threads that do so at once can leave what the other has put there.
_LOADING = threading.RLock()

COUNTED = re.compile(
    r"(layers?|experts?|heads?|labels?|blocks|stages|depths?)$"
)  # what a config makes so many objects of
MOST_COUNTED = 4096
MOST_TENSORS = 400_000  # that a module makes while it is built: all models that there are stay far below


@config
class HF:
    """A model by its name on the hub (``HuggingFaceTB/SmolLM2-135M``) or the path of a folder with its files.

    ``start`` of the recipe stays empty: the values are those of the files. The text is to be cut by the model's own
    tokenizer: ``tokenizer=hub:<name>``, or the path of its ``tokenizer.json``.
    """

    path: str
    vocab_size: ClassVar[int | None] = None  # its own

    def check(self, recipe: RecipeView) -> None:
        """What its files say is looked at when it is built."""

    @property
    def layers_and_experts(self) -> tuple[int, int]:
        """None that could lie apart: where it has experts, every worker holds them all."""
        return 0, 0

    def build(self, vocab_size: int, context: int, seed: int = 0) -> nn.Module:
        """The module with its values in float32; under the meta device only its shapes.

        May be called in several threads at once: they load one after another, draw nothing from a global generator, and leave
        torch's default dtype at float32 where it is that (another one has to be set aside while values are loaded). Raises RecipeError where the files cannot be read, or are not those of one model.
        """
        try:
            import transformers
        except ImportError:
            raise RecipeError("models of Hugging Face need transformers: pip install 'isthmus[hf]'") from None
        dry = torch.empty(0).is_meta
        with self._one_line(), _LOADING, _silent(transformers, fetching=self.folder() is None), Draws(0):
            settings = self._settings(transformers)
            with torch.device("meta"), _BoundedBuild():
                # Shapes have no use for a dtype. With another one than torch's default, transformers would change that.
                model = transformers.AutoModelForCausalLM.from_config(
                    settings, trust_remote_code=False, dtype=torch.get_default_dtype()
                )
            self._check_use(model.config.get_text_config(), vocab_size, context)
            if not dry:
                model = self._load(transformers, settings, model)
        for part in model.modules():  # those that its config wants computed again in the backward pass, dropout and all
            if getattr(part, "gradient_checkpointing", False):
                part._gradient_checkpointing_func = functools.partial(
                    checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=same_draws
                )
        return HFModule(model.train())

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """See `lab.models.shape.Model`."""
        return self.build(shape.tokens_for("HF"), shape.context, seed)

    def floats_per_token(self, vocab_size: int) -> int:
        """A rough count of what backward keeps of a token: as of a transformer of the lab with this shape."""
        with torch.device("meta"):
            module: Any = self.build(0, 1)
        shape = module.model.config.get_text_config()
        wide = getattr(shape, "intermediate_size", None)
        wide = wide if isinstance(wide, int) else 4 * shape.hidden_size
        return int(shape.num_hidden_layers * (9 * shape.hidden_size + 3 * wide) + 2 * shape.vocab_size)

    def from_here(self) -> HF:
        """The same model with the path of its folder made absolute, so that nothing hangs on where one stands later."""
        folder = self.folder()
        return self if folder is None else replace(self, path=str(folder.absolute()))

    def folder(self) -> Path | None:
        """The folder with the files; None for a name on the hub. Raises RecipeError where it can be neither."""
        with self._one_line():
            place = located(self.path)
            if self.path and place.is_dir():
                return place
            if place.exists():
                raise Unreadable("it is no folder")
            if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path, re.ASCII):
                raise Unreadable("there is no such folder, and it is no name on the hub")
        return None

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Whatever is wrong with the files becomes one line: `transformers` and `safetensors` raise errors of every class."""
        try:
            yield
        except RecipeError:
            raise
        except Exception as error:
            try:
                advice = "use another folder" if located(self.path).exists() else "check the name"
            except Unreadable:
                advice = "check the name"
            if not isinstance(error, Unreadable) and advice == "check the name":
                advice += " and the network (this machine may be offline)"
            raise RecipeError(
                f"cannot read model {self.path[:200]!r} ({in_one_line(error)}): {advice}, or use one of the lab's own, for example "
                "model=micro"
            ) from error

    def _settings(self, transformers: Any) -> Any:
        """The model's config, after a look at what it and the folder hold."""
        folder = self.folder()
        if folder is not None:
            for file in sorted(folder.iterdir()):
                if file.exists() and not file.is_dir():
                    check_ordinary(file)
            if (folder / "adapter_config.json").exists():
                raise RecipeError(
                    f"{self.path} holds an adapter: give the model that it is for as model=hf:…, and this folder as lora.values"
                )
        place = folder or _of_the_hub(self.path)
        raw = read_json(place / "config.json")
        for key, value in _numbers(raw):
            if COUNTED.search(key) and value > MOST_COUNTED:
                raise Unreadable(f"config.json says {key} = {value:,}, more than the {MOST_COUNTED:,} of any model")
            if folder is not None and key in LAYERS and value > 200:  # so many take seconds to build, each time
                num_tensors = len(_shapes(folder))
                if 0 < num_tensors < value:
                    raise Unreadable(f"config.json says {key} = {value:,}, and its files hold {num_tensors} tensors")
        if any("/" in str(raw.get(key)) for key in ("attn_implementation", "_attn_implementation")):
            raise Unreadable("it asks for code from the hub, which the lab never executes")
        try:
            return transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise Unreadable("it needs code of its own (auto_map), which the lab never executes") from error
            raise

    def _check_use(self, settings: Any, vocab_size: int, context: int) -> None:
        """Whether text of this vocabulary and length fits."""
        known, room = settings.vocab_size, getattr(settings, "max_position_embeddings", None)
        if known < vocab_size:
            raise RecipeError(
                f"{self.path} knows {known} tokens and the text has {vocab_size}: use its own tokenizer, tokenizer=hub:{self.path} "
                "or the path of its tokenizer.json"
            )
        if room is not None and room < context:
            raise RecipeError(f"context = {context} is too long for {self.path}, which has {room} positions")

    def _load(self, transformers: Any, settings: Any, shapes: nn.Module) -> Any:
        """The model with the values of its files, which must be those of all its tensors and of no others."""
        import psutil

        need = 4 * sum(x.numel() for x in (*shapes.parameters(), *shapes.buffers()))
        free = psutil.virtual_memory().available
        if need > free:
            raise RecipeError(
                f"{self.path} needs {need / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free: use a smaller model, or "
                "`lab plan` for a dry run"
            )
        folder = self.folder()
        if folder is not None:
            asked, held = need // 4, _shapes(folder)
            if not held:
                raise Unreadable(
                    "it has no safetensors files, and others are never read: save it with safe_serialization=True"
                )
            there = sum(map(math.prod, held.values()))
            if asked > 16 * there:  # more than packing can explain; the exact comparison comes when all is in memory
                raise Unreadable(f"its config.json asks for {asked:,} numbers, and its files hold {there:,}")
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            self.path if folder is None else folder,
            config=settings,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
        )
        for name, has, needs in sorted(found["mismatched_keys"])[:1]:
            raise Unreadable(f"its files have {name} as {list(has)} and its config.json needs {list(needs)}")
        missing = sorted(found["missing_keys"])
        for name in missing[:1]:
            raise Unreadable(f"its files lack tensors of its config.json: {len(missing)}, for example {name}")
        foreign = [n for n in sorted(found["unexpected_keys"]) if _matters(model, n)]
        for name in foreign[:1]:
            raise Unreadable(
                f"its files have tensors that its config.json does not know: {len(foreign)}, for example {name}"
            )
        named, tied = dict(model.named_parameters()), dict(shapes.named_parameters())
        for name in sorted(named.keys() ^ tied.keys())[:1]:
            raise Unreadable(f"its config.json ties {name} to another tensor, and its files hold one of its own")
        for name, p in named.items():
            if not p.is_floating_point():
                raise Unreadable(f"its weights are quantised ({name}), so that they cannot be trained")
            if not torch.isfinite(p).all():
                raise Unreadable(f"{name} holds what is no finite number")
        _try_out(model)
        return model


@functools.cache
def _of_the_hub(name: str) -> Path:
    """The folder of the local copy with the config of a model on the hub: fetched once, as it is asked for many times."""
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(name, "config.json"))).parent


LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _numbers(raw: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers in a config, with the names that they have."""
    if isinstance(raw, Mapping):
        for name, value in raw.items():
            yield from _numbers(value, str(name))
    elif isinstance(raw, int) and not isinstance(raw, bool):
        yield key, raw


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in the files of a folder; none where there are no files, as a dry run needs none."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        names = set(names.values()) if isinstance(names, dict) else {None}
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise Unreadable(f"{index.name} does not say which tensor is in which file of this folder")
        files = [folder / name for name in sorted(names)]
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with open_tensors(file) as tensors:
            found |= tensors.shapes
    return found


def _matters(model: Any, name: str) -> bool:
    """Whether a tensor that the model does not know belongs to a part that it has: a further layer, a bias, a norm."""
    parts, buffers = dict(model.named_modules()), dict(model.named_buffers())
    owner = name.rpartition(".")[0]
    while owner and owner not in parts:
        owner = owner.rpartition(".")[0]
    return owner not in ("", model.base_model_prefix) and name not in buffers


@torch.no_grad()
def _try_out(model: Any) -> None:
    """Compute two sequences that differ in their last token. Raises Unreadable unless the logits before it are the same."""
    last = min(1, model.config.get_text_config().vocab_size - 1)
    logits = model.eval()(input_ids=torch.tensor([[0, 0], [0, last]]), use_cache=False).logits
    if logits.shape[:2] != (2, 2):
        raise Unreadable("it gives no logits for every token")
    leaked, scale = (logits[0, 0] - logits[1, 0]).abs().max(), logits.abs().max()
    if leaked > 1e-5 * scale:
        raise Unreadable("it looks at the tokens that it is to predict: it is no causal language model")


@contextlib.contextmanager
def _silent(transformers: Any, fetching: bool) -> Iterator[None]:
    """Without the tables and tries that transformers and its hub print: an error says in one line what is wrong. Bars only to fetch."""
    log, hub = transformers.utils.logging, logging.getLogger("huggingface_hub")
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled() and not fetching
    tries = hub.level
    log.set_verbosity(log.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    if bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        hub.setLevel(tries)
        if bars:
            log.enable_progress_bar()


class _BoundedBuild(TorchFunctionMode):
    """Stops a build that makes more tensors than any model has: a config can ask for a day's worth of them."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:
            self.made += 1
            if self.made > MOST_TENSORS:
                raise Unreadable(f"its config.json asks for more than {MOST_TENSORS:,} tensors")
        return func(*args, **(kwargs or {}))


class HFModule(nn.Module):
    """``forward(ids [B, T]) -> logits [B, T, V]``; ``loss(ids, targets)`` is the mean cross entropy in nats per token."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    def with_hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer gives (of most architectures, Llama's and GPT-2's among them, after the last norm), ``[B, T, D]``, and the logits."""
        found = self.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        return found.hidden_states[-1], found.logits

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(self(ids), targets)

    criterion = staticmethod(cross_entropy)

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        if "norm" in name or "ln_" in name:
            return "norm"
        return next((part for part in ("embed", "attn", "mlp", "head") if part in name), "other")
