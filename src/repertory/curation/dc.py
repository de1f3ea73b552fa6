r"""Make a few examples on which a network gets the same gradients as on all real ones, class by class.

## Idea
If a few made examples give a network the gradients that the real ones give, then training on them goes where
training on all data goes. So take a fresh network, compare for each class the gradient of a real batch with that of
the made examples, and move the pixels to bring the two together; train the network a little on the made set, and
compare again. Many fresh networks make the set good for any initial weights.

## Use it when
- you want a small set to train many small networks on: architecture search, replay in continual learning;
- one to fifty examples of each class are enough, and a network of few layers is what will be trained on them;
- experts for `mtt` are too much: gradients need no training on the real data.

## Do not use it when
- classes share a background or a texture that says nothing of them: it fills the gradient of every class, and made
  examples show that (take `dcc`);
- many examples of each class are wanted: random real ones catch up, and the cost grows;
- other kinds of networks will be trained on the set than it was made with;
- accuracy near that of all data is needed.

## Equations
$$ \min_S \; \mathbb E_{\theta_0} \sum_t \sum_c D\big( \nabla_\theta \ell(S_c; \theta_t),
   \nabla_\theta \ell(B_c; \theta_t) \big), \qquad
   D(A, B) = \sum_{\text{layers}} \sum_i 1 - \frac{\langle A_i, B_i \rangle}{\lVert A_i \rVert \lVert B_i \rVert} $$
with rows $i$ for the outputs of a layer, $B_c$ a real batch of class $c$, and $\theta_{t+1}$ the network after some
passes over $S$. Gradient descent with momentum 0.5 on $S$.

## Defaults
Those of the authors' code: 1000 networks, learning rates 0.1 for the examples and 0.01 for the network, 256 real
examples of each class, a start from noise. Updates for each network and passes between two of them depend on the size:
1 and 1 for one example a class, 10 and 50 for ten, 50 and 10 for fifty. For perceptrons the authors take
`lr_inputs=0.01`. To try it on a CPU: `iterations=50`. `strategy` gives Siamese augmentation (DSA):
`strategy=[colour,crop,cutout,scale,rotate]`, and `flip` where mirrored images keep their class.

## Cost
For each update one forward and backward pass of `classes * batch` real examples, and a forward and four backward
passes of the made ones; 10 000 updates at ten a class. The 8 x 8 digits take about 0.1 s an update on one CPU core.

## Claim
Networks trained on the made set are far more accurate than those trained on as many random real examples, and more
accurate than on examples chosen by herding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repertory.card import Card
from repertory.curation.condensing import condensed_by
from repertory.curation.condensing.matching import GradientMatcher
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="dc",
    name="DC / DSA",
    title="Dataset Condensation with Gradient Matching",
    authors="Bo Zhao, Konda Reddy Mopuri and Hakan Bilen",
    year=2021,
    venue="ICLR 2021",
    link="https://arxiv.org/abs/2006.05929",
    kind="curation",
    entry="DatasetCondensation",
    problems=("dataset condensation", "synthetic training set", "dataset distillation", "gradient matching"),
    defaults={
        "iterations": 1000,
        "updates": None,
        "passes": None,
        "lr_inputs": 0.1,
        "lr_network": 0.01,
        "batch": 256,
        "distance": "rows",
        "strategy": (),
        "start": "noise",
    },
    scenarios=("condensation",),
    needs=("classes",),
    neutral={"iterations": 0, "start": "real"},
    search={"lr_inputs": (0.01, 1.0)},
    tags=("gradient matching", "differentiable Siamese augmentation", "DSA", "few examples"),
    baseline=True,
)

__all__ = ["CARD", "DatasetCondensation", "edit"]

_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class DatasetCondensation(GradientMatcher):
    """Condense a training set by matching the gradients of every class.

    Args:
        iterations: networks, each from fresh weights; 0 leaves the made examples as they begin.
        updates: of the made examples for each network; None takes the published number for the size of the set.
        passes: of the network over the made examples between two updates; None takes the published number.
        lr_inputs: learning rate of the made examples, in units of the normalised inputs.
        lr_network: learning rate of the network, plain gradient descent.
        batch: real examples of each class in an update; all, where a class has fewer.
        distance: "rows" (the published one), "cosine" or "squared"; see `gradient_distance`.
        strategy: augmentations of images, of which one is drawn for each class and update, the same for real and made
            ones (DSA); empty for none.
        start: "noise", or "real" for random real examples.

    Raises:
        OptionError: if an option is out of range.

    >>> DatasetCondensation(iterations=50, start="real").batch
    256

    Notes:
        Gradients of all classes are taken in one batched pass (on a CPU those of convolutional networks on real
        examples class by class, which is faster there). Layers that keep running statistics take those of 16
        real examples of each class, whole, where the authors' code averages them in; dropout is off. A network that is
        judged in scenario condensation is trained as the recipe says, and not augmented by `strategy`.

    Reference: Zhao, Mopuri, Bilen, Dataset Condensation with Gradient Matching, https://arxiv.org/abs/2006.05929; Zhao,
    Bilen, Dataset Condensation with Differentiable Siamese Augmentation, https://arxiv.org/abs/2102.08259.
    """

    def __init__(
        self,
        iterations: int = 1000,
        updates: int | None = None,
        passes: int | None = None,
        lr_inputs: float = 0.1,
        lr_network: float = 0.01,
        batch: int = 256,
        distance: str = "rows",
        strategy: Sequence[str] = (),
        start: str = "noise",
    ) -> None:
        super().__init__(
            "dc",
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


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Let gradient matching make the condensed set."""
    return condensed_by(recipe, Part("repertory.curation.dc:DatasetCondensation", options, "dc"))
