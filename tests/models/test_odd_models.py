"""Model folders, adapters and value files that are wrong in every way that could be thought of: each ends in one line.

What is not wrong enough to be refused has to work. Folders are made here; nothing is fetched.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.ground.errors import LabError, RecipeError
from lab.models.gpt import GPT
from lab.models.hf import HF
from lab.models.lora import LoRA, adapt_
from lab.models.peft import load_adapter_
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet
from lab.runs.start import start_values_

transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'isthmus[hf]'")

pytestmark = pytest.mark.timeout(60)  # none may hang; each takes well under a second on a quiet machine

LLAMA = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
COUNT = int(os.environ.get("ISTHMUS_FUZZ", "24"))  # damaged folders; a quarter as many of models, which take longer
IDS = torch.randint(64, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd") / "llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(path)
    return path


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def one_line(error: LabError) -> str:
    """A message for a person: short, printable, on one line."""
    text = str(error)
    assert len(text) < 700
    assert text.isprintable()
    return text


def build(path: object) -> str | None:
    """What is said of a folder, None if it can be used; on the meta device no more may be found than with values."""
    try:
        with torch.device("meta"):
            HF(str(path)).build(10, 8)
        dry = None
    except RecipeError as error:
        dry = one_line(error)
    try:
        module: Any = HF(str(path)).build(10, 8).eval()
        assert torch.isfinite(module.loss(IDS % 10, IDS % 10))
    except RecipeError as error:
        return one_line(error)
    assert dry is None, dry
    return None


def set_(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "value", ["", "not json", "[]", "5", "null", '"x"', "[" * 5000, '{"a":' * 5000, "\0\1", b"\xff\xfe{", b"{}"]
)
def test_a_config_that_is_none(folder: Path, value: str | bytes) -> None:
    (folder / "config.json").write_bytes(value if isinstance(value, bytes) else value.encode())
    assert "cannot read model" in str(build(folder))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("num_hidden_layers", [-1, 1, 3, 300, 4096, 10**7, 10**18, "2", 2.5, [2], {}]),
        ("hidden_size", [-16, 0, 17, "16", 10**6, 10**15, None, []]),
        ("intermediate_size", [0, -24, 25, 10**15, "24"]),
        ("num_attention_heads", [0, -2, 3, 10**9, "2"]),
        ("num_key_value_heads", [0, 3, -1, 2]),
        ("head_dim", [0, -8, 7, 4]),
        ("vocab_size", [-5, 0, 5, 65, 10**12, 2**63, "64"]),
        ("max_position_embeddings", [-1, 0, 4, "128"]),
        ("model_type", ["nope", 5, "bert", "gpt2", "t5", "../x", "x" * 100_000]),
        ("hidden_act", ["nope", 5]),
        ("quantization_config", [{"load_in_4bit": True, "quant_method": "bitsandbytes"}, {"quant_method": "awq"}]),
        ("tie_word_embeddings", [True]),
        ("attention_bias", [True]),
        ("num_labels", [10**10]),
        ("attn_implementation", ["nope", "kernels-community/nope"]),
        ("rms_norm_eps", ["x"]),
        ("rope_parameters", [{"rope_type": "nope"}, {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}]),
        ("pad_token_id", [10**9, "x"]),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(llama: Path, tmp_path: Path, key: str, values: list[Any]) -> None:
    """Negative, mistyped, far too large, or of another model than the tensors are."""
    for i, value in enumerate(values):
        path = Path(shutil.copytree(llama, tmp_path / str(i)))
        set_(path, **{key: value})
        assert "cannot read model" in str(build(path)) or re.search("knows|too long|GB of memory", str(build(path))), (
            value
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bos_token_id", 10**9), ("initializer_range", -1), ("architectures", ["Nope"]), ("use_cache", "x"), ("dtype", "nope"),
        ("dtype", "int8"), ("dtype", "bfloat16"), ("quantization_config", {"quant_method": "nope"}),
    ],
)  # fmt: skip
def test_configs_with_what_does_not_matter(folder: Path, key: str, value: Any) -> None:
    set_(folder, **{key: value})
    said = build(folder)
    assert said is None or "cannot read model" in said  # newer versions of transformers check more


def test_what_a_config_asks_for_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of modules is counted while it is made, whatever a config calls it."""
    config = transformers.GPTNeoXConfig(
        hidden_size=8, num_hidden_layers=4096, num_attention_heads=2, intermediate_size=8, vocab_size=64
    )
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(config.to_json_string())
    monkeypatch.setattr("lab.models.hf.MOST_TENSORS", 10)
    with torch.device("meta"), pytest.raises(RecipeError, match="more than 10 tensors"):
        HF(str(folder)).build(10, 8)


def header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


HUGE = {"model.norm.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0", b"\0" * 100, b"garbage" * 50, (2**60).to_bytes(8, "little"), (90 << 20).to_bytes(8, "little") + b"{}",
        (2**63 + 5).to_bytes(8, "little") + b"{}", header(HUGE), header({"x": 5}), header({"x": {"dtype": "F32"}}),
        header({"x": {"dtype": "NOPE", "shape": [1], "data_offsets": [0, 4]}}) + b"1234",
        header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"1234",
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + b"1234",
        header({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}) + b"1234", b"PK\x03\x04" + b"\0" * 50,
    ],
    ids=range(15),
)  # fmt: skip
def test_tensors_that_are_none(folder: Path, tmp_path: Path, content: bytes) -> None:
    """As the weights of a model, as first values, and as an adapter."""
    (folder / "model.safetensors").write_bytes(content)
    assert "cannot read model" in str(build(folder))
    with pytest.raises(RecipeError, match=r"cannot be read|has no tensor") as info:
        start_values_(small(), str(folder / "model.safetensors"))
    one_line(info.value)


def change(at: str, to: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[dict[str, torch.Tensor]], None]:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        old = tensors.pop(at, torch.zeros(16))
        if to is not None:
            tensors[at] = to(old).contiguous()

    return apply


UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], None]]] = {
    "missing": (rf"lack tensors .* 1, for example {UP}", change(UP, None)),
    "missing head": ("lack tensors .* 1, for example lm_head.weight", change("lm_head.weight", None)),
    "none": ("cannot read model", lambda tensors: tensors.clear()),
    "transposed": (rf"{UP} as \[16, 24\].*needs \[24, 16\]", change(UP, lambda x: x.T)),
    "0-d": (rf"{UP} as \[\]", change(UP, lambda x: x.sum())),
    "longer": (rf"{UP} as \[25, 16\]", change(UP, lambda x: torch.cat([x, x[:1]]))),
    "another layer": ("does not know: 1, for", change("model.layers.2.mlp.up_proj.weight", lambda x: x)),
    "a bias": ("does not know: 1, for", change("model.layers.1.self_attn.q_proj.bias", lambda x: x)),
    "no number": (f"{UP} holds what is no finite number", change(UP, lambda x: x * torch.inf)),
    "bias of the head": ("does not know: 1, for", change("lm_head.bias", lambda x: x)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_folder_holds_the_tensors_of_its_model(folder: Path, case: str) -> None:
    """transformers would draw what is missing or of another shape, and leave out what it does not know."""
    words, apply = WEIGHTS[case]
    tensors = load_file(folder / "model.safetensors")
    apply(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert re.search(words, str(build(folder)))


def test_tensors_that_do_not_matter(folder: Path) -> None:
    """A head for something else beside the model is left alone, and other dtypes are read."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"score.weight": torch.zeros(2, 16), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file({n: x.bfloat16() for n, x in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert build(folder) is None
    assert {p.dtype for p in HF(str(folder)).build(10, 8).parameters()} == {torch.float32}


def test_tied_by_the_config_and_not_by_the_files(folder: Path) -> None:
    set_(folder, tie_word_embeddings=True)
    assert "ties lm_head.weight" in str(build(folder))


def test_a_model_that_looks_ahead(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, is_decoder=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    assert "no causal language model" in str(build(tmp_path))


def test_models_are_loaded_in_several_threads(llama: Path, tmp_path: Path) -> None:
    """With equal values, whatever the files' dtype; nobody else's dtype, generator or functions are touched meanwhile."""
    path = Path(shutil.copytree(llama, tmp_path / "half"))
    tensors = {n: x.bfloat16() for n, x in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    set_(path, dtype="bfloat16")
    seen, stop = set[torch.dtype](), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add(torch.get_default_dtype())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, first = torch.get_rng_state(), torch.nn.init.normal_
    try:
        with ThreadPoolExecutor(4) as pool:

            def load(i: int) -> list[torch.Tensor] | None:
                with torch.device("meta" if i % 2 else "cpu"):
                    module = HF(str(path)).build(10, 8)
                return None if i % 2 else [p.detach() for p in module.parameters()]

            loaded = [x for x in pool.map(load, range(16)) if x is not None]
    finally:
        stop.set()
        watcher.join()
    assert seen == {torch.float32}
    assert torch.equal(before, torch.get_rng_state())
    assert torch.nn.init.normal_ is first
    for other in loaded:
        assert all(torch.equal(a, b) for a, b in zip(loaded[0], other, strict=True))
    assert all(torch.equal(p.bfloat16().float(), p) for p in loaded[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(llama: Path, dtype: torch.dtype) -> None:
    want: Any = HF(str(llama)).build(10, 8).eval()
    torch.set_default_dtype(dtype)
    try:
        got: Any = HF(str(llama)).build(10, 8).eval()
        loss = got.loss(IDS, IDS)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(loss, want.loss(IDS, IDS))


def test_what_is_missing_moves_no_generator(folder: Path) -> None:
    """Also in another thread: transformers would draw it from the global one before it says so."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[UP]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    before = torch.get_rng_state()
    assert build(folder) is not None
    assert torch.equal(before, torch.get_rng_state())


def test_a_path_is_that_of_where_one_stood(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder given relative to where one stands is still found by a run when one has gone elsewhere."""
    monkeypatch.chdir(folder.parent)
    recipe = Recipe.of(
        {
            "model": "hf:model", "corpus": "grammar", "num_workers": 2, "steps": 2, "batch_size": 2,
            "context": 8, "tokenizer": "bytes", "schedule": {}, "eval_windows": 2, "method": {"name": "diloco", "sync_every": 1},
        }
    )  # fmt: skip
    fleet = build_fleet(recipe, Shape(64, recipe.context))
    monkeypatch.chdir("/")
    assert fleet.whole_model(fleet.params.first())(IDS).shape == (2, 6, 64)
    assert recipe.to_dict()["model"] == {"path": "model"}


def damaged(data: bytes, g: random.Random) -> bytes:
    """Cut short, with a few bytes or digits changed, or with a piece twice, once, or of zeros."""
    at, length = g.randrange(len(data)), g.randrange(1, 40)
    kind = g.choice(["cut", "flip", "digit", "twice", "gone", "zeros"])
    if kind == "cut":
        return data[:at]
    if kind in ("flip", "digit"):
        new = bytearray(data)
        where = (
            [i for i, c in enumerate(data[:4000]) if chr(c).isdigit()]
            if kind == "digit"
            else range(min(len(data), 4000))
        )
        for i in g.choices(where or [0], k=g.randrange(1, 4)):
            new[i] = ord(g.choice("0123456789-")) if kind == "digit" else g.randrange(256)
        return bytes(new)
    piece = {"twice": data[at : at + length] * 2, "gone": b"", "zeros": bytes(len(data[at : at + length]))}[kind]
    return data[:at] + piece + data[at + length :]


@pytest.mark.timeout(3600)
def test_damaged_folders_of_models_and_adapters(llama: Path, target: Any, tmp_path: Path) -> None:
    """Whatever happened to a file: a model that works, or one line."""
    first = adapter(tmp_path / "adapter")
    for i in range(COUNT):
        g = random.Random(i)
        for source in [llama] * (i % 4 == 0) + [first]:
            path = Path(shutil.copytree(source, tmp_path / "copy"))
            file = g.choice(sorted(path.glob("*.json")) + sorted(path.glob("*.safetensors")))
            file.write_bytes(damaged(file.read_bytes(), g))
            if source is llama:
                build(path)
            else:
                try:
                    load_adapter_(target, path)
                except RecipeError as error:
                    one_line(error)
            shutil.rmtree(path)


class Mark:
    """Unpickled, it leaves a mark."""

    def __init__(self, at: Path):
        self.at = at

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.at),)


def test_code_of_a_folder_is_never_executed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the modules that auto_map names, whatever is answered, nor pickles."""
    mark = tmp_path / "mark"
    code = f"import os\nos.mkdir({str(mark)!r})\nclass C: pass\nclass M: pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(model, **kwargs): pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.C", "evil.C"]}
    set_(folder, auto_map=auto)
    assert build(folder) is None  # transformers has this model itself
    set_(folder, model_type="evil")
    assert "code of its own (auto_map), which the lab never executes" in str(build(folder))
    set_(folder, model_type="evil", auto_map={"AutoConfig": "someone/else--evil.C"})
    assert "code of its own" in str(build(folder))
    set_(folder, model_type="llama", auto_map={})
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Mark(mark)))
    assert "no safetensors files" in str(build(folder))
    assert not mark.exists()


def test_files_that_have_no_end(folder: Path, tmp_path: Path) -> None:
    """Pipes, devices, folders and links to nowhere, wherever a file should be."""
    for name in ("config.json", "model.safetensors", "generation_config.json", "model.safetensors.index.json"):
        file, aside = folder / name, tmp_path / "aside"
        if file.exists():
            file.rename(aside)
        os.mkfifo(file)
        assert "no ordinary file" in str(build(folder))
        file.unlink()
        file.symlink_to("/dev/zero")
        assert "no ordinary file" in str(build(folder))
        file.unlink()
        if name in ("config.json", "model.safetensors"):
            file.mkdir()
            assert "cannot read model" in str(build(folder))
            file.rmdir()
            file.symlink_to(tmp_path / "nowhere")
            assert "cannot read model" in str(build(folder))
            file.unlink()
        if aside.exists():
            aside.rename(file)
    assert build(folder) is None


@pytest.mark.parametrize("map", [5, {}, {"a": 5}, {"a": "../x"}, {"a": "/dev/zero"}, {"a": "nowhere.safetensors"}])
def test_an_index_that_is_none(folder: Path, map: Any) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": map}))
    assert "cannot read model" in str(build(folder))


@pytest.mark.parametrize(
    "path",
    ["", "~nobody-of-this-name/x", "a\0b", "x" * 5000, "/nowhere/at/all", "../..", "a/b/c", "\ud800", "/dev/null"],
)
def test_paths_that_lead_nowhere(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cannot read model" in str(build(path))


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "lora.values" in str(build(folder))


def small() -> Any:
    return GPT(dim=8, num_layers=1, num_heads=2).build(11, 6, 0)


def test_first_values_from_odd_files(tmp_path: Path) -> None:
    """`start` of a recipe: pipes, devices, values of another model, and what is no number."""
    good = {n: p.detach().clone() for n, p in small().named_parameters()}
    name = "blocks.0.mlp.0.weight"
    cases = {
        "of another model": {**good, "blocks.1.mlp.0.weight": torch.zeros(3)},
        "has no tensor": {n: x for n, x in good.items() if n != name},
        "no finite real number": good | {name: torch.zeros(32, 8, dtype=torch.int32)},
        "no finite real": good | {name: torch.full((32, 8), torch.nan)},
        r"is \[\] and": good | {name: torch.tensor(1.0)},
    }
    for words, values in cases.items():
        save_file(values, tmp_path / "values.safetensors")
        with pytest.raises(RecipeError, match=words) as info:
            start_values_(small(), str(tmp_path / "values.safetensors"))
        one_line(info.value)
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path / "pipe",
        "/dev/zero",
        "/dev/stdin",
        tmp_path,
        "a\0b",
        "~nobody-of-this-name/x",
        "x" * 5000,
        "\ud800",
        "",
    ):
        with pytest.raises(RecipeError, match="cannot be read") as info:
            start_values_(small(), str(path))
        one_line(info.value)
    save_file(good, tmp_path / "values.safetensors")
    start_values_(small(), str(tmp_path / "values.safetensors"))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": True}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "r = .* is no rank": [{"r": x} for x in (0, -4, "2", 2.0, True, [2], {}, float("nan"), float("inf"))],
    "(r|lora_alpha) is missing": [{"r": None}, {"lora_alpha": None}],
    "lora_alpha = .* is no number": [{"lora_alpha": x} for x in ("4", 0, True, [4], float("nan"), float("inf"), -(10**400))],
    "gives .* rank": [{"r": 1}, {"r": 3}, {"r": 10**9}, {"rank_pattern": {"q_proj": 1}}, {"rank_pattern": {".*": 4}}],
    "peft_type is": [{"peft_type": x} for x in ("IA3", "VERA", "lora", None, 5, ["LORA"])],
    "more than plain LoRA": [
        {"use_dora": True}, {"lora_bias": True}, {"use_qalora": True}, {"layer_replication": [[0, 2], [1, 2]]},
        {"alora_invocation_tokens": [1]}, {"target_parameters": ["x"]}, {"megatron_config": {"a": 1}}, {"of_tomorrow": {"a": 1}},
        {"x" * 1000: True},
    ],
    "init_lora_weights = ": [
        {"init_lora_weights": x} for x in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "nope", 1, [], {"a": 1})
    ],
    "use_rslora = ": [{"use_rslora": "yes"}, {"use_rslora": 1}],
    "is no object": [{"rank_pattern": 5}, {"rank_pattern": ["q_proj"]}, {"alpha_pattern": "q_proj"}],
    "rank_pattern: .* is no rank": [{"rank_pattern": {"q_proj": x}} for x in (0, "2", [2], -1)],
    "alpha_pattern: .* is no number": [{"alpha_pattern": {"q_proj": x}} for x in ("2", [2], 0)],
    "the pattern": [
        {"rank_pattern": {x: 2}} for x in ("(", "[a", "(a+)+b", "(.*)*x", "a**", "x" * 2000, "(" * 900, "a{1,9999}{1,9999}")
    ],
}  # fmt: skip


def adapter(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(PLAIN | changes))
    parts = {f"model.layers.{i}.self_attn.q_proj": (torch.ones(2, 16), torch.ones(16, 2)) for i in range(2)}
    good = {
        f"base_model.model.{n}.lora_{x}.weight": t.clone()
        for n, AB in parts.items()
        for x, t in zip("AB", AB, strict=True)
    }
    save_file(good if tensors is None else good | tensors, path / "adapter_model.safetensors")
    return path


@pytest.fixture(scope="module")
def target(llama: Path) -> Any:
    return adapt_(HF(str(llama)).build(10, 8), LoRA(ranks=(1, 4), targets=("q_proj",)), 4)


def refused(target: Any, path: Path, words: str) -> None:
    """In one line, and with the module as it was."""
    before = {n: p.detach().clone() for n, p in target.named_parameters()}
    with pytest.raises(RecipeError, match=words) as info:
        load_adapter_(target, path)
    one_line(info.value)
    assert all(torch.equal(before[n], p) for n, p in target.named_parameters())


@pytest.mark.parametrize("words", CONFIGS)
def test_adapters_whose_config_is_odd(target: Any, tmp_path: Path, words: str) -> None:
    for i, changes in enumerate(CONFIGS[words]):
        refused(target, adapter(tmp_path / str(i), **changes), words)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": -4.5}, {"rank_pattern": None, "alpha_pattern": {}}, {"bias": "all", "modules_to_save": None},
        {"init_lora_weights": "gaussian", "loftq_config": {}, "eva_config": None, "peft_version": "99", "qalora_group_size": 16},
        {"alpha_pattern": {"nothing_of_it": 5}, "layers_to_transform": [0, 1], "lora_dropout": 0.5, "unknown": None},
    ],
)  # fmt: skip
def test_adapters_whose_config_is_fine(target: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    load_adapter_(target, adapter(tmp_path, **changes))


ADAPTERS: dict[str, dict[str, torch.Tensor]] = {
    r"A \[\] and B": {f"{Q}.lora_A.weight": torch.tensor(1.0)},
    r"A \[2\] and B": {f"{Q}.lora_A.weight": torch.ones(2)},
    r"A \[2, 16, 1\] and B": {f"{Q}.lora_A.weight": torch.ones(2, 16, 1)},
    r"B \[\] for": {f"{Q}.lora_B.weight": torch.tensor(1.0)},
    r"B \[16\] for": {f"{Q}.lora_B.weight": torch.ones(16)},
    r"B \[16, 3\] for": {f"{Q}.lora_B.weight": torch.ones(16, 3)},
    r"B \[2, 16\] for": {f"{Q}.lora_B.weight": torch.ones(2, 16)},
    r"B \[17, 2\] for": {f"{Q}.lora_B.weight": torch.ones(17, 2)},
    r"A \[0, 16\] and B": {f"{Q}.lora_A.weight": torch.ones(0, 16)},
    "rank 2, and A there has 5": {f"{Q}.lora_A.weight": torch.ones(5, 16), f"{Q}.lora_B.weight": torch.ones(16, 5)},
    "no finite real number": {f"{Q}.lora_A.weight": torch.ones(2, 16, dtype=torch.int64)},
    "lora_B.weight holds what": {f"{Q}.lora_B.weight": torch.full((16, 2), torch.inf)},
    "add v_proj to lora.targets": {
        "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight": torch.ones(2, 16),
        "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight": torch.ones(8, 2),
    },
    "add lm_head to lora.targets": {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 16)},
    "is a bias": {f"{Q}.lora_B.bias": torch.ones(16)},
    "biases stay as they are": {"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(16)},
    "trained as a whole": {"base_model.model.lm_head.weight": torch.ones(64, 16)},
    "trained tokens": {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 16)},
    "adapter of an embedding": {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 16)},
    "magnitude of DoRA": {f"{Q}.lora_magnitude_vector": torch.ones(16)},
    "for no linear map of this model": {
        "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)
    },
}


@pytest.mark.parametrize("words", ADAPTERS)
def test_adapters_whose_tensors_are_odd(target: Any, tmp_path: Path, words: str) -> None:
    """Advice to change lora.targets is given where that can help, and only there."""
    if words == "rank 2, and A there has 5":
        refused(
            target,
            adapter(tmp_path / "more", ADAPTERS[words], r=5, rank_pattern={"layers.1.*": 2}),
            "room for rank 4 here",
        )
    refused(target, adapter(tmp_path, ADAPTERS[words]), words)


def test_adapters_of_some_layers(target: Any, tmp_path: Path) -> None:
    """The refusal names the targets that would fit."""
    path = adapter(tmp_path)
    tensors = {n: x for n, x in load_file(path / "adapter_model.safetensors").items() if "layers.1" in n}
    save_file(tensors, path / "adapter_model.safetensors")
    refused(target, path, r'set lora.targets=\["model.layers.1.self_attn.q_proj"\]')
    save_file({"x": torch.ones(1)}, path / "adapter_model.safetensors")
    refused(target, path, "no adapter for any linear map of this model")


def test_adapter_files_that_have_no_end(target: Any, tmp_path: Path) -> None:
    """Pipes and devices, garbage, pickles, a header that claims what no machine has, JSON that is a thousand deep."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = adapter(tmp_path / name)
        for content in (
            b"",
            b"[]",
            b"\0" * 100,
            b"[" * 5000,
            b'{"r":' * 5000,
            header(HUGE),
            (2**60).to_bytes(8, "little"),
        ):
            (path / name).write_bytes(content)
            refused(target, path, "cannot read an adapter")
        (path / name).unlink()
        refused(target, path, "there is no")
        os.mkfifo(path / name)
        refused(target, path, "no ordinary file")
        (path / name).unlink()
        (path / name).mkdir()
        refused(target, path, "is a folder")
    deep = json.dumps(PLAIN)[:-1] + ', "rank_pattern": ' + '{"a": ' * 900 + "1" + "}" * 900 + "}"
    (adapter(tmp_path / "deep") / "adapter_config.json").write_text(deep)
    refused(target, tmp_path / "deep", "cannot read an adapter")
    path = adapter(tmp_path / "old")
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    refused(target, path, "adapter_model.bin is never read")
    assert not (tmp_path / "mark").exists()
    for odd in ("a\0b", "~nobody-of-this-name/x", "x" * 5000, "/dev/null", "\ud800"):
        refused(target, Path(odd), "cannot read an adapter")
