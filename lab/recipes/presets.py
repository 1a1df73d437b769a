"""Recipes by name: small ones that train on a laptop, and the papers' own for dry runs."""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "model": "nano",
    "corpus": "stdlib",
    "num_workers": 4,
    "batch_size": 8,
    "context": 64,
    "steps": 384,
    "schedule": {"kind": "wsd", "warmup": 20},
    "eval_every": 32,
}
_ADAMW = {"name": "AdamW", "lr": 3e-3, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}}
_QHADOPT = {"name": "QHADOPT", "lr": 4e-3, "options": {"betas": [0.99, 0.999], "weights": [0.9]}}
_FAST = {"name": "QHADOPT", "lr": 4e-3, "options": {"betas": [0.95, 0.999], "weights": [1.0]}}
_QHADAM = {"name": "QHAdam", "lr": 8e-3, "options": {"betas": [0.9, 0.95], "weights": [0.97]}}
_NESTEROV = {"name": "SGD", "lr": 0.7, "options": {"momentum": 0.9, "nesterov": True}}
_ADOPT = {"name": "ADOPT", "lr": 2.1e-3, "options": {"betas": [0.95, 0.9999]}}

# Ten clients of rank 4 to 64, as FLoRA has them, adapt a small model that the lab has pre-trained.
_CLIENTS: dict[str, Any] = {
    "model": "nano",
    "start": "pretrained",
    "lora": {"ranks": [64, 32, 16, 16, 8, 8, 4, 4, 4, 4], "targets": ["attention.qkv"]},
    "corpus": "task:packages",
    "split": "dirichlet:1.0",
    "num_workers": 10,
    "batch_size": 8,
    "context": 192,
    "steps": 160,
    "eval_every": 32,
    "eval_windows": 128,
}
_EQUAL = _CLIENTS | {"lora": _CLIENTS["lora"] | {"ranks": [16]}}

# Fifty clients with digits of their own, of whom ten take part in a round.
_FEDERATION: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [128]},
    "data": "digits",
    "split": "dirichlet:0.3",
    "num_workers": 10,
    "clients": {"num": 50},
    "batch_size": 10,
    "steps": 500,
    "eval_every": 50,
    "eval_windows": 360,
}
_SGD = {"name": "SGD", "lr": 0.1}

# Nine dialects of three families, a leaf each, in three federations.
_FEDERATIONS: dict[str, Any] = {
    "model": "nano",
    "corpus": "grammar?dialects=9&families=3&similarity=0.3&kinship=0.6&tokens=1800000",
    "split": "domain",
    "num_workers": 9,
    "clients": {"held_out": 0.1},
    "batch_size": 8,
    "context": 64,
    "steps": 384,
    "eval_every": 32,
}

# Thirty clients without labels, ten in a round, and a server that has four of each digit with theirs.
_UNLABELLED: dict[str, Any] = _FEDERATION | {
    "clients": {"num": 30},
    "server": {"labelled": 4},
    "batch_size": 16,
    "steps": 320,
    "eval_every": 32,
}

# A hundred clients, ten in a round, of whose weights nine in ten are zero.
_SPARSE = _FEDERATION | {"clients": {"num": 100}}
_FAST_SGD = {"name": "SGD", "lr": 0.5}
_OF_ROUNDS: dict[str, Any] = {"sync_every": 10, "sparsity": 0.9, "inner": _FAST_SGD}
_FOMOE_STEP = {"params": 32, "exp_avg": 32, "exp_avg_sq": 32}

# DES-LOC's billion-scale run (section 5 of the paper): four workers, two million tokens a step, context 2048.
_PAPER: dict[str, Any] = {"num_workers": 4, "batch_size": 256, "context": 2048, "checkpoint_every": 0, "eval_every": 0}
_DES_LOC_PERIODS = {"params": 256, "exp_avg": 768, "exp_avg_sq": 1536}

IMITATED = ("fedit", "prelort")  # what an audit of imitation looks at, unless it is told otherwise

PRESETS: dict[str, dict[str, Any]] = {
    "ddp": _SMALL | {"method": {"name": "ddp", "inner": _ADAMW}},
    "local_sgd": _SMALL | {"method": {"name": "local_sgd", "sync_every": 16, "inner": _ADAMW}},
    "local_adam": _SMALL | {"method": {"name": "local_adam", "sync_every": 16, "inner": _ADAMW}},
    "diloco": _SMALL | {"method": {"name": "diloco", "sync_every": 16, "inner": _ADAMW}},
    "des_loc": _SMALL
    | {
        "method": {
            "name": "des_loc",
            "sync_every": {"params": 16, "exp_avg": 48, "exp_avg_sq": 96},
            "inner": _ADAMW,
        }
    },
    "mt_dao": _SMALL
    | {
        "method": {
            "name": "mt_dao",
            "sync_every": {"params": 16, "exp_avg": 16, "exp_avg_sq": 16},
            "inner": _QHADOPT,
            "warm": {"steps": 128, "inner": _FAST},
        }
    },
    "lordo": _SMALL | {"method": {"name": "lordo", "sync_every": 16, "rank": 8, "inner": _QHADAM}},
    "photon": _SMALL
    | {
        "method": {"name": "photon", "sync_every": 16, "inner": _ADAMW, "inner_states": "kept"},
        "num_workers": 8,
        "scenario": {"sample": 4, "sample_every": 16, "catch_up": "params"},
        "schedule": {"kind": "cosine", "warmup": 20, "final": 0.1},
    },
    "streaming_diloco": _SMALL
    | {
        "method": {"name": "streaming_diloco", "sync_every": 16, "num_fragments": 2, "inner": _ADAMW},
        "codecs": {"params": "e3m0"},
    },
    "streaming_des_loc": _SMALL
    | {
        "method": {
            "name": "streaming_des_loc",
            "sync_every": {"params": 16, "exp_avg": 48, "exp_avg_sq": 96},
            "num_fragments": 2,
            "inner": _ADAMW,
        }
    },
    # DiLoCo over Muon is MuLoCo (Thérien et al. 2025, arXiv 2505.23725); the rate is ours.
    "muloco": _SMALL
    | {
        "method": {
            "name": "diloco",
            "sync_every": 16,
            "inner": {"name": "Muon", "lr": 3e-3, "options": {"weight_decay": 0.0}},
        }
    },
    "sparse_loco": _SMALL | {"method": {"name": "sparse_loco", "sync_every": 16, "inner": _ADAMW}},
    # One worker of four is half as fast as the others.
    "async_diloco": _SMALL
    | {"method": {"name": "async_diloco", "sync_every": 16, "inner": _ADAMW, "paces": [1, 1, 1, 2]}},
    "noloco": _SMALL | {"method": {"name": "noloco", "sync_every": 16, "inner": _ADAMW}},
    "sparta": _SMALL | {"method": {"name": "sparta", "fraction": 0.01, "inner": _ADAMW}},
    "demo": _SMALL | {"method": {"name": "demo", "inner": {"name": "SGD", "lr": 2e-3}}},
    "fomoe": _SMALL
    | {
        "model": "moe-nano",
        "placement": {"overlap": 2},
        "method": {"name": "fomoe", "sync_every": {"params": 16, "exp_avg": 16, "exp_avg_sq": 16}, "inner": _ADAMW},
    },
    "fedprox": _FEDERATION | {"method": {"name": "fedprox", "sync_every": 10, "inner": _SGD}},
    "scaffold": _FEDERATION | {"method": {"name": "scaffold", "sync_every": 10, "inner": _SGD}},
    "q_fedavg": _FEDERATION | {"method": {"name": "q_fedavg", "sync_every": 10, "inner": _SGD}},
    "term": _FEDERATION | {"method": {"name": "term", "sync_every": 10, "inner": _SGD}},
    # Plain in the first half of the 50 rounds; then each client holds on to what it fetched.
    "pafl": _FEDERATION | {"method": {"name": "pafl", "sync_every": 10, "losses": {26: "ewc"}, "inner": _SGD}},
    "pafl_kd": _FEDERATION | {"method": {"name": "pafl", "sync_every": 10, "losses": {26: "kd"}, "inner": _SGD}},
    # A sensor of a person is a client; three of the twelve take part in a round, as in the authors' code.
    "mutual": {
        "data": "sensors",
        "model": {"name": "mlp", "hidden": [32]},
        "split": "by:person+sensor",
        "groups": "sensor",
        "num_workers": 12,
        "scenario": {"sample": 3, "sample_every": 16, "catch_up": "params"},
        "steps": 160,
        "batch_size": 10,
        "eval_every": 40,
        "eval_windows": 256,
        "method": {"name": "mutual", "sync_every": 16, "inner": _ADAMW},
    },
    "hierfavg": _FEDERATIONS
    | {"method": {"name": "hierfavg", "sync_every": 16, "rounds": [2], "tree": "3", "inner": _ADAMW}},
    "sparsyfed": _SPARSE | {"method": {"name": "sparsyfed"} | _OF_ROUNDS},
    "top_k": _SPARSE | {"method": {"name": "top_k"} | _OF_ROUNDS},
    "zerofl": _SPARSE | {"method": {"name": "zerofl"} | _OF_ROUNDS},
    "flash": _SPARSE | {"method": {"name": "flash"} | _OF_ROUNDS},
    "fedanchor": _UNLABELLED | {"method": {"name": "fedanchor", "sync_every": 8}},
    "fixmatch": _UNLABELLED | {"method": {"name": "fixmatch", "sync_every": 8}},
    "semifl": _UNLABELLED | {"method": {"name": "semifl", "sync_every": 8}},
    "supervised_only": _UNLABELLED | {"method": {"name": "supervised_only", "sync_every": 8}},
    "worldlm": _FEDERATIONS
    | {"method": {"name": "worldlm", "sync_every": 16, "rounds": [2], "tree": "3", "inner": _ADAMW}},
    # FedPer: the last block stays with each worker, all else is averaged. Together: one model on all that there is.
    "fedper": _FEDERATIONS
    | {
        "method": {"name": "local_sgd", "sync_every": 16, "inner": _ADAMW},
        "clients": {"held_out": 0.1, "personal": ["blocks.1.*"]},
    },
    "leaves_together": _FEDERATIONS | {"method": {"name": "ddp", "inner": _ADAMW}},
    "prelort": _CLIENTS | {"method": {"name": "prelort", "inner": _ADAMW}},
    "fedit": _EQUAL | {"method": {"name": "fedit", "inner": _ADAMW}},
    "zero_padding": _CLIENTS | {"method": {"name": "zero_padding", "inner": _ADAMW}},
    "hetlora": _CLIENTS | {"method": {"name": "hetlora", "inner": _ADAMW}},
    "flora": _CLIENTS | {"method": {"name": "flora", "inner": _ADAMW}},
    "flexlora": _CLIENTS | {"method": {"name": "flexlora", "inner": _ADAMW}},
    "ffa_lora": _CLIENTS | {"method": {"name": "ffa_lora", "inner": _ADAMW}, "lora": _CLIENTS["lora"] | {"train": "B"}},
    "fedex_lora": _EQUAL | {"method": {"name": "fedex_lora", "inner": _ADAMW}},
    "raflora": _CLIENTS | {"method": {"name": "raflora", "inner": _ADAMW}},
    # A small model that knows 320 facts, and says so where it does not know: what unlearning begins with. One pass. Its questions and
    # answers are about 1,430 different tokens in their places; one down-projection has to tell them apart, and has a column for each.
    "facts": {
        "data": {"name": "facts", "repeats": 160},
        "model": {"size": "nano", "dim": 96, "num_layers": 2, "num_heads": 4, "mlp_dim": 1536},
        "num_workers": 1,
        "batch_size": 64,
        "steps": 1200,
        "schedule": {"kind": "cosine", "warmup": 50},
        "eval_every": 400,
        "eval_windows": 416,
        "checkpoint_every": 400,
        "method": {"name": "ddp", "inner": _ADAMW | {"lr": 2e-3}},
    },
    # Four domains, of which one is wanted; centred and standardised by us, as the states of so small a model all point the same way.
    "adapt": _SMALL
    | {
        "corpus": "mixture",
        "context": 32,
        "method": {
            "name": "des_loc",
            "sync_every": {"params": 16, "exp_avg": 32, "exp_avg_sq": 64},
            "inner": _ADAMW,
        },
        "weighting": {"by": "adapt", "target": "target", "center": True, "standardize": True, "tau": 0.3},
    },
    # A GPT that goes through its middle twice, and is scored with one to eight times.
    "abbie": _SMALL | {"model": "abbie", "method": {"name": "diloco", "sync_every": 16, "inner": _ADAMW}},
    # A round is an epoch of a client's 500 images in batches of 16: CIFAR-10, which a plan need not fetch.
    "sparsyfed_resnet18": {
        "model": "resnet18",
        "data": "hub:cifar10",
        "num_workers": 10,
        "clients": {"num": 100},
        "batch_size": 16,
        "steps": 22_400,
        "buffers": "averaged",
        "checkpoint_every": 0,
        "eval_every": 0,
        "method": {
            "name": "sparsyfed",
            "sync_every": 32,
            "inner": {"name": "SGD", "lr": 0.5, "options": {"weight_decay": 1e-3}},
        },
        "schedule": {"kind": "exponential", "final": 0.02},
    },
    # FoMoE's own shapes and batch (1024 sequences in all); 640 steps are its 54M run, and 20 rounds of the modelled ones.
    "fomoe_54M": _PAPER
    | {
        "model": "fomoe-54M",
        "steps": 640,
        "placement": {"overlap": 2},
        "method": {"name": "fomoe", "sync_every": _FOMOE_STEP, "inner": _ADAMW | {"lr": 0.01}},
        "schedule": {"kind": "constant", "warmup": 160},
    },
    "fomoe_1.8B": _PAPER
    | {
        "model": "fomoe-1.8B",
        "steps": 640,
        "placement": {"overlap": 2, "kind": "random"},
        "method": {"name": "fomoe", "sync_every": {"params": 32}, "inner": _ADAMW, "outer": _NESTEROV},
    },
    "fomoe_104B": _PAPER
    | {
        "model": "fomoe-104B",
        "num_workers": 8,
        "batch_size": 128,
        "steps": 128,
        "placement": {"overlap": 1},
        "method": {"name": "fomoe", "sync_every": {"params": 32}, "inner": _ADAMW, "outer": _NESTEROV},
    },
    "des_loc_1.7B": _PAPER
    | {
        "model": "1.7B",
        "steps": 20_480,
        "method": {"name": "des_loc", "sync_every": _DES_LOC_PERIODS, "inner": _ADOPT},
        "schedule": {"kind": "wsd", "warmup": 2048},
    },
    "des_loc_13B": _PAPER
    | {
        "model": "13B",
        "steps": 1536,
        "method": {"name": "des_loc", "sync_every": _DES_LOC_PERIODS, "inner": _ADOPT},
    },
    "mt_dao_16M": {  # the authors' run configuration: 64 sequences over 4 workers
        "num_workers": 4,
        "batch_size": 16,
        "context": 2048,
        "checkpoint_every": 0,
        "eval_every": 0,
        "model": "16M",
        "steps": 6144,
        "method": {
            "name": "mt_dao",
            "inner": {"name": "QHADOPT", "lr": 1e-3, "options": {"betas": [0.999, 0.999], "weights": [0.98]}},
            "warm": {"steps": 2048, "inner": _FAST | {"lr": 1e-3}},
        },
        "schedule": {"kind": "wsd", "warmup": 512},
    },
    "lordo_720M": _PAPER  # ranks and rates of the authors' launch files; batch and context are DES-LOC's
    | {"model": "720M", "steps": 12_288, "method": {"name": "lordo", "rank": 256, "inner": _QHADAM}},
    "photon_125M": {  # the authors' federated example: 5120 steps of 256 sequences, stretched to clients of 32
        "num_workers": 8,
        "batch_size": 32,
        "context": 2048,
        "checkpoint_every": 0,
        "eval_every": 0,
        "model": "125M",
        "steps": 40_960,
        "method": {
            "name": "photon",
            "sync_every": 128,
            "inner": {"name": "AdamW", "lr": 6e-4, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}},
            "inner_states": "kept",
        },
        "schedule": {"kind": "cosine", "warmup": 800, "final": 0.1},
    },
    # Root, three regions, nine leaves, as in the paper; shapes are the nearest of those here, batch, steps and rounds by us.
    **{
        f"worldlm_{size}": {
            "num_workers": 9,
            "batch_size": 32,
            "context": 2048,
            "checkpoint_every": 0,
            "eval_every": 0,
            "model": shape,
            "steps": 10_240,
            "method": {
                "name": "worldlm",
                "sync_every": 32,
                "rounds": [4],
                "tree": "3",
                "inner": _ADAMW | {"lr": 6e-4},
            },
            "schedule": {"kind": "cosine", "warmup": 100, "final": 0.1},
        }
        for size, shape in (
            ("75M", {"size": "125M", "num_layers": 5}),
            ("125M", "125M"),
            ("400M", {"size": "125M", "dim": 1024, "num_layers": 28, "num_heads": 16}),
        )
    },
    # 50 billion tokens, 400 anchors; shape is the nearest of those here, batch and R by us, rate and schedule TinyLlama's.
    "adapt_120M": {
        "num_workers": 4,
        "batch_size": 64,
        "context": 2048,
        "checkpoint_every": 0,
        "eval_every": 0,
        "model": "125M",
        "steps": 95_367,
        "method": {
            "name": "ddp",
            "inner": {"name": "AdamW", "lr": 4e-4, "options": {"betas": [0.9, 0.95], "weight_decay": 0.1}},
        },
        "schedule": {"kind": "cosine", "warmup": 2000, "final": 0.1},
        "weighting": {"by": "adapt", "target": "json", "anchors": 400},
    },
    "streaming_diloco_1B": {  # 24 layers in eight fragments of three, H = 100, two workers; shape and batch by us
        "num_workers": 2,
        "batch_size": 256,
        "context": 1024,
        "checkpoint_every": 0,
        "eval_every": 0,
        "model": "1.3B",
        "steps": 20_000,
        "method": {"name": "streaming_diloco", "sync_every": 100, "num_fragments": 8, "inner": _ADAMW | {"lr": 2e-4}},
        "codecs": {"params": "e3m0"},
        "schedule": {"kind": "cosine", "warmup": 1000, "final": 0.1},
    },
    "noloco_125M": {  # the paper's schedule and rates for its 100M model; workers and batch by us
        "num_workers": 16,
        "batch_size": 32,
        "context": 1024,
        "checkpoint_every": 0,
        "eval_every": 0,
        "model": "125M",
        "steps": 25_000,
        "method": {"name": "noloco", "inner": _ADAMW | {"lr": 6e-4}},
        "schedule": {"kind": "cosine", "warmup": 1000, "final": 0.1},
    },
}


def in_words(name: str) -> str:
    """A preset in a few words, as it is written: ``des_loc, nano, stdlib, 4 workers, 384 steps``. Nothing is made or checked for that."""
    of = PRESETS[name]
    model, data = of.get("model", "nano"), of.get("data") or of.get("corpus", "stdlib")
    shape = model if isinstance(model, str) else model.get("size") or model.get("name") or f"width {model.get('dim')}"
    what = data if isinstance(data, str) else data.get("name", "")
    clients = of.get("clients", {}).get("num")
    workers = of.get("num_workers", 4)
    who = f"{clients:,} clients" if clients else f"{workers} worker{'s' * (workers != 1)}"
    parts = (_name(of["method"]), shape, what.partition("?")[0], who, f"{of.get('steps', 0):,} steps")
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _name(method: Any) -> str:
    return str(method if isinstance(method, str) else method["name"])
