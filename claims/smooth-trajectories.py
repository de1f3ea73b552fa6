"""Do strong experts whose way was made smooth, and what helps the student, make better digits than plain MTT does?"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for
from repertory.curation.smooth_trajectories import AST
from repertory.curation.trajectories import ExpertTraining, representatives
from repertory.errors import DivergedError
from repertory.testing.few_digits import Part, experts_on, final_accuracy, parts, taught
from repertory.testing.worlds import predict

PER_CLASS = (1, 5)
PIXEL_RATES = (1.0, 10.0, 100.0)
EXPERTS, FIRST = 10, 5
SETTINGS: dict[str, Any] = {"iterations": 200, "steps": 10, "ahead": 2, "starts": 8, "expert_epochs": 20}
OFF: dict[str, Any] = {"momentum": 0.0, "balanced": False, "intermediate": "none", "initialisation": "random"}
SWITCHES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "balanced": {"balanced": True},
    "intermediate": {"intermediate": "equal"},
    "representative": {"initialisation": "representative"},
}
SMOOTH = AST(**SETTINGS, expert_batch=32).training
TRAININGS = {
    "plain": ExpertTraining(epochs=20, lr=0.01, batch=32),
    "strong": dataclasses.replace(SMOOTH, clipped=False, penalty=0.0),
    "smooth": SMOOTH,
}
"""Experts of MTT, experts with momentum, and these with the clipped loss and the penalty."""


class Arena:
    """The digits of a seed, their experts, and how sets made from them fare."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.part, self.held, self.test = parts(seed)
        self.experts = {name: experts_on(self.part, training, EXPERTS, seed) for name, training in TRAININGS.items()}

    def start(self, count: int, initialisation: str, experts: str) -> Part:
        """Return real digits to begin with."""
        inputs, targets = self.part
        generator = generator_for(self.seed, "start")
        if initialisation == "representative":
            network, trajectories = self.experts[experts]
            network.load(trajectories.read(len(trajectories) - 1, trajectories.epochs, trajectories.epochs)[0])
            rows = representatives(predict(network.module, inputs), targets, count, generator)
        else:
            members = [(targets == label).nonzero().flatten() for label in range(10)]
            rows = torch.cat([each[torch.randperm(len(each), generator=generator)[:count]] for each in members])
        return inputs[rows], targets[rows]

    def best(self, count: int, experts: str, options: dict[str, Any], rates: tuple[float, ...]) -> list[float]:
        """Return test accuracy, pixel rate and step size of the set that is best on held-out digits."""
        tried = []
        for pixel_rate in rates:
            made = AST(**{**SETTINGS, **options, "perturbation": 0.0, "lr_inputs": pixel_rate})
            images, labels = self.start(count, made.initialisation, experts)
            generator = generator_for(self.seed, f"match {count}")
            try:
                images = made.match(*self.experts[experts], images, labels, generator)
            except DivergedError:
                continue  # too fast for this arm: never the best
            assert made.rate_ is not None
            judged = (self.held, self.test)
            tried.append([*taught((images, labels), made.rate_, self.seed, judged), pixel_rate, made.rate_])
        return max(tried, key=lambda each: each[0])[1:]


def run(seed: int) -> dict[str, float]:
    """Return test accuracies by digits a class and arm, and the experts' accuracy and speed."""
    arena = Arena(seed)
    found: dict[str, float] = {}
    for name, (network, trajectories) in arena.experts.items():
        found[f"{name} experts/accuracy"] = final_accuracy(network, trajectories, arena.test)
        found[f"{name} experts/speed"] = float(trajectories.speeds()[:, :FIRST].mean())
    arms = {"mtt": ("plain", OFF), "mtt strong": ("strong", OFF), "ast": ("smooth", {})}
    for count in PER_CLASS:
        for name, (experts, options) in arms.items():
            values = arena.best(count, experts, options, PIXEL_RATES)
            labels = ("", "/pixel rate", "/step size")
            found |= {f"{count}/{name}{label}": value for label, value in zip(labels, values)}
    rates = (found["1/mtt strong/pixel rate"],)
    found["1/with smooth experts"] = arena.best(1, "smooth", OFF, rates)[0]
    for name, switch in SWITCHES.items():
        found[f"1/with {name}"] = arena.best(1, "strong", {**OFF, **switch}, rates)[0]
    return found


CLAIM = Claim(
    slug="smooth-trajectories",
    claim="Sets matched to smooth strong experts, with the aids for the student, train better networks than those of "
    "MTT from as many experts and iterations, whether MTT's experts have momentum or not.",
    paper="CIFAR-10, CIFAR-100 and Tiny ImageNet, ConvNets: more accurate than MTT at 1, 10 and 50 images a class "
    "(figures not at hand). Weights of smoothed experts change more slowly in early epochs, at similar final "
    "accuracy.",
    experiment="scikit-learn digits, 1000 to condense, 257 to choose by, 540 for testing; MLP 64-64-10 as expert, "
    "student and judged network. 10 experts of 20 epochs with batches of 32: plain (gradient descent at 0.01, "
    "MTT's), strong (0.003, momentum 0.9, weight decay 1e-3, 0.6 times the rate late) and smooth (the same, clipped "
    "loss, penalty 2). 200 iterations of 10 steps that catch up with 2 epochs from one of the first 8; step size "
    "from 0.01, learned at 1e-5. Of the learning rates 1, 10 and 100 for the pixels the one that is best on the "
    "held-out digits, for every arm. AST: student momentum 0.9, balanced loss, intermediate target, representative "
    "digits; the perturbation is off, since it acts on convolutions alone. 5 networks a set, 300 steps of gradient "
    "descent with momentum 0.9 at the learned step size, cosine schedule. Beside that each switch alone on top of "
    "MTT with strong experts, at its pixel rate. Speed: mean distance of snapshots over the first 5 epochs. 3 seeds.",
    statements=(
        Statement("AST beats MTT at one digit a class", left="1/ast", right="1/mtt", above=0.0),
        Statement("AST beats MTT at five digits a class", left="5/ast", right="5/mtt", above=0.0),
        Statement(
            "AST beats MTT with strong experts at one digit a class", left="1/ast", right="1/mtt strong", above=0.0
        ),
        Statement(
            "AST beats MTT with strong experts at five digits a class", left="5/ast", right="5/mtt strong", above=0.0
        ),
        Statement(
            "Smoothed experts move more slowly in their first 5 epochs",
            left="smooth experts/speed",
            right="strong experts/speed",
            below=0.0,
        ),
        Statement(
            "Smoothed experts end as accurate as others (within a point)",
            left="smooth experts/accuracy",
            right="strong experts/accuracy",
            above=-0.01,
        ),
    ),
    run=run,
    seeds=3,
)
