"""What the nested losses of PreLort cost a client: milliseconds of forward and backward, against plain LoRA of the same rank.

One client of rank 64 among clients of 4, 8, 16, 32 and 64 on the lab's micro model, adapters on every query-key-value map, one
thread. Variants take turns, so that a busy machine slows them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from bench.common import ratio, take_turns
from lab.methods.prelort import PreLort
from lab.models.gpt import SIZES
from lab.models.lora import LoRA, adapt_, cut_to

RANKS = (4, 8, 16, 32, 64)


def main() -> None:
    torch.set_num_threads(1)
    lora = LoRA(ranks=RANKS)
    module = adapt_(SIZES["micro"].build(256, 256), lora, RANKS[-1])
    g = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(256, (4, 256), generator=g) for _ in range(2))

    def seconds(job: Callable[[int], None]) -> float:
        began = time.perf_counter()
        for t in range(4):
            job(t)
        return (time.perf_counter() - began) / 4

    def nested(how: str) -> Callable[[], float]:
        method = PreLort(nested=how)  # type: ignore[arg-type]
        return lambda: seconds(lambda t: method.nested_loss(RANKS, t)(module, 0, ids, targets).backward())

    def one_by_one(_: int) -> None:
        for rank in RANKS:
            with cut_to(module, rank):
                (module.loss(ids, targets) / len(RANKS)).backward()  # type: ignore[operator]

    jobs = {"plain LoRA": nested("none"), "sum": nested("sum"), "sum, a pass each": lambda: seconds(one_by_one)}
    jobs |= {name: nested(name) for name in ("sample", "sandwich", "matryoshka")}
    seen = take_turns(jobs, rounds=15)
    print("one client of rank 64 among ranks 4 … 64: forward and backward of one local step")
    for name, each in seen.items():
        print(f"  {name:<18} {1e3 * statistics.median(each):7.1f} ms   {ratio(each, seen['plain LoRA'])}")


if __name__ == "__main__":
    main()
