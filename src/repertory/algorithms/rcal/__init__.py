r"""Train on wrong labels and uneven classes at once, held to features that were learnt without any label.

## Idea
Where labels are wrong and some classes are rare, a rare class's examples look like errors, and cleaning by the loss
throws them away. Features that were learnt without labels know of neither. There each class is taken for a Gaussian:
what lies apart from its class is left out of the estimate, and a small class borrows from its nearest large ones. New
feature vectors are drawn until all classes have the same size, and the classifier is trained on those too. Meanwhile
the network is held to the features it began with, and inputs are mixed in pairs.

## Use it when
- labels are wrong and classes are uneven, as in data collected by search words;
- the network has features already: pretrained weights, or time to learn some without labels;
- you have features only: `RobustGaussianCalibrator` fills up the small classes for any classifier on top.

## Do not use it when
- labels are right: balanced softmax is simpler and better;
- many examples of a class are wrong in the same way: a group of more than `neighbors` that are like each other does
  not count as lying apart, and where it is the majority, the class itself does;
- the features that the network begins with are poor: it is held to them. In the claim below, with half of a short
  training for features, it is 12 to 18 points less accurate than plain cross-entropy and balanced softmax. Try
  `beta=0.01` there first.

## Equations
With $z_i$ the features that the network begins with, of each class $\mu_k, \Sigma_k$ of those that are no outliers by
the local outlier factor, and of a class in the smaller half, from its $q$ nearest classes $c$ of the larger half with
$w_c \propto n_c$:
$$ \mu'_k = \gamma_\mu \mu_k + (1 - \gamma_\mu) \sum_c w_c \mu_c, \qquad
   \Sigma'_k = \gamma_\Sigma \Sigma_k + (1 - \gamma_\Sigma) \sum_c w_c \Sigma_c + \alpha I . $$
Virtual features $v \sim N(\mu'_k, \Sigma'_k)$ fill each class up to the largest. With features $f$ and classifier $h$,
inputs $\tilde x$ and labels $\tilde y$ mixed in pairs,
$$ \ell = \frac{\mathrm{CE}(h(f(\tilde x)), \tilde y) + r\, \mathrm{CE}(h(v), y_v)}{1 + r}
   + \beta \lVert f(x) - z \rVert^2 , $$
where $r$ is the number of virtual features over that of examples, so that every class has the same weight.

## Defaults
`neighbors=20` is scikit-learn's of the local outlier factor. The paper's other values were not at hand:
`nearest` ($q$) `=3`, `gamma_mean=0.9`, `gamma_covariance=0.5`, `alpha=0.01`, `beta=1` and `mixup=1` (the parameter of
the beta distribution) are recalled or our own, and so are the weights $w_c$. In a comparison half of the budget
(`share`) goes to SimCLR first; where the model is `pretrained`, nothing does.

## Cost
Two forward and backward passes an example, one of mixed inputs, one to compare features. Before that one pass
over the training set, the local outlier factors ($n_k^2$ distances a class) and a decomposition of each covariance. The
features are kept: `examples * width` numbers, and as many again times $r$ for the virtual ones.

## Claim
More accurate than methods for wrong labels, for uneven classes and for both, on CIFAR-10 and CIFAR-100 with both, and
on real data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repertory.card import Card
from repertory.core.distributed import rank, world_size
from repertory.core.features import NetworkFeatures
from repertory.core.method import Inner, Method
from repertory.core.modes import evaluating
from repertory.core.state import Run, State, batch_size
from repertory.core.tables import ExampleTable
from repertory.errors import ConflictError, DataError, check_number
from repertory.recipe import Part, Recipe

if TYPE_CHECKING:
    from repertory.estimators.robust_gaussians import RobustGaussianCalibrator

CARD = Card(
    slug="rcal",
    name="RCAL",
    title="When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method",
    authors="Manyi Zhang et al.",
    year=2023,
    venue="ICCV 2023",
    link="https://arxiv.org/abs/2211.10955",
    kind="algorithm",
    entry="RCAL",
    problems=("label noise", "class imbalance", "long-tailed recognition", "noisy labels and rare classes"),
    defaults={
        "beta": 1.0,
        "mixup": 1.0,
        "multiple": 1.0,
        "neighbors": 20,
        "nearest": 3,
        "gamma_mean": 0.9,
        "gamma_covariance": 0.5,
        "alpha": 0.01,
    },
    scenarios=("noisy_long_tail", "noisy_labels", "long_tail"),
    needs=("classes", "index", "training"),
    neutral={"share": 0.0, "beta": 0.0, "mixup": 0.0, "multiple": 0.0},
    search={"beta": (0.01, 10.0)},
    tags=("Gaussian classes", "outliers", "feature augmentation", "mixup", "contrastive pre-training"),
)

__all__ = ["CARD", "RCAL", "edit"]

_MIXED, _VIRTUAL = "rcal/mixed", "rcal/virtual"
"""Entries that it adds to a batch."""


class RCAL(Method):
    """RCAL's second and third stage around any step whose network has features already.

    In its first step it passes the whole training set (`Step(..., training=loader)`) through the network, in evaluation
    mode: those are the features that the network is held to, and that the Gaussians are of. What enters the last linear
    layer counts as features. `state.output` is that of the inputs as they are, or of the mixed ones where `beta=0`.

    Args:
        beta: factor on the squared distance to the first features.
        mixup: parameter of the beta distribution of the weights of mixed inputs; 0 mixes none.
        multiple: size that classes are filled up to with virtual features, as a multiple of the largest; 0 adds none.
        neighbors: of the local outlier factor; 0 looks for no outlier.
        nearest: larger classes that a smaller one borrows from.
        gamma_mean: share that it keeps of its own mean.
        gamma_covariance: share that it keeps of its own covariance.
        alpha: added to the diagonal of its covariance.

    Raises:
        OptionError: if an option is outside its range.
        DataError: if the training set lacks indices, or an input to be mixed is no tensor of floats.

    >>> from torch import nn
    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> inputs, target, index = torch.randn(12, 4), torch.tensor([0] * 9 + [1] * 3), torch.arange(12)
    >>> method = RCAL()
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [method], classes=2,
    ...             training=[(inputs, target, index)])
    >>> loss = step((inputs, target, index))
    >>> step.run.counts.forward, len(method.virtual.entries()[0])
    (36, 6)

    Notes:
        The paper's formulas were at hand in a summary only; the card says which values are ours. It pretrains with
        MoCo; any network with features will do here. Inputs are mixed with those of the batch in reverse, turned by a
        drawn number of places, which in a random batch is a random pairing. Virtual features are drawn once; each
        step takes `r` of them an example.

    Reference: Zhang, Zhao, Yao, Yuan, Huang, https://arxiv.org/abs/2211.10955.
    """

    slug = "rcal"
    needs = frozenset({"classes", "index", "training"})
    owns = frozenset({"forward"})
    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}

    def __init__(
        self,
        beta: float = 1.0,
        mixup: float = 1.0,
        multiple: float = 1.0,
        neighbors: int = 20,
        nearest: int = 3,
        gamma_mean: float = 0.9,
        gamma_covariance: float = 0.5,
        alpha: float = 0.01,
    ) -> None:
        super().__init__()
        check_number("beta", beta, minimum=0)
        check_number("mixup", mixup, minimum=0)
        self.calibrator = _calibrator(neighbors, nearest, gamma_mean, gamma_covariance, alpha, multiple)
        self.beta, self.mixup = beta, mixup
        self.first = ExampleTable()
        self.virtual = ExampleTable()
        self.labels = ExampleTable()
        self.examples, self.drawn = 0, 0  # rows of the first table, and of the other two
        self._features: NetworkFeatures | None = None

    @property
    def fills(self) -> bool:
        """Whether virtual features are asked for."""
        return self.calibrator.multiple > 0

    def setup(self, run: Run) -> None:
        """Find the network's features, and take over its evaluation."""
        if self.beta or self.mixup or self.fills:
            self._features = NetworkFeatures(run.model, run.criterion, "penultimate")
            run.forward = self._evaluate

    def step(self, state: State, inner: Inner) -> Tensor:
        """Mix the inputs, and add virtual features to the batch."""
        if self._features is None:
            return inner(state)
        run, size = state.run, batch_size(state.batch)
        if self.first.rows is None and (self.beta or self.fills):
            self._look(run)
        added: dict[str, Any] = {}
        if self.mixup:
            added[_MIXED] = self._mixed(state)
        if self.drawn:
            chosen = self._chosen(run, math.ceil(size * self.drawn / self.examples))
            # A stream of its own, so that micro-batches take their share of it.
            added[_VIRTUAL] = {
                "input": self.virtual.read(chosen).to(run.device),
                "target": self.labels.read(chosen)[:, 0].long().to(run.device),
            }
        return inner(state.with_batch(**added))

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        run, batch, features = state.run, state.batch, self._features
        assert features is not None
        inputs, target = batch["input"], batch["target"]
        size, mixed = batch_size(batch), batch.get(_MIXED)
        parts = [inputs] if mixed is None or self.beta else []
        parts += [] if mixed is None else [mixed["inputs"]]
        with features.recorded() as seen:
            output = run.model(torch.cat(parts) if len(parts) > 1 else parts[0])
        state.output = output[:size]
        if len(parts) > 1:
            # The step counts one pass.
            run.counts.forward += size
            if torch.is_grad_enabled():
                run.counts.backward += size
        if mixed is None:
            values = criterion(output, target)
        else:
            shares = mixed["shares"].to(output.dtype)
            own, other = (criterion(output[-size:], labels) for labels in (target, mixed["target"]))
            weight = shares if own.ndim else shares.mean()
            values = weight * own + (1 - weight) * other
        if _VIRTUAL in batch:
            virtual, share = batch[_VIRTUAL], self.drawn / (self.drawn + self.examples)
            logits = features.layer(virtual["input"].to(features.layer.weight.dtype))
            values = (1 - share) * values + share * criterion(logits, virtual["target"]).mean()
        if self.beta:
            found = seen[-1][:size]
            wide = found.to(torch.promote_types(found.dtype, torch.float32))
            known = self.first.written(batch["index"])
            distances = (wide - self.first.read(batch["index"]).to(wide.dtype)).square().sum(1) * known
            values = values + self.beta * (distances if values.ndim else distances.mean())
        return values

    def _mixed(self, state: State) -> dict[str, Tensor]:
        inputs, target, size = state.batch["input"], state.batch["target"], batch_size(state.batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            given = getattr(inputs, "dtype", type(inputs).__name__)
            raise DataError(f"{self.slug} mixes inputs, which must be a tensor of floats, not {given}; give mixup=0")
        generator = state.run.generator(self.slug)
        turn = int(torch.randint(size, (), generator=generator))
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        share = float(np.random.RandomState(seed).beta(self.mixup, self.mixup))
        partner = torch.arange(size - 1, -1, -1, device=inputs.device).roll(turn)
        shares = torch.full((size,), share, device=inputs.device)
        return {"inputs": inputs.lerp(inputs[partner], 1 - share), "target": target[partner], "shares": shares}

    def get_extra_state(self) -> dict[str, int]:
        """Return how many rows the tables have, for the state dict."""
        return {"examples": self.examples, "drawn": self.drawn}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over saved numbers of rows."""
        self.examples, self.drawn = state["examples"], state["drawn"]

    def _chosen(self, run: Run, size: int) -> Tensor:
        # Every process draws for all, and takes its own.
        drawn = torch.randint(self.drawn, (size * world_size(),), generator=run.generator(self.slug))
        return drawn[rank() :: world_size()]

    @torch.no_grad()
    def _look(self, run: Run) -> None:
        """Take the features of the whole training set, and draw the virtual ones."""
        assert self._features is not None
        model, targets = run.model, ExampleTable()
        with evaluating(model):
            for entries in run.training_batches():
                index = entries["index"]
                with self._features.recorded() as seen:
                    model(entries["input"])
                self.first.write(index, seen[-1])
                targets.write(index, entries["target"][:, None])
                run.counts.forward += len(index)
        features = self.first.entries()[1]
        self.examples = len(features)
        if not self.examples:
            raise DataError("training=... gave no batch; give a loader of the whole training set")
        if not self.fills:
            return
        labels = targets.entries()[1][:, 0].long().cpu()
        if len(labels) < 2:
            raise ConflictError(f"{self.slug} needs at least two training examples; training=... has {len(labels)}")
        seed = int(torch.randint(2**31 - 1, (), generator=run.generator(self.slug)))
        calibrator = self.calibrator.set_params(random_state=seed).fit(features, labels)
        rows, drawn = calibrator.sample()
        self.drawn = len(rows)
        if self.drawn:
            places = torch.arange(self.drawn)
            self.virtual.write(places, torch.from_numpy(rows).float())
            self.labels.write(places, torch.from_numpy(drawn)[:, None].float())


def _calibrator(*options: Any) -> RobustGaussianCalibrator:
    # Here, since scikit-learn takes long to import and no other algorithm needs it.
    from repertory.estimators.robust_gaussians import RobustGaussianCalibrator

    made = RobustGaussianCalibrator(*options)
    made.check_options()
    return made


def edit(recipe: Recipe, share: float | None = None, temperature: float = 0.2, **options: Any) -> Recipe:
    """Learn features without labels first, with a share of the budget, then train with RCAL.

    Args:
        recipe: the baseline.
        share: share of the budget for the features, in [0, 1); None is a half, or nothing where the model is
            `pretrained`.
        temperature: of the contrastive loss that they are learnt with.
        **options: of `RCAL`.

    Raises:
        OptionError: if an option is outside its range.
    """
    if share is None:
        share = 0.0 if recipe.model.options.get("pretrained") is True else 0.5
    check_number("share", share, minimum=0, below=1)
    check_number("temperature", temperature, above=0)
    if share:
        recipe = recipe.replace(train_share=recipe.train_share - share)
        first = Part(
            "repertory.algorithms.rcal.pretraining:ContrastivePretraining",
            {"share": share, "temperature": temperature},
            "rcal",
        )
        recipe = recipe.add("before", first)
    return recipe.add("methods", Part("repertory.algorithms.rcal:RCAL", options, "rcal"))
