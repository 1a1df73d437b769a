"""What kernels count when sites talk through a bucket, beside the ledger priced for a mailbox.

python -m bench bucket, as root on Linux with ``ip`` and ``tc``; needs an S3 server that keeps objects in memory (`lab.runs.remote_sites`).
Two sites and the server have a network namespace each (`lab.runs.shaped_links`). Starting, the end and looks that find nothing are
counted as well; what a longer run moves more than a shorter one is compared.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from lab.costs.network import Network
from lab.events import Event, Sent
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare
from lab.runs.remote_sites import bucket, why_no_bucket
from lab.runs.shaped_links import PREFIX, limit, narrow, sent

NUM = 2
COMMON = [
    "corpus=grammar?tokens=8000",
    "batch_size=2",
    "context=16",
    "schedule.warmup=0",
    "eval_every=0",
    "checkpoint_every=0",
]


def through_bucket(recipe: Recipe, rate: float, server_rate: float | None = None) -> tuple[int, list[Event]]:
    """Bytes that have left all namespaces in a run, and its events; the server's link may have another rate than those of the sites."""
    with narrow(NUM + 1, rate) as names, tempfile.TemporaryDirectory() as path, bucket(names) as env_of_all:
        if server_rate is not None:
            for where, device in ((names[-1], "wan0"), (f"{PREFIX}hub", f"port{NUM}")):
                limit(where, device, server_rate, "replace")
        folder = RunFolder(Path(path) / "run")
        prepare(folder, recipe, NUM)
        env = child.environment() | env_of_all | {"ISTHMUS_MAILBOX": "s3://box/run", "WORLD_SIZE": str(NUM)}
        env |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        command = child.command("lab", "resume", str(folder.path), "--timeout", "100")
        sites = [
            subprocess.Popen(["ip", "netns", "exec", names[p], *command], env=env | {"RANK": str(p), "LOCAL_RANK": "0"})
            for p in range(NUM)
        ]
        codes = [site.wait() for site in sites]
        if any(codes):
            raise SystemExit("a site has failed")
        counted = sum(sent(name)[0] for name in names)
        return counted, list(folder.events())


def measure(recipe: Recipe, rate: float = 1e9) -> tuple[float, float]:
    """Bytes that have left all namespaces in a run, and the bytes of its ledger with frames."""
    counted, events = through_bucket(recipe, rate)
    ledger = [event for event in events if isinstance(event, Sent)]
    priced = Network(topology="mailbox", framing="ethernet").price(ledger, num_workers=NUM, steps=recipe.steps)
    return counted, float(priced.wire_bytes_W.sum())


def main() -> None:
    problem = why_no_bucket()
    if problem:
        print(f"bucket: not here ({problem})")
        return
    for preset, steps in (("ddp", (4, 24)), ("des_loc", (32, 96))):
        short, long = (measure(Recipe.of(preset, [*COMMON, f"num_workers={NUM}", f"steps={n}"])) for n in steps)
        counted, priced = long[0] - short[0], long[1] - short[1]
        print(
            f"{preset:<8} counted {counted / 1e6:.2f} MB, ledger with frames {priced / 1e6:.2f} MB: {counted / priced:.3f}"
        )


if __name__ == "__main__":
    main()
