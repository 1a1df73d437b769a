"""The dry run of DES-LOC at 13 billion parameters: seconds and memory of the whole process."""

from __future__ import annotations

import json
import resource
import sys
import time

from bench.common import child


def main() -> None:
    began = time.perf_counter()
    m = child("bench.dry", recipe="des_loc_13B")
    print(
        f"lab plan des_loc_13B (1,536 steps, 4 workers, with DDP and Local Adam beside it): {time.perf_counter() - began:.1f} s "
        f"with start-up, peak {m['peak_mib']:.0f} MiB; {m['ddp']:.2f}× fewer bytes than DDP, {m['local_adam']:.2f}× than Local Adam"
    )


if __name__ == "__main__":
    from lab.recipes.recipe import Recipe
    from lab.runs.plan import plan

    p = plan(Recipe.of(json.loads(sys.argv[1])["recipe"])).to_dict()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"peak_mib": peak, "ddp": p["times_less_than_ddp"], "local_adam": p["times_less_than_local_adam"]})
    )
