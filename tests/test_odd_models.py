"""Model folders, adapters and value files that are wrong in every way that could be thought of: each ends in one line.

What is not wrong enough to be refused has to work. Folders are made here; nothing is fetched.
"""

from __future__ import annotations

import json
import os
import pickle
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

from lab.errors import LabError, RecipeError
from lab.models.build import build_fleet
from lab.models.gpt import GPT
from lab.models.hf import HF
from lab.models.start import start_values_
from lab.recipe import Recipe

transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'isthmus[hf]'")

pytestmark = pytest.mark.timeout(60)  # none may hang; each takes well under a second on a quiet machine

LLAMA = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
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
    [("bos_token_id", 10**9), ("initializer_range", -1), ("architectures", ["Nope"]), ("use_cache", "x")],
)
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
    "missing": (rf"lack 1 tensors.*{UP}", change(UP, None)),
    "missing head": ("lack 1 tensors.*lm_head.weight", change("lm_head.weight", None)),
    "none": ("cannot read model", lambda tensors: tensors.clear()),
    "transposed": (rf"{UP} as \[16, 24\].*needs \[24, 16\]", change(UP, lambda x: x.T)),
    "0-d": (rf"{UP} as \[\]", change(UP, lambda x: x.sum())),
    "longer": (rf"{UP} as \[25, 16\]", change(UP, lambda x: torch.cat([x, x[:1]]))),
    "another layer": ("1 tensors that its config", change("model.layers.2.mlp.up_proj.weight", lambda x: x)),
    "a bias": ("1 tensors that its config", change("model.layers.1.self_attn.q_proj.bias", lambda x: x)),
    "bias of the head": ("1 tensors that its config", change("lm_head.bias", lambda x: x)),
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
    fleet = build_fleet(recipe, 64)
    monkeypatch.chdir("/")
    assert fleet.whole_model(fleet.params.first())(IDS).shape == (2, 6, 64)
    assert recipe.to_dict()["model"] == {"path": "model"}


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
    set_(folder, model_type="llama", auto_map=None)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Mark(mark)))
    assert "cannot read model" in str(build(folder))
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
