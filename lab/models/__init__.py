"""Models that ship with the lab, and how others come in.

A size of a GPT is ``lab.models.gpt.SIZES``, a small model one of `MODELS`, each from a file of its own.
"""

from __future__ import annotations

from lab.models import abbie, cnn, mlp, resnet, sensor
from lab.models.registry import MODELS, model, parse_model

__all__ = ["MODELS", "abbie", "cnn", "mlp", "model", "parse_model", "resnet", "sensor"]
