"""Models of Hugging Face and adapters in peft's format, on a small model that the test makes itself."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from lab.cli import main
from lab.events import Stepped
from lab.ground.errors import RecipeError
from lab.models.hf import HF
from lab.models.lora import LoRA, adapt_, adapters, cut_to, prefix_losses
from lab.models.peft import load_adapter_, merged, ranks_of, save_adapter
from lab.recipes.recipe import Recipe
from lab.runs.export import trained, with_values
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer, train
from tests.support import recipes
from tests.support.recipes import TEXT, corpus

HERE = all(map(find_spec, ("transformers", "peft")))
pytestmark = pytest.mark.skipif(not HERE, reason="needs the extra hf: pip install 'isthmus[hf]'")
transformers: Any
peft: Any

IDS = torch.randint(200, (2, 6), generator=torch.Generator().manual_seed(0))
LORA = LoRA(ranks=(1, 4), targets=("q_proj", "v_proj"), scale=0.5)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """When the first test of this module runs, and not already where its tests are only counted: it takes seconds."""
    global transformers, peft
    import peft
    import transformers


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


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"v_proj": 2}},
        {"alpha_pattern": {"v_proj": 32, "model.layers.0.self_attn.q_proj": 1}},
        {"use_rslora": True},
        {"use_rslora": True, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"q_proj": 5}},
        {"rank_pattern": {r"layers\.1\..*q_proj": 4, "q_proj": 1, "^model.layers.0.self_attn.v_proj": 2}},
        {"layers_to_transform": [0, 1], "bias": "lora_only", "init_lora_weights": "gaussian"},
    ],
)
def test_every_map_has_its_own_rank_and_scale(folder: str, tmp_path: Path, options: dict[str, Any]) -> None:
    """What peft writes with patterns and rank-stabilised scales gives the same logits here; written again, it is read by peft."""
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"], **options)
    with torch.random.fork_rng():
        theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config).eval()
    for i, (name, p) in enumerate(theirs.named_parameters()):
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    theirs.save_pretrained(tmp_path / "theirs")
    mine = adapted(folder, values=False)
    load_adapter_(mine, tmp_path / "theirs")
    with torch.no_grad():
        want = theirs(IDS).logits
        assert torch.allclose(mine(IDS), want, rtol=1e-5, atol=1e-6)
        for rslora in (False, True):
            save_adapter(mine, tmp_path / "ours", base=folder, rslora=rslora)
            assert torch.allclose(read_by_peft(folder, tmp_path / "ours")(IDS).logits, want, rtol=1e-5, atol=1e-6)
            again = adapted(folder, values=False)
            load_adapter_(again, tmp_path / "ours")
            assert torch.allclose(again(IDS), mine(IDS), rtol=1e-6, atol=1e-7)
    written = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    ranks = {n: len(load_file(tmp_path / "ours/adapter_model.safetensors")[f"base_model.model.{n}.lora_A.weight"]) for n in
             written["target_modules"]}  # fmt: skip
    assert ranks == {n: len(x.get_submodule("lora_A.default").weight) for n, x in theirs.base_model.model.named_modules()
                     if hasattr(x, "lora_A")}  # fmt: skip
    assert written["rank_pattern"] == {n: r for n, r in ranks.items() if r != written["r"]}


def test_what_was_never_used_is_not_written(folder: str, tmp_path: Path) -> None:
    """Rank indices that nobody reached (PreLort) or that were pruned (HetLoRA) are left out, map by map; a rank is kept to."""
    mine = adapted(folder)
    maps = list(adapters(mine).values())
    with torch.no_grad():
        maps[0].lora_B[1].zero_()
        maps[1].lora_B[1][:, 1:] = 0
        maps[1].lora_B[0].zero_()  # a hole stays
        maps[2].lora_B[0].zero_()
        maps[2].lora_B[1].zero_()
    for rank, want in {None: [1, 2, 1, 4], 3: [3, 3, 3, 3]}.items():
        save_adapter(mine, tmp_path, rank, base=folder)
        written = load_file(tmp_path / "adapter_model.safetensors")
        assert [len(x) for n, x in written.items() if "lora_A" in n] == want
        again = adapted(folder, values=False)
        load_adapter_(again, tmp_path)
        with torch.no_grad(), cut_to(mine, rank or 4):
            for a, b in zip(adapters(again).values(), maps, strict=True):
                assert torch.equal(a.factors(rank)[1], b.factors(rank)[1])  # the same scale: bit for bit
            assert torch.allclose(again(IDS), mine(IDS), rtol=1e-5, atol=1e-6)
            assert torch.allclose(read_by_peft(folder, tmp_path)(IDS).logits, mine(IDS), rtol=1e-5, atol=1e-6)
    fresh = adapted(folder, values=False)
    save_adapter(fresh, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4  # not trained yet: all of it is to be


def test_a_rank_that_nobody_brought_is_not_exported(folder: str, tmp_path: Path) -> None:
    """The only client of rank 4 was away: what PreLort has learned is of rank 1, and is written so."""
    r = recipe(folder, scenario={"outages": [{"worker": 0, "first": 1, "last": 4}]})
    train(r, tmp_path / "run")
    done = CliRunner().invoke(main, ["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 1
    done = CliRunner().invoke(
        main, ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--rank", "q_proj=4", "--rslora"]
    )
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["use_rslora"]
    assert config["r"] == 4
    model = trained(RunFolder(tmp_path / "run"))
    with torch.no_grad():
        assert torch.allclose(model(IDS), read_by_peft(folder, tmp_path / "out")(IDS).logits, rtol=1e-4, atol=1e-5)


def test_ranks_by_map(folder: str, tmp_path: Path) -> None:
    """Some maps cut further than others, in an adapter and in the whole model."""
    mine = adapted(folder)
    save_adapter(mine, tmp_path, ranks_of("q_proj=1, layers.1.self_attn.v_proj=2"), base=folder)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    name = "model.layers.{}.self_attn.{}_proj"
    assert config["rank_pattern"] == {name.format(0, "q"): 1, name.format(1, "q"): 1, name.format(1, "v"): 2}
    assert config["r"] == 4
    plain = with_values(HF(folder).build(256, 8).eval(), merged(mine, ranks_of("q_proj=1,layers.1.self_attn.v_proj=2")))
    with torch.no_grad():
        assert torch.allclose(plain(IDS).logits, read_by_peft(folder, tmp_path)(IDS).logits, rtol=1e-5, atol=1e-6)
    assert ranks_of("8") == 8
    for words, text in {"is no rank": "a", "no rank: write": "q_proj=x", "unknown adapted map 'k_proj'": "k_proj=1",
                        "rank 9 of adapters of rank 4": "q_proj=9", "rank -1": "-1", "rank 0": "q_proj=0"}.items():  # fmt: skip
        with pytest.raises(RecipeError, match=words):
            save_adapter(mine, tmp_path, ranks_of(text))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-2 of two layers: its maps are ``Conv1D``, which hold their weights the other way round."""
    path = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)


CONV = LoRA(ranks=(1, 4), targets=("attn.c_attn", "attn.c_proj", "mlp.c_fc"), scale=0.5)  # c_proj is square


def test_conv1d_maps_of_gpt2(gpt2: str, tmp_path: Path) -> None:
    """Forward, gradient, prefixes, merging, and both ways of peft's format."""
    assert [p.shape for p in adapted(gpt2, CONV).get_submodule("model.transformer.h.0.attn.c_attn").lora_A] == [
        (1, 16),
        (3, 16),
    ]
    mine = adapted(gpt2, CONV)
    with torch.no_grad():
        zero = adapted(gpt2, CONV, values=False)(IDS)
        assert torch.allclose(zero, HF(gpt2).build(256, 8).eval()(IDS), rtol=1e-6, atol=1e-7)
        for rank in (1, 3, 4):
            save_adapter(mine, tmp_path / "ours", rank, base=gpt2)
            with cut_to(mine, rank):
                assert torch.allclose(
                    mine(IDS), read_by_peft(gpt2, tmp_path / "ours")(IDS).logits, rtol=1e-5, atol=1e-5
                )
        both, one_by_one = prefix_losses(mine, IDS, IDS, [1, 3]), []
        for rank in (1, 3):
            with cut_to(mine, rank):
                one_by_one.append(mine.loss(IDS, IDS))
        assert torch.allclose(both, torch.stack(one_by_one), rtol=1e-5)
        whole = with_values(HF(gpt2).build(256, 8).eval(), merged(mine))
        assert torch.allclose(whole(IDS).logits, mine(IDS), rtol=1e-5, atol=1e-5)
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=list(CONV.targets), init_lora_weights=False, fan_in_fan_out=True
    )
    with torch.random.fork_rng():
        theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(gpt2), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    load_adapter_(mine, tmp_path / "theirs")
    assert torch.allclose(mine(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    mine, theirs = mine.double(), theirs.double()
    mine.loss(IDS, IDS).backward()
    torch.nn.functional.cross_entropy(theirs(IDS).logits.flatten(0, 1), IDS.flatten()).backward()
    theirs_of = dict(theirs.named_parameters())
    for path, adapter in adapters(mine).items():
        name = f"base_model.model.{path.removeprefix('model.')}.lora_A.default.weight"
        mine_grad = torch.cat([A.grad for A in adapter.lora_A])[:3]
        assert torch.allclose(mine_grad, theirs_of[name].grad, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama whose head is its embedding."""
    path = tmp_path_factory.mktemp("tied")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


HEAD = LoRA(ranks=(1, 4), targets=("q_proj", "lm_head"), scale=0.5)


def test_a_tied_head_is_untied(tied: str, tmp_path: Path) -> None:
    """An adapter of the head changes the head alone: while it trains, merged, and read by peft and by transformers."""
    mine = adapted(tied, HEAD)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tied)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert (
        mine.model.lm_head.weight.data_ptr() == mine.model.model.embed_tokens.weight.data_ptr()
    )  # no memory of its own yet
    save_adapter(mine, tmp_path / "adapter", base=tied)
    whole = with_values(HF(tied).build(256, 8).eval(), merged(mine))
    whole.save_pretrained(tmp_path / "whole")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        for theirs in (read_by_peft(tied, tmp_path / "adapter"), whole, again):
            assert torch.allclose(mine(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    head = adapters(mine)["model.lm_head"]
    A, B = head.factors()
    assert torch.equal(again.lm_head.weight, plain.lm_head.weight + 0.5 * B @ A)
    assert not transformers.AutoConfig.from_pretrained(tmp_path / "whole").tie_word_embeddings


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
@pytest.mark.parametrize("kind", ["gpt2", "tied"])
def test_what_goes_into_the_base_fits_the_map(
    kind: str, method: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """One client, one round: merged into the maps, or left in the adapter (fedit), it is the same model."""
    folder, lora = request.getfixturevalue(kind), {"gpt2": CONV, "tied": HEAD}[kind]
    models = []
    for name in (method, "fedit"):
        fields = {"method": {"name": name, "sync_every": 2}, "num_workers": 1, "steps": 2, "eval_every": 0}
        r = recipe(folder, **fields, lora={"ranks": [4], "targets": list(lora.targets), "scale": 20.0})
        train(r, tmp_path / name)
        done = CliRunner().invoke(main, ["export", str(tmp_path / name), str(tmp_path / f"{name}-whole"), "--merged"])
        assert done.exit_code == 0, done.output
        models.append(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-whole").eval())
    with torch.no_grad():
        first = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
        merged_, adapted_ = (m(IDS).logits for m in models)
        assert torch.allclose(merged_, adapted_, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first, adapted_, atol=1e-3)


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


def test_dropout_of_a_transformer_beside_others(folder: str, tmp_path: Path) -> None:
    """Its attention drops out by seed, worker and step, also where its config has activations computed again in backward."""
    config = json.loads((Path(folder) / "config.json").read_text()) | {"attention_dropout": 0.2}
    told, before = [], torch.get_rng_state()
    for again in (False, True):
        place = tmp_path / str(again)
        shutil.copytree(folder, place)
        (place / "config.json").write_text(json.dumps(config | {"gradient_checkpointing": again}))
        r = recipes.recipe("des_loc", model=HF(str(place)), dtype="float32", steps=3, eval_every=3)
        trainer = Trainer(r, corpus=corpus())
        told.append([e.loss_W for e in trainer.events() if isinstance(e, Stepped)])
        assert all(forward for forward, _ in trainer.fleet.draws.values())
    assert told[0] == told[1]
    assert torch.equal(before, torch.get_rng_state())
