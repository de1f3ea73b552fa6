r"""Make a few examples on which the gradients of all classes together are those of the real ones.

## Idea
Gradient matching compares real and made examples one class at a time, so what the classes share (a background, a
texture, the camera) can fill the match. Here the gradients of the classes are summed first, and the sums are compared
once: what is common pulls every class's output the same way and cancels, and what tells the classes apart remains.
A warm-up with the match by class steadies the beginning.

## Use it when
- classes look much alike: fine-grained kinds, images in front of one background, one device's noise;
- one example of each class is wanted, where matching by class does little;
- condensing should cost less: one match in place of one for each class.

## Do not use it when
- there are several examples of each class that could share the work, and classes look different: matching by class
  (`dc`) can do better, as it did on the digits with five of each;
- classes are of very different importance: the sum weighs them alike;
- other kinds of networks will be trained on the set than it was made with.

## Equations
$$ \min_S \; \mathbb E_{\theta_0} \sum_t D\Big( \tfrac1C \sum_c \nabla_\theta \ell(S_c; \theta_t), \tfrac1C \sum_c
   \nabla_\theta \ell(B_c; \theta_t) \Big) $$
with $D$ and $\theta_t$ as in `dc`. Softmax regression at zero weights on features $\mu_c + s$ shows the point: the
contrastive gradient is $\tfrac1C \sum_c (\tfrac1C \mathbf 1 - e_c)(\mu_c + s)^\top$, in which $s$ cancels.

## Defaults
Those of the authors' code: 1000 networks, the first quarter of them (250) as a warm-up with the match by class, in
which updates from the tenth on are contrastive all the same; a start from random real examples; learning rates 0.1 for
the examples and 0.01 for the network, 256 real examples of each class. Updates for each network and passes between two
of them: 10 and 5 for one example a class, 10 and 50 for ten, 50 and 10 for fifty. To try it on a CPU: `iterations=60,
updates=5, passes=5`. `strategy` gives Siamese augmentation (DSAC), as in `dc`.

## Cost
For each update one forward and backward pass of `classes * batch` real examples, and a forward and four backward
passes of the made ones, as in `dc`. In plain passes, not by class, it took four tenths of the time of `dc` for a
perceptron, and nearly nine tenths for a small convolutional network, where the real examples take most of it.

## Claim
Networks trained on the made set are more accurate than with `dc`, most where what the classes share dominates; there
`dc` can be worse than random real examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repertory.card import Card
from repertory.curation.condensing import condensed_by
from repertory.curation.condensing.matching import GradientMatcher
from repertory.errors import check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="dcc",
    name="DCC / DSAC",
    title="Dataset Condensation with Contrastive Signals",
    authors="Saehyung Lee et al.",
    year=2022,
    venue="ICML 2022",
    link="https://arxiv.org/abs/2202.02916",
    kind="curation",
    entry="DCC",
    problems=(
        "dataset condensation",
        "synthetic training set",
        "dataset distillation",
        "fine-grained classification",
        "shared background",
    ),
    defaults={
        "iterations": 1000,
        "outer_warmup": 0.25,
        "inner_warmup": 10,
        "updates": None,
        "passes": None,
        "lr_inputs": 0.1,
        "lr_network": 0.01,
        "batch": 256,
        "distance": "rows",
        "strategy": (),
        "start": "real",
    },
    scenarios=("condensation",),
    needs=("classes",),
    neutral={"iterations": 0},
    search={"lr_inputs": (0.01, 1.0)},
    tags=("gradient matching", "contrastive signals", "differentiable Siamese augmentation", "DSAC", "few examples"),
)

__all__ = ["CARD", "DCC", "edit"]

_LOOPS = {1: (10, 5), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class DCC(GradientMatcher):
    """Condense a training set by matching the sum of the gradients of all classes.

    Args:
        iterations: networks, each from fresh weights; 0 leaves the made examples as they begin.
        outer_warmup: share of the iterations, the first ones, in which classes are matched one by one; 1 for all.
        inner_warmup: updates of an iteration after which the sum is matched even in the warm-up.
        updates: of the made examples for each network; None takes the published number for the size of the set.
        passes: of the network over the made examples between two updates; None takes the published number.
        lr_inputs: learning rate of the made examples, in units of the normalised inputs.
        lr_network: learning rate of the network, plain gradient descent.
        batch: real examples of each class in an update; all, where a class has fewer.
        distance: "rows" (the published one), "cosine" or "squared"; see `gradient_distance`.
        strategy: augmentations of images, of which one is drawn for each class and update, the same for real and made
            ones (DSAC); empty for none.
        start: "real" for random real examples, or "noise".

    Raises:
        OptionError: if an option is out of range.

    >>> method = DCC(iterations=60)
    >>> [method.contrastive(iteration, update=0) for iteration in (0, 14, 15, 59)]
    [False, False, True, True]

    Notes:
        The warm-up is a share, so that it shortens with the iterations: 250 of 1000 in the authors' code. With ten
        updates an iteration or fewer the inner warm-up never ends, as there. As for `dc`, layers that keep running
        statistics take those of 16 real examples of each class, and dropout is off.

    Reference: Lee, Chun, Jung, Yun, Yoon, Dataset Condensation with Contrastive Signals, ICML 2022,
    https://arxiv.org/abs/2202.02916.
    """

    def __init__(
        self,
        iterations: int = 1000,
        outer_warmup: float = 0.25,
        inner_warmup: int = 10,
        updates: int | None = None,
        passes: int | None = None,
        lr_inputs: float = 0.1,
        lr_network: float = 0.01,
        batch: int = 256,
        distance: str = "rows",
        strategy: Sequence[str] = (),
        start: str = "real",
    ) -> None:
        check_number("outer_warmup", outer_warmup, minimum=0, maximum=1)
        check_number("inner_warmup", inner_warmup, minimum=0, integer=True)
        super().__init__(
            "dcc",
            loops=_LOOPS,
            start=start,
            iterations=iterations,
            updates=updates,
            passes=passes,
            lr_inputs=lr_inputs,
            lr_network=lr_network,
            batch=batch,
            distance=distance,
            strategy=strategy,
        )
        self.outer_warmup = outer_warmup
        self.inner_warmup = inner_warmup

    def contrastive(self, iteration: int, update: int) -> bool:
        """Return whether an update matches the sum over all classes, in place of every class by itself."""
        return iteration >= self.outer_warmup * self.iterations or update >= self.inner_warmup


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Let contrastive gradient matching make the condensed set."""
    return condensed_by(recipe, Part("repertory.curation.dcc:DCC", options, "dcc"))
