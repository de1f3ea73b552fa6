"""Optimizers: `torch.optim.Optimizer`s with parameter groups, closures and foreach."""

from repertory.optim.lion import Lion

__all__ = ["Lion"]
