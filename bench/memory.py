"""Peak memory of a DiLoCo run, and what its stacks should take."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from bench.common import SHAPES, child


def measure(shape: dict[str, Any], steps: int) -> dict[str, float]:
    """MiB: resident after the imports, peak after ``steps`` steps, and the tensors that the state holds."""
    import psutil

    from lab.recipes.recipe import Recipe
    from lab.runs.trainer import Trainer

    imported = psutil.Process().memory_info().rss / 2**20
    recipe = Recipe.of(
        shape | {"method": {"name": "diloco", "sync_every": 8}, "steps": steps, "eval_every": 8, "checkpoint_every": 0}
    )
    trainer = Trainer(recipe)
    for _ in trainer.events():
        pass
    s = trainer.state
    stacks = [s.grads, *s.local.values(), *s.shared.values()]
    held = sum(b.nbytes for stack in stacks for b in stack.blocks) / 2**20
    local = (1 + len(s.local)) * recipe.num_workers
    expected = (local + len(s.shared)) * trainer.fleet.num_params() * 4 / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"imported": imported, "peak": peak, "held": held, "expected": expected}


def main() -> None:
    for label, shape in SHAPES.items():
        m = child("bench.memory", shape=shape, steps=24)
        print(f"DiLoCo, {label}: peak {m['peak']:.0f} MiB for the whole process, {m['imported']:.0f} after the imports")
        print(
            f"  state held {m['held']:.1f} MiB / W × (params + gradients + 2 states) + shared {m['expected']:.1f} MiB = "
            f"{m['held'] / m['expected']:.3f}; activations and the rest {m['peak'] - m['imported'] - m['held']:.0f} MiB"
        )


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
