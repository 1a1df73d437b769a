"""Models of Hugging Face and adapters in peft's format, on a small model that the test makes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from toys import TEXT, corpus

from lab.cli import main
from lab.errors import RecipeError
from lab.models.export import trained
from lab.models.hf import HF
from lab.models.lora import LoRA, adapt_, adapters, cut_to
from lab.models.peft import load_adapter_, merged, save_adapter
from lab.recipe import Recipe
from lab.run import Trainer, train
from lab.store import RunFolder

transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'isthmus[hf]'")
peft = pytest.importorskip("peft", reason="needs the extra hf: pip install 'isthmus[hf]'")

IDS = torch.randint(200, (2, 6), generator=torch.Generator().manual_seed(0))
LORA = LoRA(ranks=(1, 4), targets=("q_proj", "v_proj"), scale=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of two layers, saved as users have theirs."""
    path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(path, safe_serialization=True)
    return str(path)


def adapted(folder: str, lora: LoRA = LORA, values: bool = True) -> Any:
    module = adapt_(HF(folder).build(256, 8), lora, lora.bounds[-1])
    with torch.no_grad():
        for k, adapter in enumerate(adapters(module).values() if values else ()):
            for B in adapter.lora_B:
                B.copy_(torch.randn(B.shape, generator=torch.Generator().manual_seed(k)))
    return module.eval()


def read_by_peft(model: str, adapter: Path) -> Any:
    with torch.random.fork_rng():  # peft draws first values and then throws them away
        return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(model), adapter).eval()


def test_any_causal_model_is_a_model(folder: str) -> None:
    """Logits are those of transformers, and adapters that are zero change nothing."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        want = theirs(IDS).logits
        assert torch.equal(HF(folder).build(256, 8).eval()(IDS), want)
        assert torch.equal(adapted(folder, values=False)(IDS), want)


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_peft_reads_what_we_write(folder: str, tmp_path: Path, rank: int | None) -> None:
    """Also a prefix: what is exported is the adapter cut to that rank."""
    mine = adapted(folder)
    save_adapter(mine, tmp_path, rank, base=folder)
    theirs = read_by_peft(folder, tmp_path)
    with torch.no_grad(), cut_to(mine, rank or 4):
        assert torch.allclose(mine(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine(IDS), HF(folder).build(256, 8).eval()(IDS), atol=1e-3)


def test_we_read_what_peft_writes(folder: str, tmp_path: Path) -> None:
    """With another α than our scale, and a smaller rank than we have room for."""
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config).eval()
    theirs.save_pretrained(tmp_path)
    mine = adapted(folder, values=False)
    load_adapter_(mine, tmp_path)
    with torch.no_grad():
        assert torch.allclose(mine(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-6)
        plain = HF(folder).build(256, 8).eval()
        for name, value in merged(mine).items():
            plain.get_parameter(f"model.{name}").copy_(value)
        assert torch.allclose(plain(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-6)
    for words, lora in {
        "room for rank 2": LoRA(ranks=(2,), targets=LORA.targets),
        "has nothing for model.layers.0.self_attn.k_proj": LoRA(ranks=(4,), targets=("k_proj",)),
        "also has .*v_proj": LoRA(ranks=(4,), targets=("q_proj",)),
    }.items():
        with pytest.raises(RecipeError, match=words):
            load_adapter_(adapted(folder, lora, values=False), tmp_path)
    with pytest.raises(RecipeError, match="cannot read an adapter"):
        load_adapter_(mine, tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="rank 0 of adapters of rank 4: use 1 to 4"):
        save_adapter(mine, tmp_path / "none", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="give a folder"):
        save_adapter(mine, tmp_path / "file")


def recipe(folder: str, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "method": {"name": "prelort", "sync_every": 2},
        "model": f"hf:{folder}",
        "lora": {"ranks": [4, 1], "targets": ["q_proj", "v_proj"]},
        "corpus": TEXT,
        "num_workers": 2,
        "steps": 4,
        "batch_size": 2,
        "context": 8,
        "eval_every": 2,
        "eval_windows": 2,
        "checkpoint_every": 2,
    }
    return Recipe.of(fields | changes)


def test_a_federation_of_a_transformer(folder: str, tmp_path: Path) -> None:
    """A run as any other: dry run, bytes, checkpoints; then exported, read by peft, and taken up again."""
    r = recipe(folder)
    columns = train(r, tmp_path / "run")
    assert columns.ledger.records == [e for e in Trainer(r, dry=True).events() if e.kind == "sent"]
    sizes = 2 * ((16 + 16) + (16 + 8))  # q_proj and v_proj of both layers
    assert columns.ledger.by("op", "worker")["reduce", 1] == 2 * 4 * sizes
    assert columns.ledger.by("op", "worker")["reduce", 0] == 4 * 2 * 4 * sizes
    held = Trainer(r, corpus=corpus()).fleet
    assert [held.num_params(w) for w in range(2)] == [4 * sizes, sizes]
    pointers = {m.get_submodule("model.model.embed_tokens").weight.data_ptr() for m in held.modules}
    assert len(pointers) == 1  # frozen weights are there once

    done = CliRunner().invoke(main, ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--rank", "2"])
    assert done.exit_code == 0, done.output
    model = trained(RunFolder(tmp_path / "run"))
    theirs = read_by_peft(folder, tmp_path / "out")
    with torch.no_grad(), cut_to(model, 2):
        assert torch.allclose(model(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-5)
    done = CliRunner().invoke(main, ["export", str(tmp_path / "run"), str(tmp_path / "all"), "--merged"])
    assert done.exit_code == 0, done.output
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "all").eval()
    with torch.no_grad():
        assert torch.allclose(model(IDS), whole(IDS).logits, rtol=1e-4, atol=1e-5)
    again = recipe(folder, lora={"ranks": [4, 2], "targets": ["q_proj", "v_proj"], "values": str(tmp_path / "out")})
    start = Trainer(again, corpus=corpus()).fleet.modules[1]
    want = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert want["r"] == 2
    for path, adapter in adapters(start).items():
        assert torch.allclose(adapter.factors()[1], model.get_submodule(path).factors(2)[1], rtol=1e-6)  # type: ignore[operator]


def test_models_that_do_not_fit(folder: str) -> None:
    for words, changes in {
        "too long for": {"context": 64},
        "cannot read model": {"model": "hf:/nowhere/at/all"},
        r"unknown lora target 'qproj'.*self_attn\.q_proj": {"lora": {"ranks": [2], "targets": ["qproj"]}},
    }.items():
        with pytest.raises(RecipeError, match=words) as info:
            Trainer(recipe(folder, **changes), dry=True)
        assert "\n" not in str(info.value)
