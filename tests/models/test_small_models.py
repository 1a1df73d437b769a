"""Models for images, sensors and plain vectors: what they compute, how they begin, and which data they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.ground.config import RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import derive, generator
from lab.models import registry
from lab.models.lora import LoRA, adapt_, adapters, prefix_losses
from lab.models.own import with_loss
from lab.models.registry import MODELS, model, parse_model
from lab.models.shape import Shape
from tests.support.bench import F64, close, drawn

IMAGE, WINDOW = Shape(input=(3, 8, 8), outputs=4), Shape(input=(2, 13), outputs=4)
SMALL: dict[str, tuple[dict[str, Any], Shape]] = {
    "mlp": ({"name": "mlp", "hidden": [5, 3], "activation": "tanh"}, IMAGE),
    "linear": ({"name": "mlp", "hidden": []}, WINDOW),
    "cnn": ({"name": "cnn", "channels": [4, 6], "kernel": 3, "hidden": 5}, IMAGE),
    "cnn group": ({"name": "cnn", "channels": [4, 6], "norm": "group", "hidden": 5}, IMAGE),
    "resnet18": ({"name": "resnet18", "width": 2}, IMAGE),
    "resnet18 group": ({"name": "resnet18", "width": 2, "norm": "group"}, IMAGE),
    "conv1d": ({"name": "conv1d", "channels": [4, 4], "kernel": 3}, WINDOW),
    "conv1d batch": ({"name": "conv1d", "channels": [4, 4], "norm": "batch"}, WINDOW),
    "sensor_transformer": ({"name": "sensor_transformer", "patch": 4, "dim": 8, "num_heads": 2}, WINDOW),
}
every_model = pytest.mark.parametrize("name", SMALL)


def made(name: str, seed: int = 0) -> Any:
    spec, shape = SMALL[name]
    return parse_model(spec).module(shape, seed)


def examples(shape: Shape, num: int = 3, *purpose: str) -> Tensor:
    return drawn(num, *shape.input, purpose=("examples", *purpose))


def num_params(name: str | dict[str, Any], *input: int, outputs: int = 10) -> int:
    with torch.device("meta"):
        module = parse_model(name).module(Shape(input=input, outputs=outputs), 0)
    return sum(p.numel() for p in module.parameters())


# --- what they are ---------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_papers() -> None:
    """FedAvg's 2NN and CNN have 199,210 and 1,663,370 parameters (its section 3); others by hand."""
    assert num_params("mlp", 28, 28) == 199_210
    assert num_params("cnn", 1, 28, 28) == 1_663_370
    assert num_params({"name": "mlp", "hidden": []}, 64) == 64 * 10 + 10
    convs = 6 * 5 * 32 + 32 * 5 * 64 + 64 * 5 * 64 + 160
    assert num_params("conv1d", 6, 128, outputs=5) == convs + 2 * 160 + 64 * 5 + 5
    block = 64 * 192 + 192 + 64 * 64 + 64 + 2 * 128 + 64 * 128 + 128 + 128 * 64 + 64
    ends = 6 * 8 * 64 + 64 + 16 * 64 + 128 + 64 * 5 + 5
    assert num_params("sensor_transformer", 6, 128, outputs=5) == 2 * block + ends


def test_resnet18_is_that_of_torchvision_with_a_small_stem() -> None:
    """Counted by hand, stage by stage; torchvision's 11,181,642 for 10 classes have a stem of 7 × 7, this one 3 × 3."""
    stem = 3 * 64 * 9 + 2 * 64
    stages = {"layer1": 4 * (64 * 64 * 9 + 2 * 64)}
    for i, w in ((2, 128), (3, 256), (4, 512)):
        stages[f"layer{i}"] = (w // 2 * w * 9 + 3 * w * w * 9 + 4 * 2 * w) + (w // 2 * w + 2 * w)
    whole = stem + sum(stages.values()) + 512 * 10 + 10
    assert whole == 11_173_962 == 11_181_642 - 3 * 64 * (49 - 9)
    for norm in ("batch", "group"):
        with torch.device("meta"):
            module = parse_model({"name": "resnet18", "norm": norm}).module(Shape(input=(3, 32, 32), outputs=10), 0)
        assert sum(p.numel() for p in module.parameters()) == whole
        for stage, num in stages.items():
            assert sum(p.numel() for p in module.get_submodule(stage).parameters()) == num
        assert sum(x.numel() for x in module.buffers()) == (0 if norm == "group" else 2 * 4800 + 20)
    names = ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight"]
    assert [n for n, _ in module.named_parameters()][:5] == names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "fc.bias"} <= dict(
        module.named_parameters()
    ).keys()
    groups = {name: module.tensor_group(name) for name, _ in module.named_parameters()}  # type: ignore[operator]
    by_group = {g: sum(p.numel() for n, p in module.named_parameters() if groups[n] == g) for g in groups.values()}
    assert by_group == {"norm": 2 * 4800, "head": 5130, "conv": whole - 9600 - 5130}


# --- what they compute -----------------------------------------------------------------------------------------------


class ByHand:
    """ResNet-18 from its tensors alone, with batch statistics worked out here; running ones are written to ``moved``."""

    def __init__(self, tensors: dict[str, Tensor], training: bool):
        self.tensors, self.training, self.moved = tensors, training, dict[str, Tensor]()

    def norm(self, x: Tensor, name: str) -> Tensor:
        t, weight, bias = self.tensors, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
        if self.training:
            num = x.numel() // x.shape[1]
            now = x.mean((0, 2, 3))
            spread = (x - now[:, None, None]).square().sum((0, 2, 3))
            self.moved[f"{name}.running_mean"] = 0.9 * mean + 0.1 * now.detach()
            self.moved[f"{name}.running_var"] = 0.9 * var + 0.1 * spread.detach() / (num - 1)
            mean, var = now, spread / num
        shape = (-1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x, "conv1"), "bn1").clamp(min=0)
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = self.norm(self.conv(x, f"{at}.conv1", stride), f"{at}.bn1").clamp(min=0)
                y = self.norm(self.conv(y, f"{at}.conv2"), f"{at}.bn2")
                if stride > 1:
                    x = self.norm(self.conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
                x = (x + y).clamp(min=0)
        return x.mean((2, 3)) @ self.tensors["fc.weight"].T + self.tensors["fc.bias"]


@pytest.mark.parametrize("training", [True, False])
def test_resnet18_by_hand(training: bool) -> None:
    """Answers, gradients and running statistics in float64, in training and in eval mode."""
    module = made("resnet18").double().train(training)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if "running" in name or "bn" in name:  # away from ones and zeros
                x += drawn(*x.shape, purpose=("moved", name)).abs() if x.is_floating_point() else 0
    tensors = {n: x.detach().clone() for n, x in module.state_dict().items()}
    for name, p in module.named_parameters():
        tensors[name] = p.detach().clone().requires_grad_()
    hand, x = ByHand(tensors, training), examples(IMAGE)
    want, got = hand(x), module(x)
    assert close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for name, p in module.named_parameters():
        assert close(p.grad, tensors[name].grad, 1e-10), name  # type: ignore[arg-type]
    assert len(hand.moved) == (40 if training else 0)
    for name, x in module.named_buffers():
        if "running" in name:
            assert close(x, hand.moved.get(name, tensors[name])), name


def test_group_norm_by_hand() -> None:
    """Each example and group of channels by itself: 6 channels make gcd(32, 6) = 2 groups of 3."""
    module, x = made("cnn group").double(), drawn(2, 6, 4, 4, purpose=("x",))
    norm = module.norms[1]
    assert (norm.num_groups, norm.num_channels) == (2, 6)
    rows = x.reshape(2, 2, 3 * 16)
    want = (rows - rows.mean(2, keepdim=True)) / (rows.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    assert close(norm(x), want.view_as(x))


def test_mlp_and_cnn_by_hand() -> None:
    net, x = made("mlp").double(), examples(IMAGE)
    t = dict(net.named_parameters())
    h = x.reshape(3, -1)
    for i in (0, 1):
        h = torch.tanh(h @ t[f"hidden.{i}.weight"].T + t[f"hidden.{i}.bias"])
    assert close(net(x), h @ t["head.weight"].T + t["head.bias"])

    net = made("cnn").double()
    t = dict(net.named_parameters())
    h = x
    for i in (0, 1):
        h = F.conv2d(F.pad(h, (1, 1, 1, 1)), t[f"convs.{i}.weight"], t[f"convs.{i}.bias"]).clamp(min=0)
        h = h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
    h = (h.flatten(1) @ t["hidden.weight"].T + t["hidden.bias"]).clamp(min=0)
    assert close(net(x), h @ t["head.weight"].T + t["head.bias"])


def test_conv1d_by_hand() -> None:
    """13 readings become 6, then 3, of which the mean is taken; a window without a channel axis is one channel."""
    net, x = made("conv1d").double(), examples(WINDOW)
    t, h = dict(net.named_parameters()), x
    for i in (0, 1):
        windows = F.pad(h, (1, 1)).unfold(2, 3, 1)  # B C T 3
        h = torch.einsum("bctk,dck->bdt", windows, t[f"convs.{i}.weight"]) + t[f"convs.{i}.bias"][:, None]
        h = (h - h.mean(2, keepdim=True)) / (h.var(2, correction=0, keepdim=True) + 1e-5).sqrt()  # 4 groups of one
        h = h.clamp(min=0)
        h = h[..., : h.shape[2] // 2 * 2].unflatten(2, (-1, 2)).amax(3)
    assert h.shape == (3, 4, 3)
    assert close(net(x), h.mean(2) @ t["head.weight"].T + t["head.bias"])
    one = parse_model("conv1d").module(Shape(input=(40,), outputs=2), 0)
    x = torch.randn(3, 40, generator=generator(0, "x"))
    assert torch.equal(one(x), one(x[:, None]))


def test_the_sensor_transformer_is_torchs_encoder_over_patches() -> None:
    """With ``nn.TransformerEncoderLayer`` for the blocks; 13 readings make four patches, the last with three zeros."""
    net, x = made("sensor_transformer").double(), examples(WINDOW)
    t = dict(net.named_parameters())
    patches = F.pad(x, (0, 3)).unflatten(2, (4, 4)).transpose(1, 2).flatten(2)  # B P C·4
    h = patches @ t["patches.weight"].flatten(1).T + t["patches.bias"] + t["positions"]
    for i in (0, 1):
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        with torch.random.fork_rng(devices=[]):
            theirs = nn.TransformerEncoderLayer(8, 2, 16, dtype=F64, **options)
        names = {"self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj.": "attention.out.", "linear1.": "mlp.0."}
        names |= {"linear2.": "mlp.2.", "norm1.": "attention_norm.", "norm2.": "mlp_norm."}
        mine = {a + end: t[f"blocks.{i}.{b}{end}"] for a, b in names.items() for end in ("weight", "bias")}
        theirs.load_state_dict(mine)
        h = theirs(h)
    want = F.layer_norm(h, (8,), t["norm.weight"], t["norm.bias"]).mean(1) @ t["head.weight"].T + t["head.bias"]
    assert close(net(x), want)


@every_model
def test_as_workers_they_train_as_by_themselves(name: str) -> None:
    """The gradients of a fleet are those of plain modules, worker by worker."""
    shape = SMALL[name][1]
    fleet = Fleet(lambda worker: made(name), 2, threads=1)
    batches = [(examples(shape, 3, str(w)).float(), torch.tensor([0, 3, 1])) for w in range(2)]
    loss_W = fleet.backward(lambda module, w: F.cross_entropy(module(batches[w][0]), batches[w][1]))
    for w, (x, targets) in enumerate(batches):
        net = made(name)
        loss = F.cross_entropy(net(x), targets)
        loss.backward()
        assert float(loss_W[w]) == float(loss.detach())
        for key, p in net.named_parameters():
            assert torch.equal(fleet.grads.cell(key, w), p.grad), key
    assert {block.group for block in fleet.layout.blocks} <= {
        *("conv", "norm", "head", "hidden", "attention", "mlp", "embedding")
    }


# --- how they begin --------------------------------------------------------------------------------------------------


def test_first_values_are_those_of_torchs_own_layers() -> None:
    """With the same draws, which torch takes from its global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(3, "init"))
        theirs = [nn.Linear(192, 5), nn.Linear(5, 3), nn.Linear(3, 4)]
        torch.manual_seed(derive(3, "init"))
        convs = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)]
    want = [p for layer in theirs for p in layer.parameters()]
    for mine, p in zip(made("mlp", 3).parameters(), want, strict=True):
        assert torch.allclose(mine, p, rtol=1e-6, atol=0)
    want = [p for layer in convs for p in layer.parameters()]
    for mine, p in zip([*made("cnn", 3).convs.parameters()], want, strict=True):
        assert torch.allclose(mine, p, rtol=1e-6, atol=0)


def test_resnet18_begins_as_torchvisions() -> None:
    """Convolutions Normal(0, √(2 / fan-out)) in the order of the model, norms at one, running statistics at 0 and 1."""
    g, module = generator(0, "init"), made("resnet18")
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            std = (2 / (part.out_channels * part.kernel_size[0] ** 2)) ** 0.5
            assert torch.allclose(part.weight, torch.empty_like(part.weight).normal_(0, std, generator=g), rtol=1e-6)
        if isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all()
            assert (part.bias == 0).all()
            assert (part.running_mean == 0).all()
            assert (part.running_var == 1).all()
            assert part.num_batches_tracked == 0
    assert close(module.fc.weight.detach(), torch.empty(4, 16).uniform_(-0.25, 0.25, generator=g), 1e-6)


@every_model
def test_values_hang_on_the_seed_alone(name: str) -> None:
    """On no global generator, which is not moved either, and on none of torch's settings in this process."""
    plain, before = made(name).state_dict(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        again = made(name).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    other, moved = made(name, 1).state_dict(), made(name).state_dict()
    torch.set_rng_state(before)
    for key, x in plain.items():
        assert torch.equal(x, again[key]), key
        assert torch.equal(x, moved[key]), key
        assert x.dtype in (torch.float32, torch.int64)
        assert x.isfinite().all()
    assert any(not torch.equal(x, other[key]) for key, x in plain.items())


@every_model
def test_on_meta_there_are_only_shapes(name: str) -> None:
    with torch.device("meta"):
        module = made(name)
    real = made(name)
    for (n, p), (m, q) in zip(module.state_dict().items(), real.state_dict().items(), strict=True):
        assert (n, p.shape, p.dtype, p.is_meta) == (m, q.shape, q.dtype, True)


def test_what_draws_in_training_is_still_in_eval_mode() -> None:
    spec, shape = SMALL["cnn"]
    module = parse_model(spec | {"dropout": 0.5}).module(shape, 0)
    x = examples(shape).float()
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), made("cnn")(x))


# --- what they refuse ------------------------------------------------------------------------------------------------

TEXT = Shape(vocab_size=256, context=64)


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        ("cnn", Shape(input=(64,), outputs=10), r"examples of shape \[64\]: use mlp"),
        (
            "resnet18",
            Shape(input=(8, 8), outputs=10),
            r"images \[channels, height, width\], and .* \[8, 8\]: use conv1d",
        ),
        ("conv1d", IMAGE, r"windows \[channels, time\], and .* \[3, 8, 8\]: use cnn"),
        ("sensor_transformer", Shape(input=(2, 3, 4, 5), outputs=2), "use mlp"),
        ("mlp", TEXT, "the data is text: use the name of a size"),
        ("cnn", Shape(input=(3, 3, 9), outputs=2), "2 model.channels, and 3 × 9 is too small for that: use at most 1"),
        ("conv1d", Shape(input=(3, 1), outputs=2), "1 is too small for that: use mlp"),
    ],
)
def test_data_of_another_shape_is_refused_in_one_line(spec: str, shape: Shape, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as info:
        parse_model(spec).module(shape, 0)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mpl", r"unknown model 'mpl': use one of .*mlp.* \(did you mean 'mlp'"),
        ({"hidden": [3]}, "model.name is missing: use one of"),
        ({"name": 3}, "unknown model"),
        ({"name": "mlp", "hiden": [3]}, "did you mean 'model.hidden'"),
        ({"name": "mlp", "hidden": [0]}, "model.hidden.0 = 0 is not allowed"),
        ({"name": "mlp", "activation": "sine"}, "model.activation = 'sine' is not allowed"),
        ({"name": "cnn", "kernel": 4}, "model.kernel = 4 is even and has no middle: use 3 or 5"),
        ({"name": "cnn", "channels": []}, "model.channels"),
        ({"name": "resnet18", "norm": "none"}, "model.norm = 'none' is not allowed"),
        ({"name": "sensor_transformer", "num_heads": 3}, "dim must be a multiple of num_heads"),
        (7, "model = 7 is not allowed: it is a name"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(spec: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as info:
        parse_model(spec)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "targets", "trained"),
    [
        ("mlp", ("hidden.0", "head"), {"hidden.0", "head"}),
        ("cnn", ("hidden",), {"hidden"}),
        ("resnet18", ("fc",), {"fc"}),
        ("conv1d", ("head",), {"head"}),
        ("sensor_transformer", ("attention.qkv",), {"blocks.0.attention.qkv", "blocks.1.attention.qkv"}),
    ],
)
def test_adapters(name: str, targets: tuple[str, ...], trained: set[str]) -> None:
    """Linear maps can have them, and then they alone are trained; a convolution is refused by name."""
    shape, x = SMALL[name][1], examples(SMALL[name][1]).float()
    lora = LoRA(ranks=(2,), targets=targets)
    module = adapt_(made(name).eval(), lora, 2)
    assert set(adapters(module)) == trained
    assert torch.equal(module(x), made(name).eval()(x))  # B is zero at first
    module(x).square().sum().backward()
    for n, p in module.named_parameters():
        assert p.requires_grad == (".lora_" in n)
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == (".lora_B" in n)
    assert module.tensor_group(f"{min(trained)}.lora_A.0") == "ranks 1-2"  # type: ignore[operator]
    wrong = {"cnn": "convs.0", "resnet18": "layer1.0.conv1"}.get(name, "attention.nothing")
    with pytest.raises(RecipeError, match=f"unknown lora target '{wrong}': use one of"):
        adapt_(parse_model(SMALL[name][0]).module(shape, 0), LoRA(ranks=(2,), targets=(wrong,)), 2)


def test_the_loss_of_every_prefix_is_that_of_a_smaller_adapter() -> None:
    """Of a task's loss pass by pass; where the module has a criterion of its own, in one pass over copies: the same numbers."""
    shape, x = SMALL["mlp"][1], examples(SMALL["mlp"][1]).float()
    targets = torch.tensor([0, 3, 1])
    module: Any = adapt_(made("mlp"), LoRA(ranks=(1, 3), targets=("hidden.0",)), 3)
    for i, B in enumerate(module.hidden[0].lora_B):
        nn.init.normal_(B, generator=generator(0, "B", i))
    module.criterion = F.cross_entropy
    at_once = prefix_losses(module, x, targets, [1, 3])
    by_itself = prefix_losses(
        with_loss(module, lambda m, *batch: F.cross_entropy(m(batch[0]), batch[1])), x, targets, [1, 3]
    )
    first = module.hidden[0]
    for rank, loss in zip((1, 3), by_itself, strict=True):
        A, B = torch.cat([*first.lora_A])[:rank], torch.cat([*first.lora_B], 1)[:, :rank]
        plain: Any = made("mlp")
        with torch.no_grad():
            plain.hidden[0].weight += first.scale * B @ A
        assert close(loss, F.cross_entropy(plain(x), targets), 1e-5)
    assert close(at_once, by_itself, 1e-6)
    assert shape == IMAGE


# --- the registry ----------------------------------------------------------------------------------------------------


@config
class Flat:
    width: int = 2
    vocab_size: ClassVar[None] = None
    layers_and_experts: ClassVar[tuple[int, int]] = (0, 0)

    def check(self, recipe: RecipeView) -> None:
        pass

    def module(self, shape: Shape, seed: int) -> nn.Module:
        return nn.Linear(self.width, shape.outputs)


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A registry that is put back."""
    copy = dict(MODELS)
    monkeypatch.setattr(registry, "MODELS", copy)
    return copy


def test_a_model_is_registered_by_its_decorator(as_it_was: dict[str, Any]) -> None:
    assert model("flat")(Flat) is Flat is as_it_was["flat"]
    assert parse_model({"name": "flat", "width": 3}) == Flat(3)
    assert parse_model(Flat(4)) == Flat(4)
    assert Flat.name == "flat"  # type: ignore[attr-defined]
    assert model("flat")(Flat) is Flat  # as a cell that is run again


@pytest.mark.parametrize(
    ("name", "cls", "words"),
    [
        ("My Net", Flat, "small letters, digits and _"),
        ("mlp", Flat, "the name belongs to lab.models.mlp.MLP"),
        ("flat", nn.Linear, "is for a dataclass"),
        ("flat", config(type("Lacking", (), {"check": None})), "Lacking lacks vocab_size, layers_and_experts, module"),
    ],
)
def test_what_cannot_be_registered(name: str, cls: Any, words: str, as_it_was: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=words):
        model(name)(cls)
    with pytest.raises(RecipeError, match="has no name"):
        model(cls)


OFFER = """
from lab.ground.config import config
from lab.models.registry import model

@config
class Net:
    width: int = 2
    vocab_size = None
    layers_and_experts = (0, 0)
    def check(self, recipe): pass
    def module(self, shape, seed): return width
"""


def test_packages_offer_models_by_entry_points(
    as_it_was: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked for when a name is not known, and imported only then."""
    (tmp_path / "offered_nets.py").write_text(OFFER)
    about = tmp_path / "offered_nets-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-nets\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[isthmus.models]\nwide_net = offered_nets:Net\nlost_net = offered_nets.lost:Net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parse_model("mlp")
    assert "offered_nets" not in sys.modules
    found: Any = parse_model({"name": "wide_net", "width": 5})
    assert (type(found).__name__, found.width, found.name) == ("Net", 5, "wide_net")
    assert type(found) is as_it_was["wide_net"]
    with pytest.raises(RecipeError, match=r"'lost_net' of isthmus.models \(offered_nets.lost:Net\) cannot be imported"):
        parse_model("lost_net")
    with pytest.raises(RecipeError, match="unknown model 'no_net'"):
        parse_model("no_net")
    monkeypatch.setattr(registry, "entry_point", lambda *_: pytest.fail("looked for a name that is known"))
    parse_model("mlp")
    parse_model({"name": "wide_net"})
