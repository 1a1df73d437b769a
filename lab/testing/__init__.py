"""Laws that are tried, in seconds, on what one brings oneself: a method, a model, a task."""

from __future__ import annotations

from lab.testing.methods import check_method
from lab.testing.report import Report

__all__ = ["Report", "check_method"]
