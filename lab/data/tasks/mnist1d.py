"""MNIST-1D: ten shapes in 40 numbers, which tell linear models, perceptrons and convolutions apart in seconds."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from lab.data.tasks.registry import options_of
from lab.data.tasks.tensors import Classification
from lab.ground.config import config
from lab.ground.errors import RecipeError

# The package seeds and draws from Python's and numpy's global generators, which a notebook's cells share, and imports matplotlib:
# it runs in a process of its own. `get_dataset` of the same package would download a file; `make_dataset` draws.
GENERATE = """
import io, json, sys
import numpy as np
from mnist1d.data import get_dataset_args, make_dataset
args = get_dataset_args()
vars(args).update(json.loads(sys.argv[1]))
made = make_dataset(args)
file = io.BytesIO()
np.savez(file, **{name: made[name] for name in ("x", "y", "x_test", "y_test")})
sys.stdout.buffer.write(file.getvalue())
"""


@options_of("mnist1d")
@config
class MNIST1D:
    """Ten 1-D shapes, moved, stretched, sheared and noisy (Greydanus and Kobak 2020, arXiv 2011.14439); drawn, no download.

    Inputs are ``[1, length]`` (``flat``: ``[length]``), of mean 0 and deviation 1. The defaults are the paper's.

    Parameters
    ----------
    num_samples, held_out
        examples in all, the same number of each class, and the share of them that is held out.
    noise
        deviation of the noise that is independent from one number to the next.
    shuffled
        the same permutation of all inputs, so that neighbours mean nothing.
    per_class
        scores have the recall of every class as well.
    """

    num_samples: Annotated[int, Field(ge=50)] = 5000
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    length: Annotated[int, Field(ge=8)] = 40
    noise: Annotated[float, Field(ge=0)] = 0.02
    shuffled: bool = False
    flat: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    per_class: bool = False

    def task(self) -> Classification:
        """Raises RecipeError where the package ``mnist1d`` is not installed, or does not do what it did."""
        made, shape = self._made(), (self.length,) if self.flat else (1, self.length)
        train, held_out = (
            (torch.tensor(made[x]).float().view(-1, *shape), torch.tensor(made[y]).long())
            for x, y in (("x", "y"), ("x_test", "y_test"))
        )
        return Classification(train, held_out, 10, per_class=self.per_class)

    def _made(self) -> Mapping[str, np.ndarray]:
        """What the package draws."""
        if importlib.util.find_spec("mnist1d") is None:
            raise RecipeError(
                "task 'mnist1d' needs the package mnist1d: pip install 'isthmus[mnist1d]', or use task digits"
            )
        options = {
            "num_samples": self.num_samples,
            "train_split": 1 - self.held_out,
            "final_seq_length": self.length,
            "iid_noise_scale": self.noise,
            "shuffle_seq": self.shuffled,
            "seed": self.seed,
        }
        return generated(GENERATE, json.dumps(options))


@lru_cache(maxsize=2)  # the runs of a notebook have one task, and it takes longer to draw than some of them to train
def generated(program: str, options: str) -> Mapping[str, np.ndarray]:
    """What a program draws with these options (JSON); arrays that nobody can change. Raises RecipeError where it fails."""
    done = subprocess.run([sys.executable, "-c", program, options], capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise RecipeError(
            f"task 'mnist1d': its package failed ({last[:200]}): install the version that the lab was tested with"
        )
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as file:
        found: dict[str, np.ndarray] = dict(file)
    for array in found.values():
        array.flags.writeable = False
    return found
