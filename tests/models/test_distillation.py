"""Teachers: what they say is of their own values, and nothing of the module is touched."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import kl_div

from lab.models.distillation import divergence, predictions


def small() -> nn.Module:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def test_a_teacher_speaks_with_its_own_values_and_leaves_the_module_as_it_is() -> None:
    module, g = small(), torch.Generator().manual_seed(0)
    other = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in module.named_parameters()}
    before = {n: x.clone() for n, x in module.state_dict().items()}
    x = torch.randn(5, 3, generator=g, dtype=torch.float64)

    found = predictions(module, other, x)

    normed = (x @ other["0.weight"].T + other["0.bias"]) / (1 + module[1].eps) ** 0.5  # type: ignore[operator]
    by_hand = (normed * other["1.weight"] + other["1.bias"]) @ other["3.weight"].T + other["3.bias"]
    torch.testing.assert_close(found, by_hand)
    assert not found.requires_grad
    assert module.training
    assert all(torch.equal(before[n], y) for n, y in module.state_dict().items())


def test_divergence_is_that_of_torch_and_only_the_student_learns() -> None:
    g = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, 3, 5, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))

    found = divergence(teacher, student, 2.0)

    p, q = (x.reshape(6, 5) / 2 for x in (teacher, student))
    torch.testing.assert_close(found, kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean"))
    found.backward()
    assert teacher.grad is None
    assert student.grad is not None
