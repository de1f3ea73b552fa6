r"""Average the weights of several trainings that share a start, instead of keeping only the best of them.

## Idea
Networks trained on from the same weights with different hyper-parameters mostly end in one low-error basin,
where a straight line between two of them stays good. So the sweep that one runs anyway gives more than its
winner: the mean of the weights acts much like the ensemble, at the price of one network. The greedy soup adds
the models from the best to the worst, and keeps each only if the mean does not get worse on validation data.

## Use it when
- you try several learning rates, weight decays or augmentations from one pretrained or well-trained start;
- accuracy and robustness to shifted data matter, and an ensemble is too dear at prediction time;
- there is validation data that no training has seen.

## Do not use it when
- the trainings start from different weights, heads included: their mean is then no better than chance;
- the learning rates are so large, or the task so far from the start, that the trainings leave the basin
  (greedy then keeps one model and nothing is lost but the time);
- the validation set is tiny: greedy then accepts and rejects by luck.

## Equations
$$ \bar\theta_S = \frac{1}{|S|} \sum_{i \in S} \theta_i, \qquad
   S \leftarrow S \cup \{i\} \;\text{ if }\; V(\bar\theta_{S \cup \{i\}}) \ge V(\bar\theta_S), \quad
   i \text{ in falling order of } V(\theta_i) $$
$$ \min_{\alpha, \beta} \; \sum_j \ell\big( \beta f(x_j; \textstyle\sum_i \alpha_i \theta_i), y_j \big),
   \qquad \alpha = \operatorname{softmax}(a) $$

The first is the greedy soup (without the test: the uniform soup), the second the learned soup.

## Defaults
The paper accepts an equal validation score (`>=`), the authors' code asks for a better one (`>`); `accept`
chooses. The learned soup takes AdamW, learning rate 0.05, 5 passes, and one set of weights a tensor in the
authors' code. The paper's largest zoo has 72 fine-tunings of CLIP with random hyper-parameters. In a
comparison that has to live on one training's budget, half of it (`trunk`) goes to the common start and the
rest to 4 short trainings from there, with learning rates drawn log-uniformly from a tenth of the recipe's to
all of it: these three numbers are ours.

## Cost
All trainings, as many validation passes as models and as many again for the greedy soup, and for networks
with batch norm a pass over the training set for each mean. Memory for the models' weights; prediction costs
one network.

## Claim
The greedy soup is more accurate than the best single training, also on shifted data; the mean of networks
with different starts is useless.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from repertory.card import Card
from repertory.errors import check_choice, check_number
from repertory.recipe import Part, Recipe
from repertory.transforms.model_soups.averaging import StateDict, greedy_soup, learned_soup, uniform_soup
from repertory.transforms.model_soups.norm_statistics import norm_layers, refresh_norm_statistics

__all__ = ["ModelSoup", "greedy_soup", "learned_soup", "refresh_norm_statistics", "uniform_soup"]

CARD = Card(
    slug="model-soups",
    name="Model soups",
    title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing "
    "inference time",
    authors="Mitchell Wortsman et al.",
    year=2022,
    venue="ICML 2022",
    link="https://arxiv.org/abs/2203.05482",
    kind="transform",
    entry="ModelSoup",
    problems=(
        "hyper-parameter sweep",
        "weight averaging",
        "robustness to distribution shift",
        "ensembling without inference cost",
        "fine-tuning",
    ),
    defaults={"ingredients": 4, "trunk": 0.5, "kind": "greedy", "spread": 10.0, "accept": ">="},
    scenarios=("supervised", "retrieval"),
    neutral={"trunk": 1.0},
    tags=("weight average", "fine-tuning", "ensemble", "greedy soup", "WiSE-FT"),
)


class ModelSoup:
    """Train on from the trained model several times and return the soup; for a recipe's `after`.

    The learning rate of each training is the recipe's times a factor, log-uniform between 1 / `spread` and 1;
    its weight decay the recipe's times a factor between 1 / `spread` and `spread`.

    Args:
        ingredients: number of trainings from the trained model.
        trunk: share of the budget that the common start has had, in (0, 1]; the trainings share the rest. 1
            leaves the model as it is.
        kind: "greedy", or "uniform" for the mean of all trainings.
        spread: ratio of the largest and the smallest learning rate, at least 1.
        accept: whether an equal score is good enough (">=") or not (">").

    Raises:
        OptionError: if an option is outside its range.

    >>> ModelSoup(ingredients=8, kind="uniform").trunk
    0.5

    Notes:
        The model trained so far is a candidate of the greedy soup too, so that the result is never below it
        on validation. Where batch norm makes the soups need a pass over the training set each, the trainings
        are shortened by as much.

    Reference: Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon, Kornblith,
    Schmidt, https://arxiv.org/abs/2203.05482.
    """

    def __init__(
        self,
        ingredients: int = 4,
        trunk: float = 0.5,
        kind: str = "greedy",
        spread: float = 10.0,
        accept: Literal[">=", ">"] = ">=",
    ) -> None:
        check_number("ingredients", ingredients, minimum=1, integer=True)
        check_number("trunk", trunk, above=0, maximum=1)
        check_choice("kind", kind, ("greedy", "uniform"))
        check_number("spread", spread, minimum=1)
        check_choice("accept", accept, (">=", ">"))
        self.ingredients = ingredients
        self.trunk = trunk
        self.kind = kind
        self.spread = spread
        self.accept: Literal[">=", ">"] = accept

    def apply(self, model: nn.Module, bench: Any) -> nn.Module:
        """Return the model with the weights of the soup.

        Args:
            model: the trained model.
            bench: what the run offers: `train`, `score`, `batches`, `generator`, `count` and `recipe`.
        """
        if self.trunk == 1:
            return model
        draws = torch.rand(self.ingredients, 2, generator=bench.generator("model-soups")).tolist()
        share = bench.recipe.train_share * (1 - self.trunk) / self.trunk / self.ingredients
        if norm_layers(model):
            # A forward pass over the training set costs a third of an epoch; each soup tried needs one, and the result.
            passes = 1 if self.kind == "uniform" else self.ingredients + 1
            share -= min(share / 2, passes / (3 * bench.recipe.epochs * self.ingredients))
        states: list[StateDict] = []
        for number, (rate, decay) in enumerate(draws):
            scales = {"lr_scale": self.spread**-rate, "weight_decay_scale": self.spread ** (2 * decay - 1)}
            copied = bench.train(copy.deepcopy(model), share, name=f"soup-{number}", **scales)
            states.append(copied.state_dict())
        if self.kind == "uniform":
            self._load(model, uniform_soup(states), bench)
            return model
        states.insert(0, copy.deepcopy(model.state_dict()))

        def evaluate(state: StateDict) -> float:
            single = any(state is own for own in states)
            self._load(model, state, None if single else bench)
            return float(bench.score(model))

        soup, ingredients, _ = greedy_soup(states, evaluate, accept=self.accept)
        self._load(model, soup, bench if len(ingredients) > 1 else None)
        return model

    @staticmethod
    def _load(model: nn.Module, state: StateDict, bench: Any) -> None:
        model.load_state_dict(state)
        if bench is not None:
            bench.count(forward=refresh_norm_statistics(model, bench.batches("train")))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Leave the trainings of the soup their share of the budget, and make the soup after training."""
    soup = ModelSoup(**options)
    part = Part("repertory.transforms.model_soups:ModelSoup", options, "model-soups")
    return recipe.replace(train_share=recipe.train_share * soup.trunk).add("after", part)
