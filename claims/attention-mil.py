"""Are bags classified better by attention than by a mean or a maximum over their instances?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import AttentionMIL
from repertory.compare.claim import Claim, Statement
from repertory.core.method import Method
from repertory.core.randomness import generator_for
from repertory.core.ranking import roc_auc
from repertory.core.state import State
from repertory.scenarios.bag_metrics import mean_by
from repertory.testing.worlds import digits, mlp

POSITIVE, TEST_BAGS, EPOCHS, A_BATCH = 9, 400, 50, 10


def maximum_by(values: Tensor, groups: Tensor) -> Tensor:
    """Return the largest value of each group in every column, of rows `(rows, width)`."""
    made = values.new_zeros(int(groups.max()) + 1, values.shape[1])
    return made.scatter_reduce(0, groups[:, None].expand_as(values), values, "amax", include_self=False)


POOLS: dict[str, Callable[[nn.Sequential, Tensor, Tensor], Tensor]] = {
    "mean of features": lambda model, x, groups: model[-1](mean_by(model[:-1](x), groups)),
    "maximum of features": lambda model, x, groups: model[-1](maximum_by(model[:-1](x), groups)),
    "mean of instances": lambda model, x, groups: mean_by(model(x).softmax(1), groups).log(),
    "maximum of instances": lambda model, x, groups: _highest(model(x), groups),
}


def _highest(logits: Tensor, groups: Tensor) -> Tensor:
    margin = maximum_by(logits[:, 1:] - logits[:, :1], groups)
    return torch.cat([torch.zeros_like(margin), margin], 1)


class Pooled(Method):
    """Classifies the bags of a batch by one of `POOLS`."""

    slug = "pooled"
    owns = frozenset({"forward"})

    def __init__(self, pool: Callable[[nn.Sequential, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def setup(self, run: object) -> None:
        """Take over the evaluation."""
        run.forward = self._evaluate  # type: ignore[attr-defined]

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        state.output = self.pool(state.run.model, state.batch["input"], state.batch["group"])  # type: ignore[arg-type]
        target = state.batch["target"]
        return criterion(state.output, mean_by(target.double(), state.batch["group"]).round().long()).mean()


def bags(inputs: Tensor, targets: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return instances `(rows, 64)` and bag `(rows,)` of bags of about 10; every second one holds a 9, or several."""
    sizes = (10 + 2 * torch.randn(count, generator=generator)).round().clamp(min=3).long()
    groups = torch.arange(count).repeat_interleave(sizes)
    inside, outside = (targets == POSITIVE).nonzero().flatten(), (targets != POSITIVE).nonzero().flatten()
    rows = outside[torch.randint(len(outside), (len(groups),), generator=generator)]
    nine = torch.rand(len(groups), generator=generator) < 0.1
    nine[sizes.cumsum(0) - sizes] = True
    nine &= groups % 2 == 1
    rows[nine] = inside[torch.randint(len(inside), (int(nine.sum()),), generator=generator)]
    return inputs[rows], groups


def run(seed: int) -> dict[str, float]:
    """Train with each way of pooling on 50 and on 200 bags; return the AUC of the test bags."""
    world, values = digits(seed), {}
    for count in (50, 200):
        generator = generator_for(seed, f"bags/{count}")
        inputs, groups = bags(world.inputs, world.targets, count, generator)
        tested, test_groups = bags(world.test_inputs, world.test_targets, TEST_BAGS, generator)
        arms: dict[str, Method] = {name: Pooled(pool) for name, pool in POOLS.items()}
        arms |= {"attention": AttentionMIL(), "gated attention": AttentionMIL(gated=True)}
        for name, method in arms.items():
            model = mlp([64, 128, 64, 2], seed)
            optimizer = partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-4)
            step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[method], classes=2, seed=seed)
            order = generator_for(seed, "order")
            for _ in range(EPOCHS):
                for chosen in torch.randperm(count, generator=order).split(A_BATCH):
                    kept = torch.isin(groups, chosen)
                    own = groups[kept].unique(return_inverse=True)[1]
                    step({"input": inputs[kept], "target": groups[kept] % 2, "group": own})
            with torch.no_grad():
                if name in POOLS:
                    logits = POOLS[name](model, tested, test_groups)
                else:
                    logits = model[-1].bag_logits(model[:-1](tested), test_groups)
            values[f"{name}/{count}"] = roc_auc(logits[:, 1] - logits[:, 0], torch.arange(TEST_BAGS) % 2)
    return values


CLAIM = Claim(
    slug="attention-mil",
    claim="Bags in which few instances decide are classified better by attention than by a mean or a maximum over "
    "instances or their features, with few training bags in particular.",
    paper="MNIST bags of about 10 digits, positive where one is a 9: test AUC of attention above mean and maximum, of "
    "instances and of features, for 50 to 500 training bags; the lead is largest for few.",
    experiment="scikit-learn digits, half for training; bags of 10 digits, standard deviation 2, half of them "
    "positive: with at least one 9; 50 or 200 training bags and 400 test bags; digits of a half are drawn with "
    "replacement. Perceptron 64-128-64-2, Adam, learning rate 1e-3, weight decay 1e-4, 50 epochs, 10 bags a step, "
    "10 seeds.",
    statements=tuple(
        Statement(
            f"{count} bags: the AUC of attention is above that of the {other}",
            left=f"attention/{count}",
            right=f"{other}/{count}",
            above=0.0,
        )
        for count in (50, 200)
        for other in POOLS
    ),
    run=run,
    seeds=10,
)
