"""Seconds of DES-LOC through a mailbox against gloo, on links of 100 Mbit/s: a ratio within one run, in turns.

python -m bench mailbox, as root on Linux with ``ip`` and ``tc``; needs an S3 server (`lab.runs.remote_sites`). Two sites of one worker each; gloo connects
them, and a mailbox is an S3 server in a third namespace (`bench.bucket`), whose own link has 10 Gbit/s, as a bucket's has. Params are averaged
every 32 steps, moments every 96 and 192 (`des_loc`), and seconds are those of the steps by the first site's clock, without the first
32, in which all warm up: local steps, averages and waits; not the start, the evaluation at the end and no checkpoints.

An average takes about twice gloo's time here (two sites, the server and all packets share two cores), whatever the size; so the ratio tells
mostly which part of the time a run by gloo spends on its link, and sizes differ in that.
"""

from __future__ import annotations

from bench.bucket import NUM, through_bucket
from bench.common import ratio, take_turns
from lab.events import Stepped
from lab.recipes.recipe import Recipe
from lab.runs.remote_sites import why_no_bucket
from lab.runs.shaped_links import measure

RATE, WARM_UP, STEPS, ROUNDS = 100e6, 32, 224, 5
SIZES = {
    "micro, 16 sequences": ["model=micro", "context=128", "batch_size=16"],
    "micro, 8 sequences": ["model=micro", "context=128", "batch_size=8"],
    "nano, 8 sequences": ["model=nano", "context=64", "batch_size=8"],
}
COMMON = [
    "corpus=grammar?tokens=200000",
    "schedule.warmup=0",
    "eval_every=0",
    "checkpoint_every=0",
    f"num_workers={NUM}",
    "method.sync_every.params=32",
    "method.sync_every.exp_avg=96",
    "method.sync_every.exp_avg_sq=192",
]


def by_gloo(recipe: Recipe) -> float:
    return sum(x for t, x in measure(recipe, RATE).step_seconds.items() if t > WARM_UP)


def by_mailbox(recipe: Recipe) -> float:
    _, events = through_bucket(recipe, RATE, server_rate=10e9)
    return sum(e.seconds for e in events if isinstance(e, Stepped) and e.step > WARM_UP)


def main() -> None:
    problem = why_no_bucket()
    if problem:
        print(f"mailbox: not here ({problem})")
        return
    for size, options in SIZES.items():
        recipe = Recipe.of("des_loc", [*COMMON, *options, f"steps={STEPS}"])
        seen = take_turns(
            {"gloo": lambda r=recipe: by_gloo(r), "mailbox": lambda r=recipe: by_mailbox(r)}, rounds=ROUNDS
        )
        said = ", ".join(f"{name} {sorted(x)[len(x) // 2]:.2f} s" for name, x in seen.items())
        print(f"{size}: {STEPS - WARM_UP} steps, {said}; mailbox / gloo {ratio(seen['mailbox'], seen['gloo'])}")


if __name__ == "__main__":
    main()
