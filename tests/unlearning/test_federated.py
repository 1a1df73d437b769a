"""Clients that forget together: what is sent, by hand, and what the server gets, against one who had all."""

from __future__ import annotations

import pytest
import torch

from lab.systems.unlearning.federated import Way, unlearn_together_
from lab.systems.unlearning.lunar import Lunar, Request, closed, edit_, training_rows, unlearning_vectors
from lab.systems.unlearning.places import Places
from tests.support.forgetting import D, P, gpt, prompts
from tests.support.texts import fails


def requests(num: int = 3) -> list[Request]:
    return [Request(prompts(1 + k, 10 + k), prompts(4, 20 + k), prompts(4, 30)) for k in range(num)]


def test_exact_is_the_fit_of_somebody_who_has_all_rows() -> None:
    places, how = Places.of(gpt()), Lunar(ridge=0.01)
    x, residual = [], []
    for r in requests():
        vector = unlearning_vectors(places, r.forget, r.reference)[1]
        rows, wanted, _ = training_rows(places, r, how, 1, vector)
        x.append(rows)
        residual.append(wanted)
    w0 = places.matrix(1).clone()
    central = w0 + closed(w0, torch.cat(x), torch.cat(residual), how)
    unlearn_together_(places, requests(), how, 1, "exact")
    torch.testing.assert_close(places.matrix(1), central, rtol=1e-10, atol=1e-12)


def test_an_average_is_one_of_what_each_would_have_done() -> None:
    places, how = Places.of(gpt()), Lunar(ridge=0.01)
    w0, fitted = places.matrix(1).clone(), []
    for r in requests():
        edit_(places, r, how, 1)
        fitted.append(places.matrix(1).clone())
        places.matrix(1).copy_(w0)
    mean = torch.stack(fitted).mean(0)
    for way, wanted in (("average", mean), ("sum", w0 + 3 * (mean - w0))):
        unlearn_together_(places, requests(), how, 1, way)  # type: ignore[arg-type]
        torch.testing.assert_close(places.matrix(1), wanted, rtol=1e-12, atol=1e-13)
        places.matrix(1).copy_(w0)


@pytest.mark.parametrize("fit", ["closed", "adamw", "lora"])
def test_one_client_alone_is_as_without_a_server(fit: str) -> None:
    how = Lunar(layers=(1,), fit=fit, epochs=2)  # type: ignore[arg-type]
    alone, together = Places.of(gpt()), Places.of(gpt())
    edit_(alone, requests(1)[0], how, 1)
    unlearn_together_(together, requests(1), how, 1)
    torch.testing.assert_close(together.matrix(1), alone.matrix(1))


@pytest.mark.parametrize(("way", "numbers"), [("average", D * P), ("sum", D * P), ("exact", P * P + D * P)])
def test_bytes_are_those_of_the_one_matrix(way: Way, numbers: int) -> None:
    """Float64 here: eight bytes a number, up from each of three clients, and the matrix down to each; twice, in two rounds."""
    ledger = unlearn_together_(Places.of(gpt()), requests(), Lunar(), 1, way, rounds=2)
    by = ledger.by("step", "op")
    up = "gather" if way == "exact" else "reduce"
    assert by == {(t, op): 3 * 8 * n for t in (1, 2) for op, n in ((up, numbers), ("broadcast", D * P))}


def test_a_model_in_float32_hands_in_half_of_that() -> None:
    ledger = unlearn_together_(Places.of(gpt().float()), requests(), Lunar(), 1)
    assert ledger.total_bytes() == 3 * 4 * D * P * 2


def test_what_does_not_go_together() -> None:
    with fails("way = 'exact' adds up what the closed form needs, and fit is 'adamw'"):
        unlearn_together_(Places.of(gpt()), requests(), Lunar(fit="adamw"), 1, "exact")
    with fails("requests of clients, and rounds: give at least one of each"):
        unlearn_together_(Places.of(gpt()), [], Lunar(), 1)
