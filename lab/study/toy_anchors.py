"""Classes that lie in several heaps: a toy on which labels by similarity and labels by confidence differ, and a mean over anchors from the nearest.

Legend: C classes, E examples, d numbers of each.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from lab.data.tasks.tensors import Classification
from lab.ground.config import Count, Positive
from lab.ground.seeds import numpy_generator


def heaps(
    *,
    classes: Annotated[int, Field(ge=2)] = 10,
    modes: Count = 2,
    separation: Positive = 4.0,
    dimensions: Count = 20,
    examples: Count = 2200,
    held_out: Count = 1000,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Classification:
    """Points around ``modes`` centres of every class, with normal noise of deviation 1; drawn, no download.

    Parameters
    ----------
    separation
        how far centres are from the origin, each in a direction of its own.
    dimensions
        d, numbers of a point.
    examples, held_out
        to train on, and to be scored on; classes and centres in turn.
    """
    rng = numpy_generator(seed, "heaps", classes, modes, dimensions)
    centres = rng.standard_normal((modes * classes, dimensions))
    centres *= separation / np.linalg.norm(centres, axis=1, keepdims=True)

    def drawn(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        which = np.arange(num) % len(centres)
        x = centres[which] + rng.standard_normal((num, dimensions))
        return torch.from_numpy(x).float(), torch.from_numpy(which % classes)

    return Classification(drawn(examples), drawn(held_out), classes)
