"""Real examples: drawn by class for a condenser, and a few of each class as what made ones are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repertory.errors import DataError, check_choice, check_number

RULES = ("random", "herding", "k_center")
"""How real examples may be chosen."""


class RealClasses:
    """Real examples from which batches of all classes are drawn at once.

    Args:
        inputs: `(n, ...)`, normalised.
        targets: classes `(n,)`, int64.
        classes: number of classes, each with at least one example.
        generator: CPU generator of the draws.

    Raises:
        DataError: if a class has no example.

    >>> real = RealClasses(torch.arange(5.0), torch.tensor([0, 0, 0, 1, 1]), 2, torch.Generator().manual_seed(0))
    >>> inputs, weights = real.draw(3)
    >>> inputs.shape, weights[1].tolist()
    (torch.Size([2, 3]), [0.5, 0.5, 0.0])
    """

    def __init__(self, inputs: Tensor, targets: Tensor, classes: int, generator: torch.Generator) -> None:
        self.inputs = inputs
        self.targets = targets
        self.generator = generator
        order = targets.cpu().argsort(stable=True)
        counts = targets.cpu().bincount(minlength=classes)
        if int(counts.min()) == 0:
            raise DataError(f"class {int(counts.argmin())} has no example to condense; add some or leave it out")
        self._members = order.split(counts.tolist())

    @classmethod
    def of(cls, bench: Any, name: str) -> RealClasses:
        """Return the training part of a bench, normalised, on its device; draws come from its generator `name`."""
        train = bench.splits.train
        inputs = bench.splits.normaliser(train.inputs).to(bench.device)
        return cls(inputs, train.targets.to(bench.device), bench.outputs, bench.generator(name))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return up to `count` different examples of each class, drawn at random.

        Returns:
            Inputs `(classes, longest, ...)`, where `longest` is `count` or what the largest class has, and weights
            `(classes, longest)`: one over the number of drawn examples of the class, 0 where a class had no more.
        """
        check_number("count", count, minimum=1, integer=True)
        longest = min(count, max(map(len, self._members)))
        rows = torch.zeros(len(self._members), longest, dtype=torch.long)
        weights = torch.zeros(len(self._members), longest)
        for label, members in enumerate(self._members):
            taken = members[torch.randperm(len(members), generator=self.generator)[:count]]
            rows[label, : len(taken)] = taken
            weights[label, : len(taken)] = 1 / len(taken)
        device = self.inputs.device
        return self.inputs[rows.to(device)], weights.to(device)


class RealExamples:
    """Keep a few real training examples of each class.

    Args:
        rule: "random"; "herding", which keeps the mean of what was chosen near that of the class (Welling, 2009); or
            "k_center", which starts at the example nearest to the class's mean, and adds the one farthest from all
            that were chosen. Both measure on the normalised inputs.

    Raises:
        OptionError: if the rule is none of these.

    >>> RealExamples("herding").rule
    'herding'
    """

    def __init__(self, rule: str = "random") -> None:
        check_choice("rule", rule, RULES)
        self.rule = rule

    def condense(self, bench: Any) -> Any:
        """Return `bench.per_class` examples of each class as they are, classes in their order."""
        return bench.splits.train.subset(self.rows(bench))

    def rows(self, bench: Any) -> Tensor:
        """Return the rows of the training part that are kept `(classes * per_class,)`, classes in their order."""
        train, count = bench.splits.train, bench.per_class
        members = [(train.targets == label).nonzero().flatten() for label in range(bench.outputs)]
        if self.rule == "random":
            generator = bench.generator("real examples")
            return torch.cat([each[torch.randperm(len(each), generator=generator)[:count]] for each in members])
        choose = herding if self.rule == "herding" else k_center
        inputs = bench.splits.normaliser(train.inputs).flatten(1)
        return torch.cat([each[choose(inputs[each], count)] for each in members])


def herding(features: Tensor, count: int) -> Tensor:
    r"""Return rows whose mean stays as near to the mean of all as it can, chosen one after the other.

    The $k$-th is the one that brings $\tfrac1k \sum_{j \le k} x_j$ nearest to the mean of all.

    Args:
        features: `(n, dim)`.
        count: how many, at most `n`.

    >>> herding(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2).tolist()
    [2, 1]
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    taken = torch.zeros(len(features), dtype=torch.bool)
    chosen = []
    for number in range(1, count + 1):
        distance = ((total + features) / number - mean).square().sum(1).masked_fill(taken, torch.inf)
        chosen.append(int(distance.argmin()))
        taken[chosen[-1]] = True
        total = total + features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Return rows that cover the others: the one nearest to the mean, then always the farthest from all chosen ones.

    Args:
        features: `(n, dim)`.
        count: how many, at most `n`.

    >>> k_center(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2).tolist()
    [2, 3]
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(features),), torch.inf)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)
