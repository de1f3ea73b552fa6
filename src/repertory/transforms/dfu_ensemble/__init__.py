r"""Label a pool with an ensemble, make examples of rare classes, train the ensemble again on all of it, and vote.

## Idea
With few labels, and classes of which there are hardly any, three plain things go together. An ensemble that was
trained on the labels names what it is sure of among examples without a label. A generator that has learnt from both
makes examples of the rare classes until all are as large as the largest. Fresh networks are trained on everything, and
the mean of their probabilities decides.

## Use it when
- some classes have many fewer examples than others, and examples without a label are at hand;
- several networks at prediction time are no trouble.

## Do not use it when
- the first ensemble hardly knows the rare classes, or the pool holds others: its labels are then of frequent classes,
  and by themselves do harm (11 points of macro F1 in the claim); `cap` what a class gets, raise `threshold`, or set it
  for each class;
- giving rare classes more weight is enough: class weights did as well as the whole recipe in the claim, at a sixth of
  its cost; try `balanced-softmax` first;
- the rare classes have a handful of examples: a generator repeats them (`nearest_distances` tells);
- training is short: the budget is shared by six trainings at the defaults;
- columns of a table are categories: examples in between mean nothing;
- one network has to answer: take `kd` or `model-soups`.

## Equations
With members $f_m$, mean probabilities $p(x)$ and labelled and pseudo-labelled counts $n_c$ and $u_c$,
$$ p(x) = \frac 1M \sum_m \operatorname{softmax} f_m(x), \qquad
   \hat y(x) = \arg\max_c p_c(x) \;\text{ if }\; \max_c p_c(x) \ge \tau , $$
$$ s_c = \max\big(0,\; r \max_k (n_k + u_k) - n_c - u_c\big) \text{ made examples of class } c. $$

## Defaults
`ratio=1` ($r$) is balanced classes; the study's set grew 8.68 times, with three made images to a real one. The rest is
ours: `members=3` (there EfficientNets of several sizes), `threshold=0.9` ($\tau$; a list sets it for each class) and
`first=0.5`, the share of the budget for the trainings on the labels alone. The study's images come from
pix2pixHD, trained for days, which is not built here. In its place: `generator="gaussian"`, a shrunk Gaussian a class;
"smote", lines between neighbours; "diffusion", a small class-conditional U-Net that trains on `synthesis=0.2` of the
budget and wants some thousand updates. The last two need the extra `synthesis`; the first two work on pixels, and suit
small images in which things lie in the same place.

## Cost
At equal budget 2M trainings share the passes of one, so each sees a sixth of them at the defaults; labelling the pool
takes M forward passes an example, a diffusion model its share and ten passes an image made, all off the second round.
Without a pool the first round is a single training, of the first member, and its passes are lost. Predicting costs M
networks.

## Claim
Pseudo-labels and made images raise macro F1, most of all that of rare classes, and an ensemble of such networks is
better than one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.state import Counts
from repertory.errors import ConflictError, OptionError, check_choice, check_number
from repertory.recipe import Part, Recipe
from repertory.transforms.dfu_ensemble.ensemble import Ensemble, fit_weights, mean_probabilities
from repertory.transforms.dfu_ensemble.extension import Extended, Extension, extend, extend_and_ensemble
from repertory.transforms.dfu_ensemble.family import check_family, further_widths, progress_of, sized
from repertory.transforms.dfu_ensemble.generators import (
    GENERATORS,
    ClassGaussian,
    Generator,
    Smote,
    make_generator,
    nearest_distances,
)
from repertory.transforms.dfu_ensemble.pseudo import fit_temperature, pseudo_labels, quota, thresholds

CARD = Card(
    slug="dfu-ensemble",
    name="Extend and ensemble",
    title="Boosting EfficientNets Ensemble Performance via Pseudo-Labels and Synthetic Images by pix2pixHD for "
    "Infection and Ischaemia Classification in Diabetic Foot Ulcers",
    authors="Louise Bloch et al.",
    year=2021,
    venue="DFUC 2021 (MICCAI challenge)",
    link="https://arxiv.org/abs/2112.00065",
    kind="transform",
    entry="ExtendAndEnsemble",
    problems=(
        "class imbalance",
        "rare classes",
        "few labels",
        "pseudo-labelling",
        "synthetic training data",
        "model ensemble",
        "medical images",
    ),
    defaults={
        "members": 3,
        "threshold": 0.9,
        "ratio": 1.0,
        "generator": "gaussian",
        "cap": None,
        "first": 0.5,
        "synthesis": 0.2,
        "calibrate": False,
        "weights": "uniform",
        "widths": None,
    },
    needs=("classes",),
    scenarios=("semi_supervised", "supervised"),
    neutral={"members": 1, "threshold": 2.0, "ratio": 0.0},
    search={"threshold": (0.7, 0.99), "ratio": (0.2, 1.0)},
    tags=("self-training", "oversampling", "SMOTE", "diffusion model", "data augmentation", "EfficientNet", "ensemble"),
)

__all__ = [
    "CARD",
    "ClassGaussian",
    "Ensemble",
    "ExtendAndEnsemble",
    "Extended",
    "Extension",
    "Generator",
    "Smote",
    "edit",
    "extend",
    "extend_and_ensemble",
    "fit_temperature",
    "fit_weights",
    "make_generator",
    "mean_probabilities",
    "nearest_distances",
    "pseudo_labels",
    "quota",
]


class ExtendAndEnsemble:
    """Go on from one network trained on the labels to an ensemble trained on more; for a recipe's `after`.

    Only the training part and the unlabelled part are extended from; the validation part decides on a temperature or
    on weights, where these are asked for.

    Args:
        members: number of networks, each from weights of its own.
        threshold: probability from which on a pseudo-label is sure enough, above 0; one for all classes, or a list of
            one each. Above 1 there are none.
        ratio: size that every class is filled up to with made examples, as a multiple of the largest; 0 makes none.
        generator: "gaussian", "smote" or "diffusion".
        cap: at most so many pseudo-labels a class; None sets no limit.
        first: share of the budget of the trainings on the labels alone, in (0, 1).
        synthesis: share of the budget that a diffusion model trains for; the other generators take none.
        calibrate: whether probabilities of the pool are sharpened or flattened first, by the temperature that is best
            on the validation part.
        weights: "uniform", or "fitted" on the validation part, see `fit_weights`.
        widths: option `width` of the model of every member but the first, for networks of several sizes; None makes
            all alike.

    Attributes:
        extension: what was added, after `apply`.

    Raises:
        OptionError: if an option is out of range.
        UserError: if the generator's package is not installed.

    >>> ExtendAndEnsemble(members=2).first_share
    0.25

    Notes:
        The study translates maps of real images into new ones with pix2pixHD, and averages over changed versions of an
        image at prediction time; neither is done here. Its batches may hold a minimum of real images; here examples
        count alike wherever they come from. With neither pseudo-labels nor made examples (`threshold` above 1, `ratio`
        0) the members are trained once, and share the whole budget. The passes that labelling the pool and a diffusion
        model took are missing from all trainings of the second round alike.

    Reference: Bloch, Brüngel, Friedrich, https://arxiv.org/abs/2112.00065.
    """

    def __init__(
        self,
        members: int = 3,
        threshold: float | list[float] = 0.9,
        ratio: float = 1.0,
        generator: str = "gaussian",
        cap: int | None = None,
        first: float = 0.5,
        synthesis: float = 0.2,
        calibrate: bool = False,
        weights: str = "uniform",
        widths: list[int] | None = None,
    ) -> None:
        check_number("members", members, minimum=1, integer=True)
        self._labels = float(thresholds(threshold).min()) <= 1
        check_number("ratio", ratio, minimum=0)
        check_choice("generator", generator, GENERATORS)
        if cap is not None:
            check_number("cap", cap, minimum=0, integer=True)
        check_number("first", first, above=0, below=1)
        check_number("synthesis", synthesis, above=0, below=1 - first)
        check_choice("calibrate", calibrate, (True, False))
        check_choice("weights", weights, ("uniform", "fitted"))
        self.widths = further_widths(widths, members)
        self.members = members
        self.threshold = threshold
        self.ratio = ratio
        self.generator = generator
        self.cap = cap
        self.first = first
        self.synthesis = synthesis
        self.calibrate = calibrate
        self.weights = weights
        self.extension: Extension | None = None
        if ratio:
            make_generator(generator)

    @property
    def first_share(self) -> float:
        """Share of the budget that the first training takes, of the first member on the labels alone."""
        return (self.first if self._labels or self.ratio > 0 else 1.0) / self.members

    def apply(self, model: nn.Module, bench: Any) -> nn.Module:
        """Return the ensemble in place of the network that was trained on the labels.

        Args:
            model: the trained network, with `network` and `criterion`.
            bench: what the run offers: parts of the data, training, predictions and counts.

        Raises:
            ConflictError: if there are no classes, or examples lie in bags.
            DataError: if a class has too few examples to make more of, or an input is not finite.
            OptionError: if there are not as many thresholds as classes, or the budget is too small.
        """
        if bench.task != "classification" or bench.splits.train.groups is not None:
            raise ConflictError(
                "dfu-ensemble makes single examples of classes, but the targets here are numbers or masks, or the "
                "examples lie in bags; leave it out"
            )
        thresholds(self.threshold, bench.outputs)
        whole = bench.recipe.train_share / self.first_share
        end = bench.spent - bench.recipe.train_share + whole
        if not self._labels and not self.ratio:
            others = [self._trained(bench, number, whole / self.members, "") for number in range(1, self.members)]
            return self._joined(model, [model, *others], bench)
        probabilities = None
        if self._labels and bench.splits.unlabelled is not None:
            share = whole * self.first_share
            firsts = [model, *(self._trained(bench, number, share, "") for number in range(1, self.members))]
            probabilities = self._recognised(firsts, bench)
        kept = bench.splits, bench.rows
        bench.splits, bench.rows = self._extended(probabilities, whole, bench)
        try:
            share = (end - self._account(bench)) / self.members
            if share <= 0:
                raise OptionError(
                    f"members={self.members} leaves nothing of the budget for the second round: labelling the pool and "
                    "making examples took it; ask for fewer members or more epochs"
                )
            seconds = [self._trained(bench, number, share, "-extended") for number in range(self.members)]
        finally:
            bench.splits, bench.rows = kept
        return self._joined(model, seconds, bench)

    def rebuild(self, model: nn.Module, outputs: int, fresh: Callable[..., nn.Module] | None = None) -> nn.Module:
        """Turn an untrained network into an untrained ensemble that saved weights fit into.

        Args:
            model: with `network` and `criterion`.
            outputs: number of classes.
            fresh: returns another one, of other options of the model; needed for `widths` only.
        """
        if self.members == 1:
            return model
        if self.widths is not None and fresh is not None:
            others = [fresh(width=width) for width in self.widths]
        else:
            others = [copy.deepcopy(model) for _ in range(self.members - 1)]
        return _put_in(model, [copy.deepcopy(model), *others], None)

    def _trained(self, bench: Any, number: int, share: float, stage: str) -> nn.Module:
        """Train a member from its own weights: the first from those that every method of a comparison starts from."""
        recipe = bench.recipe
        if number and self.widths is not None:
            bench.recipe = recipe.replace(model=sized(recipe.model, self.widths[number - 1]))
        try:
            member = bench.fresh_model(f"dfu-ensemble-{number}" if number else "model")
        finally:
            bench.recipe = recipe
        trained: nn.Module = bench.train(member, share, name=f"dfu-ensemble-{number}{stage}")
        return trained

    def _recognised(self, members: list[nn.Module], bench: Any) -> Tensor:
        """What the members together say of the pool `(pool, classes)`."""
        found = mean_probabilities([bench.predict(member, "unlabelled").softmax(1) for member in members])
        if not self.calibrate:
            return found
        held_out = mean_probabilities([bench.predict(member, "validation").softmax(1) for member in members])
        smallest = torch.finfo(found.dtype).tiny
        temperature = fit_temperature(held_out.clamp(min=smallest).log(), bench.splits.validation.targets)
        return (found.clamp(min=smallest).log() / temperature).softmax(1)

    def _extended(self, probabilities: Tensor | None, whole: float, bench: Any) -> tuple[Any, Tensor]:
        """The parts of the data with more to train on, and which rows of these are."""
        splits, train = bench.splits, bench.splits.train
        rows = torch.arange(len(train.targets)) if bench.rows is None else bench.rows
        pool = None if probabilities is None else splits.unlabelled.inputs
        maker: Any = make_generator(self.generator) if self.ratio else None
        if hasattr(maker, "progress"):
            maker.device, maker.progress = bench.device, progress_of(bench.budget.part(whole * self.synthesis))
        self.extension = found = extend(
            splits.normaliser(train.inputs[rows]),
            train.targets[rows],
            None if pool is None else splits.normaliser(pool),
            probabilities,
            maker,
            bench.generator("dfu-ensemble"),
            classes=bench.outputs,
            threshold=self.threshold,
            cap=self.cap,
            ratio=self.ratio,
        )
        cost = getattr(maker, "counts", Counts())
        if cost.steps:
            bench.count(**dataclasses.asdict(cost))
            bench.spent += whole * self.synthesis
        made = splits.normaliser.undo(found.made)
        if not train.inputs.is_floating_point():
            made = made.round().clamp(0, 255)
        more = [made.to(train.inputs.dtype)] if pool is None else [pool[found.rows], made.to(train.inputs.dtype)]
        longer = dataclasses.replace(
            train,
            inputs=torch.cat([train.inputs, *more]),
            targets=torch.cat([train.targets, found.labels, found.made_labels]),
        )
        added = torch.arange(len(train.targets), len(longer.targets))
        # What is known of wrong labels stays in step with the examples.
        clean = torch.cat([splits.clean_targets, found.labels, found.made_labels])
        return dataclasses.replace(splits, train=longer, clean_targets=clean), torch.cat([rows, added])

    def _account(self, bench: Any) -> float:
        """Let what was not training count as spent, so that it is not all taken off the next training."""
        if bench.budget.kind == "compute" and bench.budget.amount > 0:
            bench.spent = max(bench.spent, bench.counts.passes / bench.budget.amount)
        return float(bench.spent)

    def _joined(self, model: nn.Module, members: list[nn.Module], bench: Any) -> nn.Module:
        if self.members == 1:
            return members[0]
        weights = None
        if self.weights == "fitted":
            said = [bench.predict(member, "validation").softmax(1) for member in members]
            weights = fit_weights(said, bench.splits.validation.targets)
        return _put_in(copy.deepcopy(model), members, weights).to(bench.device)


def _put_in(model: nn.Module, members: list[nn.Module], weights: Tensor | None) -> nn.Module:
    """Let a network with its criterion answer with what the members say together."""
    model.network = Ensemble(members, weights)
    # What the ensemble gives are log-probabilities, also where a member's criterion makes logits of its output.
    model.criterion = nn.CrossEntropyLoss()
    return model


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Leave the trainings of the members their share of the budget, and make the ensemble after the first.

    Raises:
        OptionError: if an option is out of range, or `widths` is given for a model that has no such option.
    """
    made = ExtendAndEnsemble(**options)
    if made.widths is not None:
        check_family(recipe.model, made.widths)
    part = Part("repertory.transforms.dfu_ensemble:ExtendAndEnsemble", options, "dfu-ensemble")
    return recipe.replace(train_share=recipe.train_share * made.first_share).add("after", part)
