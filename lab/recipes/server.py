"""What a server has of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lab.ground.config import config


@config
class Server:
    """The server's own examples, for methods whose server trains (those that say so: `lab.methods.registry.Declared.unlabelled`).

    labelled
        so many examples of every class, with their labels. They are taken off before all others are dealt to clients, drawn from the
        recipe's seed; the same ones for every method, number of clients, and split that does not take examples apart.
    """

    labelled: Annotated[int, Field(ge=0)] = 0
