"""What kernels count when sites talk through a bucket, beside the ledger priced for a mailbox.

python -m bench bucket, as root on Linux with ``ip`` and ``tc``; needs ``pip install 'moto[server]' s3fs``, an S3 server that keeps objects in memory.
Two sites and the server have a network namespace each (`lab.runs.shaped_links`). Starting, the end and looks that find nothing are
counted as well; what a longer run moves more than a shorter one is compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.costs.network import Network
from lab.events import Event, Sent
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare
from lab.runs.shaped_links import PREFIX, narrow, sent, why_not

NUM = 2
COMMON = [
    "corpus=grammar?tokens=8000",
    "batch_size=2",
    "context=16",
    "schedule.warmup=0",
    "eval_every=0",
    "checkpoint_every=0",
]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
ENDPOINT = {"AWS_ENDPOINT_URL": f"http://10.77.0.{NUM + 1}:5000"} | CREDENTIALS
MAKE = "import boto3; boto3.client('s3').create_bucket(Bucket='box')"


@contextlib.contextmanager
def bucket(names: Sequence[str]) -> Iterator[None]:
    """An S3 server in the last of these namespaces, with a bucket."""
    inside = ("ip", "netns", "exec")
    command = [*inside, names[-1], sys.executable, "-m", "moto.server", "-H", f"10.77.0.{NUM + 1}", "-p", "5000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            made = [*inside, names[0], sys.executable, "-c", MAKE]
            for last in (False,) * 9 + (True,):  # it takes seconds to be there
                time.sleep(3.0)
                done = subprocess.run(made, env=os.environ | ENDPOINT, check=last, capture_output=not last)
                if not done.returncode:
                    break
            yield
        finally:
            server.kill()


def through_bucket(recipe: Recipe, rate: float, server_rate: float | None = None) -> tuple[int, list[Event]]:
    """Bytes that have left all namespaces in a run, and its events; the server's link may have another rate than those of the sites."""
    with narrow(NUM + 1, rate) as names, tempfile.TemporaryDirectory() as path, bucket(names):
        if server_rate is not None:
            shape = (
                "root",
                "tbf",
                "rate",
                f"{server_rate:.0f}bit",
                "burst",
                str(int(server_rate / 8 / 250)),
                "latency",
                "200ms",
            )
            for where, device in ((names[-1], "wan0"), (f"{PREFIX}hub", f"port{NUM}")):
                subprocess.run(["tc", "-n", where, "qdisc", "replace", "dev", device, *shape], check=True)
        folder = RunFolder(Path(path) / "run")
        prepare(folder, recipe, NUM)
        env = child.environment() | ENDPOINT | {"ISTHMUS_MAILBOX": "s3://box/run", "WORLD_SIZE": str(NUM)}
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
    missing = [name for name in ("moto", "s3fs") if importlib.util.find_spec(name) is None]
    problem = f"{' and '.join(missing)} is not installed" if missing else why_not()
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
