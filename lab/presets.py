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
_NESTEROV = {"name": "SGD", "lr": 0.7, "options": {"momentum": 0.9, "nesterov": True}}
_ADOPT = {"name": "ADOPT", "lr": 2.1e-3, "options": {"betas": [0.95, 0.9999]}}

_FOMOE_STEP = {"params": 32, "exp_avg": 32, "exp_avg_sq": 32}

# DES-LOC's billion-scale run (section 5 of the paper): four workers, two million tokens a step, context 2048.
_PAPER: dict[str, Any] = {"num_workers": 4, "batch_size": 256, "context": 2048, "checkpoint_every": 0, "eval_every": 0}
_DES_LOC_PERIODS = {"params": 256, "exp_avg": 768, "exp_avg_sq": 1536}

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
    "fomoe": _SMALL
    | {
        "model": "moe-nano",
        "placement": {"overlap": 2},
        "method": {"name": "fomoe", "sync_every": {"params": 16, "exp_avg": 16, "exp_avg_sq": 16}, "inner": _ADAMW},
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
}
