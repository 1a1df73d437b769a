"""Models of ``sentence-transformers`` by name, for those who are online: what turns texts into vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

from lab.ground.errors import RecipeError
from lab.models.files import in_one_line


@cache
def sentence_model(name: str, called: str, otherwise: str) -> Any:
    """The model of that name, or in that folder, on the CPU.

    Parameters
    ----------
    called, otherwise
        for errors: how it was asked for, and what needs nothing.

    Raises
    ------
    RecipeError
        where the package is not installed, or has no such model.
    """
    try:
        import sentence_transformers
    except ImportError:
        raise RecipeError(
            f"embeddings by {called!r} need sentence-transformers: pip install sentence-transformers, or use {otherwise}"
        ) from None
    try:
        return sentence_transformers.SentenceTransformer(name, device="cpu")
    except Exception as error:  # the hub's, the file's, the model's: they have no class in common
        raise RecipeError(f"cannot load {called!r} ({in_one_line(error)}): use another, or {otherwise}") from None
