"""Is the mean of a sweep's models better than the sweep's winner?"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for
from repertory.testing.worlds import accuracy, digits, mlp, predict, train
from repertory.transforms.model_soups import greedy_soup, uniform_soup

FINE_TUNINGS = 20
INDEPENDENT = 4


def moved(images: Tensor, down: int, right: int, generator: torch.Generator) -> Tensor:
    """Move digits by some pixels, filling with background, and add noise of standard deviation 0.35."""
    squares = nn.functional.pad(images.view(-1, 8, 8), (right, 0, down, 0))[:, :8, :8].flatten(1)
    return (squares + 0.35 * torch.randn(squares.shape, generator=generator)).clamp(0, 1.5)


def fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float, weight_decay: float, seed: int) -> None:
    """Train in place with AdamW, batches of 32 and a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    train(Step(model, optimizer, nn.CrossEntropyLoss()), x, y, epochs=epochs, batch_size=32, seed=seed)


def run(seed: int) -> dict[str, float]:
    """Fine-tune one pretrained network 20 times and return test accuracies of winner, soups and ensemble."""
    world = digits(seed, share=1.0)
    generator = generator_for(seed, "soups")
    parts = [700, 200, 300, 597]
    (start_x, tune_x, held_x, test_x), (start_y, tune_y, held_y, test_y) = (
        world.inputs.split(parts),
        world.targets.split(parts),
    )
    starts = [mlp([64, 128, 128, 10], seed=1000 * seed + number) for number in range(INDEPENDENT)]
    for number, model in enumerate(starts):
        fit(model, start_x, start_y, 30, 1e-3, 0.01, seed=1000 * seed + number)

    tune, held, target = (moved(part, 0, 1, generator) for part in (tune_x, held_x, test_x))
    shifted = moved(test_x, 1, 1, generator)
    models = []
    for number in range(FINE_TUNINGS):
        a, b, c = torch.rand(3, generator=generator).tolist()
        models.append(copy.deepcopy(starts[0]))
        rate, decay = 5e-4 * 10**a, 1e-4 * 1e3**b
        fit(models[-1], tune, tune_y, 10 + math.floor(10 * c), rate, decay, seed=1000 * seed + 100 + number)

    soup = copy.deepcopy(starts[0])
    states = [model.state_dict() for model in models]

    def on_held_out(state: dict[str, Tensor]) -> float:
        soup.load_state_dict(state)
        return accuracy(predict(soup, held), held_y)

    winner = models[max(range(FINE_TUNINGS), key=lambda number: on_held_out(states[number]))]
    found: dict[str, float] = {}
    for part, x in (("target", target), ("shifted", shifted)):
        found[f"single/{part}"] = accuracy(predict(winner, x), test_y)
        logits = [predict(model, x) for model in models]
        found[f"mean single/{part}"] = sum(accuracy(values, test_y) for values in logits) / FINE_TUNINGS
        found[f"ensemble/{part}"] = accuracy(torch.stack(logits).mean(0), test_y)
    greedy, ingredients, _ = greedy_soup(states, on_held_out)
    for name, weights in (("greedy", greedy), ("uniform", uniform_soup(states))):
        soup.load_state_dict(weights)
        found[f"{name}/target"] = accuracy(predict(soup, target), test_y)
        found[f"{name}/shifted"] = accuracy(predict(soup, shifted), test_y)
    found["greedy/ingredients"] = float(len(ingredients))

    soup.load_state_dict(uniform_soup(model.state_dict() for model in starts))
    found["independent/soup"] = accuracy(predict(soup, test_x), test_y)
    found["independent/mean"] = sum(accuracy(predict(m, test_x), test_y) for m in starts) / INDEPENDENT
    return found


CLAIM = Claim(
    slug="model-soups",
    claim="The greedy soup of a fine-tuning sweep is more accurate than the sweep's winner, also on shifted data.",
    paper="72 fine-tunings of CLIP ViT-B/32 on ImageNet: best single 80.4, uniform soup 80.0, greedy soup 81.0; "
    "mean over five shifted test sets 48.0, 51.6 and 50.9.",
    experiment="scikit-learn digits: a 64-128-128-10 network is trained on 700 upright digits (AdamW, 30 epochs), "
    "then 20 times from there on 200 digits moved right by a pixel with noise (sd 0.35), with log-uniform learning "
    "rate (5e-4 to 5e-3) and weight decay (1e-4 to 0.1) and 10 to 19 epochs; 300 held-out digits choose, 597 test; "
    "shifted: moved down by a pixel as well; 10 seeds. Control: 4 networks with starts of their own.",
    statements=(
        Statement(
            "The greedy soup beats the winner of the sweep", left="greedy/target", right="single/target", above=0.0
        ),
        Statement("So it does on shifted data", left="greedy/shifted", right="single/shifted", above=0.0),
        Statement(
            "The uniform soup is within 1 point of the ensemble of all",
            left="uniform/target",
            right="ensemble/target",
            above=-0.01,
        ),
        Statement(
            "The mean of networks with different starts is more than 20 points below them",
            left="independent/soup",
            right="independent/mean",
            below=-0.2,
        ),
    ),
    run=run,
    seeds=10,
)
