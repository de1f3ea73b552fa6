from __future__ import annotations

import torch

from repertory.training.memory import peak_memory

CPU = torch.device("cpu")
KILO = 1000 * 4


def test_peak_is_the_most_bytes_alive_at_once() -> None:
    with peak_memory(CPU) as found:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b * 2
        del b, c
        torch.zeros(500)
    assert found == [2 * KILO]


def test_tensors_from_before_and_views_are_not_counted() -> None:
    before = torch.zeros(5000)
    with peak_memory(CPU) as found:
        view = before.view(50, 100)[3:]
        view.add_(1)
        view.sum()
    assert found == [4]


def test_operations_in_place_take_nothing() -> None:
    with peak_memory(CPU) as found:
        a = torch.zeros(1000)
        for _ in range(5):
            a.mul_(2).add_(1)
    assert found == [KILO]


def test_what_autograd_keeps_for_the_backward_pass_is_counted() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with peak_memory(CPU) as kept:
        value = ((weight * 2).exp() * 3).sum()
    with torch.no_grad(), peak_memory(CPU) as dropped:
        value = ((weight * 2).exp() * 3).sum()
    assert kept[0] > dropped[0] >= 2 * KILO
    del value
