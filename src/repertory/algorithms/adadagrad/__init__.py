r"""Start with small batches and enlarge them when the gradient is too noisy for its own size, around any optimizer.

## Idea
Far from a minimum the gradient is long and a few examples tell its direction; close to one it is short and drowns in
the noise of a small batch. AdAdaGrad measures both in every step: the variance of the examples' gradients, and the
length of their mean. When the noise of a batch exceeds a share of that length, the next batch is made as large as is
needed to bring it down. Batches only grow. Small ones early make progress and help generalisation, large ones late use
the hardware well, and nobody designs a schedule. The weights are updated by an adaptive method: AdaGrad, AdaGrad-Norm,
or whatever you use.

## Use it when
- large batches are what makes your hardware fast, but training with them from the start generalises worse;
- you do not want to search for a batch size, or for a schedule of batch sizes;
- many devices train together, and each update costs a synchronisation.

## Do not use it when
- passes are what you pay for: the gradients of single examples double the cost of a step as long as batches still grow
  (`interval=10` takes them in one step of ten, `variance="micro-batches"` does without them);
- the network normalises by the batch and never sees its running statistics settle: use `variance="micro-batches"`;
- the loss gives no value an example (class-weighted means, contrastive losses): `variance="micro-batches"` again.

## Equations
With the gradients $g_i$ of the $b$ examples of a batch, their mean $g$ and unbiased variances, the norm test asks for
$$ T = \frac{\sum_j \operatorname{Var}_j(g_i)}{\eta^2 \lVert g \rVert^2}, \qquad
   b \leftarrow \min\left( \max(b, \lceil T \rceil),\, b_{\max} \right) $$
The inner-product test takes $T = \operatorname{Var}(\langle g_i, g \rangle) / (\theta^2 \lVert g \rVert^4)$; the
augmented test the larger of this and the orthogonality test's
$\sum_j \operatorname{Var}_j\left( g_i - \frac{\langle g_i, g \rangle}{\lVert g \rVert^2} g \right) /
(\nu^2 \lVert g \rVert^2)$. The coordinate-wise test takes a quantile (the largest) over $j$ of
$\operatorname{Var}_j(g_i) / (\eta^2 g_j^2)$.
Micro-batches of $n_c$ examples with mean gradients $m_c$ estimate the variance by the law of total variance as
$\frac{1}{C - 1} \sum_c n_c \lVert m_c - g \rVert^2$, of which the expectation is the same.

## Defaults
`test="norm", eta=0.5`, batches from 8 examples to the whole training set, micro-batches of at most 128, a test in every
step: the paper's for ResNet-18 on CIFAR-10, with AdaGrad at a learning rate of 0.05 (which a comparison takes, with the
baseline's schedule). It has `eta=0.1` for MNIST and ImageNet, 0.25 for ResNet-50. The smaller `eta`, the earlier the
batches are large. `theta=0.5, nu=1` are its augmented test's. The learning rate is not scaled with the batch.

## Cost
While batches grow, a step with a test costs one more forward and backward pass of each example, in chunks: the memory
of up to 256 MiB of gradients. Once the largest batch is reached there are no tests, and no cost.

## Claim
The test accuracy lies between those of small and large constant batches, at far fewer steps than with the small ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.algorithms.adadagrad.noise import (
    Moments,
    coordinate_test,
    inner_product_test,
    norm_test,
    orthogonality_test,
)
from repertory.card import Card
from repertory.core.distributed import sum_over_processes
from repertory.core.method import Inner, Method
from repertory.core.perturbation import total_norm
from repertory.core.state import Run, State, batch_size
from repertory.errors import ConflictError, OptionError, check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="adadagrad",
    name="AdAdaGrad",
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    authors="Tim Tsz-Kit Lau, Han Liu, Mladen Kolar",
    year=2024,
    venue="arXiv 2024",
    link="https://arxiv.org/abs/2402.11215",
    kind="algorithm",
    entry="AdAdaGrad",
    problems=("adaptive batch size", "batch size schedule", "gradient noise", "large-batch training"),
    defaults={
        "test": "norm",
        "eta": 0.5,
        "theta": 0.5,
        "nu": 1.0,
        "quantile": 1.0,
        "initial_batch_size": 8,
        "max_batch_size": None,
        "micro_batch_size": 128,
        "interval": 1,
        "variance": "examples",
    },
    scenarios=("supervised", "retrieval", "continual"),
    neutral={"optimizer": "baseline", "initial_batch_size": None, "max_batch_size": 1},
    search={"eta": (0.1, 2.0)},
    tags=("norm test", "inner product test", "AdaGrad", "AdaGrad-Norm", "distributed training", "accumulation"),
)

TESTS = ("norm", "inner-product", "augmented", "coordinate")
OPTIMIZERS = ("adagrad", "adagrad-norm", "baseline")
_PARTS = 4
"""Micro-batches that a batch is split into at least where their gradients give the variance."""


class AdAdaGrad(Method):
    """Adaptive batch sizes around any optimizer.

    The method asks for a batch size by `run.batch_size`, over all processes together, and limits what a process
    differentiates at once by `run.micro_batch`. `repertory.training.train` follows the first, every `Step` the second.

    Args:
        test: "norm", "inner-product", "augmented" (inner product and orthogonality) or "coordinate".
        eta: ratio of the gradient's error to its length that the norm test and the coordinate-wise test allow.
        theta: ratio that the inner-product test allows.
        nu: ratio that the orthogonality test allows.
        quantile: share of the coordinates that must pass the coordinate-wise test.
        initial_batch_size: examples in the first batch; None leaves it to the loader.
        max_batch_size: examples in the largest batch; None is the whole training set.
        micro_batch_size: most examples that a process differentiates at once; None sets no limit.
        interval: steps from one test to the next.
        variance: "examples" takes the gradient of every example of the batch; "micro-batches" only compares those of
            the micro-batches that the batch is split into (at least 4), which costs nothing but is less exact.

    Raises:
        OptionError: if an option is outside its range, or `variance="micro-batches"` is combined with a test that
            needs inner products.
        ConflictError: in a step, if neither `max_batch_size` nor the size of the training set is known, or the loss
            has no value an example (for `variance="examples"`).

    >>> from repertory import Step
    >>> model = torch.nn.Linear(2, 2)
    >>> optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    >>> step = Step(model, optimizer, torch.nn.CrossEntropyLoss(), [AdAdaGrad(initial_batch_size=4)], examples=100)
    >>> _ = step((torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 1, 0])))
    >>> step.run.batch_size > 4
    True

    Notes:
        The authors' code forms inner products and orthogonal residuals for each parameter tensor by itself and divides
        their summed variances by powers of the whole gradient's norm; here all parameters are one vector, as in the
        paper. With accumulation it adds the unbiased variance within micro-batches and the biased one between them;
        here all examples of the step, over micro-batches and processes, have one unbiased variance. Layers that
        normalise by the batch take their running statistics in the gradients of single examples (the authors' take the
        statistics of that example alone). The tested direction is the gradient that reaches the optimizer, so that of
        the moved weights under a method like SAM that stands behind this one; clipping comes later. A batch of one
        example has no variance, so the next one has two.

    Reference: Lau, Liu, Kolar, https://arxiv.org/abs/2402.11215; the tests: Byrd, Chin, Nocedal, Wu, Sample size
    selection in optimization methods for machine learning, Mathematical Programming 134, 2012; Bollapragada, Byrd,
    Nocedal, Adaptive sampling strategies for stochastic optimization, SIAM Journal on Optimization 28, 2018.
    """

    slug = "adadagrad"
    owns = frozenset({"batch_size"})

    def __init__(
        self,
        test: str = "norm",
        eta: float = 0.5,
        theta: float = 0.5,
        nu: float = 1.0,
        quantile: float = 1.0,
        initial_batch_size: int | None = 8,
        max_batch_size: int | None = None,
        micro_batch_size: int | None = 128,
        interval: int = 1,
        variance: str = "examples",
    ) -> None:
        super().__init__()
        check_choice("test", test, TESTS)
        check_number("eta", eta, above=0)
        check_number("theta", theta, above=0)
        check_number("nu", nu, above=0)
        check_number("quantile", quantile, above=0, maximum=1)
        sizes = {
            "initial_batch_size": initial_batch_size,
            "max_batch_size": max_batch_size,
            "micro_batch_size": micro_batch_size,
        }
        for name, size in sizes.items():
            if size is not None:
                check_number(name, size, minimum=1, integer=True)
        check_number("interval", interval, minimum=1, integer=True)
        check_choice("variance", variance, ("examples", "micro-batches"))
        if variance == "micro-batches" and test in ("inner-product", "augmented"):
            raise OptionError(
                f"test={test!r} is not allowed with variance='micro-batches': inner products with the mean gradient "
                f"need all gradients at once; take test='norm' or 'coordinate', or variance='examples'"
            )
        self.test, self.eta, self.theta, self.nu, self.quantile = test, eta, theta, nu, quantile
        self.initial_batch_size, self.max_batch_size = initial_batch_size, max_batch_size
        self.micro_batch_size, self.interval, self.variance = micro_batch_size, interval, variance

    def setup(self, run: Run) -> None:
        """Ask for the first batch size, and limit the micro-batches."""
        if self.initial_batch_size is not None:
            run.batch_size = self.initial_batch_size
        run.micro_batch = self.micro_batch_size

    def gradient(self, state: State, inner: Inner) -> Tensor:
        """Take the gradient, and ask for larger batches if it is too noisy."""
        run = state.run
        present = run.batch_size or self._global_size(state)
        largest = self._largest(run)
        if present >= largest or run.counts.steps % self.interval:
            return inner(state)
        moments = Moments(coordinates=self.test == "coordinate")
        if self.variance == "micro-batches":
            loss = self._watched(state, inner, moments, present)
        else:
            loss = inner(state)
            gradient = [_or_zeros(p.grad, p) for p in run.parameters]
            direction = gradient if self.test in ("inner-product", "augmented") else None
            for gradients in run.example_gradients(state):
                moments.add(gradients, direction=direction)
        moments.sum_over_processes()
        if moments.enough:
            wanted = self.wanted(moments, [_or_zeros(p.grad, p) for p in run.parameters])
            run.batch_size = max(present, _whole(wanted, largest))
        elif present == 1:
            run.batch_size = 2
        return loss

    def wanted(self, moments: Moments, gradient: Sequence[Tensor]) -> float:
        """Return the batch size at which the test would just pass.

        Args:
            moments: of the batch's gradients, over all processes.
            gradient: the batch's, one tensor a parameter.
        """
        if self.test == "coordinate":
            flat = torch.cat([g.flatten() for g in gradient])
            return coordinate_test(moments.variances(), flat, self.eta, self.quantile)
        squared_norm = float(total_norm(gradient)) ** 2
        if self.test == "norm":
            return norm_test(moments.variance(), squared_norm, self.eta)
        wanted = inner_product_test(moments.along(), squared_norm, self.theta)
        if self.test == "augmented":
            across = orthogonality_test(moments.variance(), moments.along(), squared_norm, self.nu)
            wanted = max(wanted, across)
        return wanted

    def _watched(self, state: State, inner: Inner, moments: Moments, present: int) -> Tensor:
        run = state.run

        def note(part: State, gradients: list[Tensor | None]) -> None:
            if part.evaluation == state.evaluation:
                whole = [_or_zeros(g, p)[None] for g, p in zip(gradients, run.parameters)]
                moments.add(whole, weight=batch_size(part.batch))

        limit, share = run.micro_batch, math.ceil(present / _PARTS)
        run.micro_batch = share if limit is None else min(limit, share)
        try:
            return inner(state.replace(microgradients=note))
        finally:
            run.micro_batch = limit

    def _largest(self, run: Run) -> int:
        largest = self.max_batch_size or run.examples
        if largest is None:
            raise ConflictError(
                "adadagrad lets batches grow up to the whole training set, but nobody said how large it is; pass "
                "examples=... to Step, or max_batch_size=... to AdAdaGrad"
            )
        return largest

    def _global_size(self, state: State) -> int:
        return int(sum_over_processes(torch.tensor(batch_size(state.batch), device=state.run.device)))


def _whole(wanted: float, largest: int) -> int:
    # What is not a number comes of a gradient that is not finite, which says nothing about the noise.
    return 0 if math.isnan(wanted) else math.ceil(min(wanted, largest))


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, requires_grad=False) if gradient is None else gradient.detach()


def edit(recipe: Recipe, *, optimizer: str = "adagrad", lr: float | None = None, **options: Any) -> Recipe:
    """Add the method, and take AdaGrad at the published learning rate, AdaGrad-Norm, or leave the optimizer.

    Args:
        recipe: the baseline.
        optimizer: "adagrad", "adagrad-norm", or "baseline" for the one that is there.
        lr: its learning rate.
        options: of `AdAdaGrad`.
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    if lr is not None:
        check_number("lr", lr, minimum=0)
    given = {} if lr is None else {"lr": lr}
    part = recipe.optimizer
    if optimizer == "adagrad":
        part = Part("torch.optim:Adagrad", {"lr": 0.05, **given}, "adadagrad")
    elif optimizer == "adagrad-norm":
        part = Part("repertory.optim.adagrad_norm:AdaGradNorm", given, "adadagrad")
    elif given:
        part = Part(part.factory, {**part.options, **given}, part.slug)
    made = Part("repertory.algorithms.adadagrad:AdAdaGrad", options, "adadagrad")
    return recipe.replace(optimizer=part).add("methods", made)
