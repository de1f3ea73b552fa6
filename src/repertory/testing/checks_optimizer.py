"""Checks of the protocol of `torch.optim.Optimizer`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.randomness import generator_for
from repertory.testing.assembly import difference, through_a_file
from repertory.testing.check import NotApplicable, check, require
from repertory.testing.subject import Subject

_SHAPES = ((3, 2), (2,), (4, 3), ())


@check("optimizer")
def foreach_equals_loop(subject: Subject) -> None:
    """The vectorised update is that of the loop over tensors, bit for bit."""
    if "foreach" not in subject.signature:
        raise NotApplicable("it has one implementation only")
    found = difference(_moved(subject, foreach=True), _moved(subject, foreach=False))
    require(not found, f"foreach=True and foreach=False differ: {found}")


@check("optimizer")
def closure(subject: Subject) -> None:
    """`step(closure)` evaluates the closure with gradients, returns its loss, and makes the same update."""
    plain, called = _parameters(), _parameters()
    optimizers = [_made(subject, parameters) for parameters in (plain, called)]

    def evaluate(parameters: list[nn.Parameter]) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = torch.stack([(p - 1).square().sum() for p in parameters]).sum()
        loss.backward()
        return loss

    for _ in range(2):
        expected = evaluate(plain).item()
        optimizers[0].step()
        with torch.no_grad():
            returned = optimizers[1].step(lambda: evaluate(called))  # type: ignore[arg-type,return-value]
        loss = returned.item() if isinstance(returned, Tensor) else returned
        require(loss == expected, f"step(closure) returned {returned}, not the closure's loss")
    found = difference([p.data for p in called], [p.data for p in plain])
    require(not found, f"with a closure the update is another one: {found}")


@check("optimizer")
def param_groups(subject: Subject) -> None:
    """Groups keep their own options, may be added later, skip tensors without gradient, and survive saving."""
    parameters = _parameters()
    still, without_gradient, moving, added = parameters
    start = [p.detach().clone() for p in parameters]
    optimizer = _made(subject, [{"params": [still], "lr": 0.0}, {"params": [moving, without_gradient]}])
    optimizer.add_param_group({"params": [added], "lr": 0.0})
    _set_gradients(parameters, 0)
    without_gradient.grad = None
    optimizer.step()
    moved = [not torch.equal(p.detach(), old) for p, old in zip(parameters, start)]
    require(not moved[0], "a tensor in a group with lr=0 moved")
    require(not moved[1], "a tensor without a gradient moved")
    require(moved[2], "a tensor with the default options did not move")
    require(not moved[3], "a tensor in a group that was added with lr=0 moved")
    second = _made(subject, [{"params": [still]}, {"params": [moving, without_gradient]}, {"params": [added]}])
    second.load_state_dict(through_a_file(optimizer.state_dict()))
    require(second.param_groups[0]["lr"] == 0.0, "load_state_dict lost a group's learning rate")
    found = difference(second.state_dict(), optimizer.state_dict())
    require(not found, f"the loaded state is not the saved one: {found}")


@check("optimizer")
def refuses_sparse(subject: Subject) -> None:
    """Sparse gradients are refused with a message that says so, unless the optimizer handles them."""
    embedding = nn.Embedding(5, 2, sparse=True, _weight=torch.ones(5, 2))
    optimizer = _made(subject, list(embedding.parameters()))
    embedding(torch.tensor([1, 3])).sum().backward()
    try:
        optimizer.step()
    except (RuntimeError, ValueError) as error:
        require("sparse" in str(error), f"the message does not mention sparse gradients: {error}")
        return
    moved = (embedding.weight.detach() != 1).any(1).tolist()
    require(
        moved == [False, True, False, True, False],
        "sparse gradients are taken, and move other rows than theirs",
    )


def _made(subject: Subject, parameters: Any, **options: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = subject.make(params=parameters, **options)
    return made


def _parameters() -> list[nn.Parameter]:
    generator = generator_for(0, "tiny parameters")
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in _SHAPES]


def _set_gradients(parameters: list[nn.Parameter], number: int) -> None:
    generator = generator_for(number, "tiny gradients")
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _moved(subject: Subject, **options: Any) -> list[Tensor]:
    parameters = _parameters()
    optimizer = _made(subject, parameters, **options)
    for number in range(3):
        _set_gradients(parameters, number)
        optimizer.step()
    return [p.detach() for p in parameters]
