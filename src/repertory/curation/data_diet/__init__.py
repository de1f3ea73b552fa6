r"""Score examples by how wrong a few short trainings are on them, and keep the hard half of the data.

## Idea
Early in training, the norm of an example's gradient bounds how much it can change what is learnt of the
others. That norm (GraNd), or simply the length of the error vector (EL2N), averaged over a few short
trainings, ranks the examples: the lowest can go without loss, and wrong labels gather at the very top.

## Use it when
- the data is redundant: many near-copies, frames of a film, augmented or easy examples;
- you want to store, label or train on fewer examples at the same accuracy;
- you look for wrong labels: read the highest scores (`scores.argsort(descending=True)`).

## Do not use it when
- the data is small and varied: no example is spare, and hard ones alone can do worse than a random choice;
- most of it is to go: among very few examples the easy ones are needed again;
- labels are noisy and `rule="keep_max"`: it keeps just the wrong ones; take `rule="window"`, which leaves the
  top out;
- you would score with GraNd at initialisation: its published result did not reproduce (a trained network had
  been loaded by mistake; https://arxiv.org/abs/2303.14753), there it mostly ranks by the size of the input.
  Train first, as here.

## Equations
$$ \text{EL2N}_i = \lVert \operatorname{softmax}(f(x_i)) - e_{y_i} \rVert_2, \qquad
   \text{GraNd}_i = \lVert \nabla_\theta\, \ell(f_\theta(x_i), y_i) \rVert_2 $$
Scores are means over runs from different initial weights, without augmentation, in evaluation mode.

## Defaults
`keep=0.5`, half of CIFAR-10 in the paper. Each of the `runs` spends `share / runs` of the budget: a tenth,
the paper's 20 of 200 epochs. The paper averages 10 runs on top of the full training; here scoring is paid
from the same budget, so there are 2, and the training on the chosen examples has the other 80 % of the steps
that the baseline makes.

## Cost
`share` of the budget, and one forward pass over the data a run; GraNd adds a gradient an example. The
training on the chosen examples makes as many steps as on all of them would.

## Claim
Half of a redundant data set can go without loss of accuracy when the hard half is kept, and not when a random
or the easy half is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.classifier import classifier_of
from repertory.curation.data_diet.scores import ForgettingCounter, el2n, grand, last_layer_norm, margin
from repertory.curation.data_diet.selection import RULES, select
from repertory.errors import ConflictError, check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="data-diet",
    name="EL2N / GraNd",
    title="Deep Learning on a Data Diet: Finding Important Examples Early in Training",
    authors="Mansheej Paul et al.",
    year=2021,
    venue="NeurIPS 2021",
    link="https://arxiv.org/abs/2107.07075",
    kind="curation",
    entry="DataDiet",
    problems=(
        "data pruning",
        "redundant data",
        "coreset selection",
        "example difficulty",
        "finding label errors",
    ),
    defaults={
        "keep": 0.5,
        "score": "el2n",
        "share": 0.2,
        "runs": 2,
        "rule": "keep_max",
        "offset": 0.0,
        "balanced": False,
    },
    needs=("classes",),
    neutral={"keep": 1.0},
    tags=("EL2N", "GraNd", "forgetting events", "data selection", "label noise"),
)

__all__ = [
    "CARD",
    "DataDiet",
    "ForgettingCounter",
    "edit",
    "el2n",
    "grand",
    "last_layer_norm",
    "margin",
    "select",
]

SCORES = ("el2n", "l1", "max_margin", "sum_margin", "grand", "grand_last_layer")
"""What examples can be scored by; higher is harder."""


class DataDiet:
    """Choose training examples by scores from short trainings.

    Args:
        keep: share of the training examples to keep, in (0, 1]; 1 keeps all and scores none.
        score: one of `SCORES`.
        share: share of the whole budget that the short trainings spend together.
        runs: short trainings, each from new weights; their scores are averaged.
        rule: "keep_max", "window" or "random"; see `select`.
        offset: for the window: share of the examples below it, the easiest, that are dropped; keep + offset
            is at most 1, and the rest above the window, where wrong labels gather, is dropped too.
        balanced: keep the same share of every class.

    Raises:
        OptionError: if an option is out of range.

    >>> DataDiet(keep=0.3, rule="window", offset=0.6).spends
    0.2

    Notes:
        The authors score at a point of one long training whose learning rate is still high; here each short
        training runs through the recipe's whole schedule.

    Reference: Paul, Ganguli, Dziugaite, https://arxiv.org/abs/2107.07075.
    """

    def __init__(
        self,
        keep: float = 0.5,
        score: str = "el2n",
        share: float = 0.2,
        runs: int = 2,
        rule: str = "keep_max",
        offset: float = 0.0,
        balanced: bool = False,
    ) -> None:
        check_number("keep", keep, above=0, maximum=1)
        check_choice("score", score, SCORES)
        check_number("share", share, above=0, below=1)
        check_number("runs", runs, minimum=1, integer=True)
        check_choice("rule", rule, RULES)
        check_number("offset", offset, minimum=0, maximum=1 - keep if rule == "window" else 1)
        check_choice("balanced", balanced, (True, False))
        self.keep = keep
        self.score = score
        self.share = share
        self.runs = runs
        self.rule = rule
        self.offset = offset
        self.balanced = balanced

    @property
    def spends(self) -> float:
        """Share of the whole budget that `choose` spends: nothing where no score is asked for."""
        return _spends(self.keep, self.rule, self.share)

    def choose(self, bench: Any) -> Tensor:
        """Score the training examples of `bench` and return the rows to keep, ascending.

        Raises:
            ConflictError: if the targets are not classes.
        """
        targets = bench.splits.train.targets
        if targets.is_floating_point():
            raise ConflictError("data-diet needs classes, but the targets are numbers; leave it out of a regression")
        examples = len(targets)
        count = max(1, round(self.keep * examples))
        scores = self.scores(bench) if self.spends else torch.zeros(examples)
        return select(
            scores,
            count,
            self.rule,
            min(round(self.offset * examples), examples - count),
            balanced=self.balanced,
            targets=targets,
            generator=bench.generator("data-diet"),
        )

    def scores(self, bench: Any) -> Tensor:
        """Return each training example's mean score over the short trainings `(examples,)`, on the CPU."""
        total = torch.zeros(len(bench.splits.train.targets))
        for run in range(self.runs):
            name = f"data-diet-{run}"
            model = bench.train(bench.fresh_model(name), self.share / self.runs, name=name)
            total += self._scored(model, bench).cpu()
        return total / self.runs

    def _scored(self, model: nn.Module, bench: Any) -> Tensor:
        if self.score == "grand":
            return self._gradients(model, bench)
        targets = bench.splits.train.targets
        if self.score == "grand_last_layer":
            features, logits = bench.features(model, "train")
            bias = classifier_of(model)[1].bias is not None
            return last_layer_norm(features, logits, targets.to(logits.device), bias)
        logits = bench.predict(model, "train")
        targets = targets.to(logits.device)
        if self.score in ("max_margin", "sum_margin"):
            return margin(logits, targets, self.score[:3])
        return el2n(logits, targets, 1 if self.score == "l1" else 2)

    def _gradients(self, model: nn.Module, bench: Any) -> Tensor:
        scores = torch.zeros(len(bench.splits.train.targets))
        for batch in bench.batches("train"):
            scores[batch["index"].cpu()] = grand(model, batch["input"], batch["target"]).cpu()
            bench.count(forward=len(batch["target"]), backward=len(batch["target"]))
        return scores


def _spends(keep: float, rule: str, share: float) -> float:
    return 0.0 if keep == 1 or rule == "random" else share


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Choose the training examples first, with a share of the budget, and train on them with the rest."""
    given = {**CARD.defaults, **options}
    check_number("share", given["share"], above=0, below=1)
    spends = _spends(given["keep"], given["rule"], given["share"])
    recipe = recipe.replace(train_share=recipe.train_share - spends)
    return recipe.add("curation", Part("repertory.curation.data_diet:DataDiet", options, "data-diet"))
