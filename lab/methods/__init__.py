"""One paper, one file. To add a method: write its file, with `method` above its class; the laws in ``tests`` then cover it.

A method is named by its module: ``from lab.methods.des_loc import DESLOC``.
"""

from __future__ import annotations

import importlib
import pkgutil

from lab.methods.registry import METHODS, Declared, Method, declared, method, name_of, parse_method

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["METHODS", "Declared", "Method", "declared", "method", "name_of", "parse_method"]
