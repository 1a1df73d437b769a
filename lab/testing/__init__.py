"""Laws that are tried, in seconds, on what one brings oneself: a method, a model, a task."""

from __future__ import annotations

from lab.testing.methods import check_method, check_reduction
from lab.testing.models import check_model
from lab.testing.report import Finding, Report
from lab.testing.tasks import check_task

__all__ = ["Finding", "Report", "check_method", "check_model", "check_reduction", "check_task"]
