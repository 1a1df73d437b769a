"""Do all presets still give the same numbers? Digests of losses, ledgers and states, for before and after a change of the code.

::

    python tests/support/proof.py before.json            # every preset, made small, calm and stormy, in one process and in two
    python tests/support/proof.py after.json             # the same with the changed code, on the same machine
    python tests/support/proof.py before.json after.json # what differs

It knows the lab by its command line and by the files of its runs alone, so that the code may change as it likes. Digests are of
all bits: they hold for one machine and one torch. ``--only TEXT`` takes the presets with TEXT in their names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open

STEPS = 12
STORM = {
    "outages": [{"worker": 1, "first": 3, "last": 5}, {"worker": 0, "first": 1, "last": 2}],
    "failure_rate": 0.05,
    "slow": {"1": 2.0},
}
CLOCK = {"crc", "seconds", "environment", "version", "recipe", "inputs"}  # of events: what is not a number of the run


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"})


def small(recipe: dict[str, Any], stormy: bool) -> dict[str, Any]:
    """The recipe of a preset as a run of seconds in which all that it does happens."""
    experts, adapters = "num_experts" in recipe["model"], bool(recipe["lora"]["ranks"])
    recipe |= {
        "steps": STEPS,
        "batch_size": 2,
        "context": 16,
        "eval_every": 5,
        "eval_windows": 4,
        "checkpoint_every": 6,
    }
    recipe |= {"schedule": {}, "start": ""}
    if recipe.get("data") is None:
        recipe["model"] = "moe-nano" if experts else "nano"
    if not adapters:
        recipe["corpus"] = "grammar?tokens=40000&symbols=32"
    if experts:
        recipe["num_workers"] = 4
        if recipe["placement"].get("overlap"):
            recipe["placement"]["overlap"] = 2
    recipe["num_workers"] = min(recipe["num_workers"], 10 if adapters else 4)
    method = recipe["method"]
    period = method.get("sync_every")
    if isinstance(period, dict):
        method["sync_every"] = {state: 4 + 2 * i for i, state in enumerate(period)}
    elif period:
        method["sync_every"] = 4
    if method.get("warm"):
        method["warm"]["steps"] = 5
    for name, value in (("rank", 4), ("outer_every", 6)):
        if name in method:
            method[name] = value
    scenario = recipe["scenario"]
    if scenario.get("sample"):
        scenario |= {"sample": 2, "sample_every": 4}
    if stormy:
        recipe["scenario"] = scenario | STORM
    return recipe


def digests(folder: Path) -> dict[str, str]:
    """Of the events by kind, and of every tensor of the last checkpoint."""
    out: dict[str, Any] = {}
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        told = json.dumps({k: v for k, v in event.items() if k not in CLOCK}, sort_keys=True)
        out.setdefault(f"events/{event['kind']}", hashlib.sha256()).update(told.encode())
    saved = sorted(
        (folder / "checkpoints").glob("*.safetensors"), key=lambda file: int("".join(filter(str.isdigit, file.stem)))
    )
    with safe_open(saved[-1], "numpy") as tensors:
        for key in sorted(tensors.keys()):
            x = tensors.get_tensor(key)
            out[f"state/{key}"] = hashlib.sha256(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    return {key: sha.hexdigest()[:16] for key, sha in out.items()}


def prove(preset: str, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for weather in ("calm", "stormy"):
        planned = lab("plan", preset, "--json", "-o", "steps=2", "-o", "schedule={}", "-o", "scenario={}")
        whole = json.loads(lab("plan", preset, "--json").stdout or planned.stdout)["recipe"]
        path = out / f"{preset}-{weather}.json"
        path.write_text(json.dumps(small(whole, weather == "stormy")), encoding="utf-8")
        for processes in (1, 2):
            name = f"{preset}, {weather}, {processes} process{'es' * (processes > 1)}"
            runs = out / f"{preset}-{weather}-{processes}"
            done = lab("run", str(path), "--runs", str(runs), "--processes", str(processes))
            if done.returncode:
                found[name] = {"refused": done.stderr.strip().splitlines()[-1]}
                continue
            (folder,) = (p for p in runs.iterdir() if (p / "events.jsonl").exists())
            found[name] = digests(folder)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if len(given.files) == 2:
        before, after = (json.loads(file.read_text(encoding="utf-8")) for file in given.files)
        differ = {
            name: sorted(
                k
                for k in {*before.get(name, {}), *after.get(name, {})}
                if before.get(name, {}).get(k) != after.get(name, {}).get(k)
            )
            for name in {*before, *after}
        }
        for name, keys in sorted(differ.items()):
            if keys:
                print(f"{name}: {len(keys)} differ: {', '.join(keys[:6])}{' …' if len(keys) > 6 else ''}")
        changed = sum(map(bool, differ.values()))
        print(f"{len(differ) - changed} runs with the same digests, {changed} that differ")
        return 1 if changed else 0
    listed = lab("list").stdout
    names = next(line for line in listed.splitlines() if line.startswith("presets")).removeprefix("presets").split(",")
    presets = [name.strip() for name in names if given.only in name]
    with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(os.cpu_count()) as pool:
        found: dict[str, Any] = {}
        for preset, part in zip(presets, pool.map(lambda name: prove(name, Path(out)), presets), strict=True):
            found |= part
            print(f"{preset}: " + ", ".join(str(x.get("refused", len(x))) for x in part.values()), flush=True)
    given.files[0].write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
