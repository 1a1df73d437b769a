"""What a notebook is saved with where controls are that need a kernel."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class StaticFallback(anywidget.AnyWidget):
    """Has a notebook saved with ``words`` in place of ``controls`` (the id of a widget's model), where there are words."""

    _esm = Path(__file__).with_name("static_fallback.js")
    controls = traitlets.Unicode().tag(sync=True)
    words = traitlets.Unicode().tag(sync=True)
