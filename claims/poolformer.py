"""Is plain pooling a token mixer worth having, and how far behind attention is it?"""

from __future__ import annotations

import torch
from torch import nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import seeded
from repertory.models import MetaFormer
from repertory.testing.worlds import accuracy, digits, predict, train

MIXERS = ("identity", "random", "pooling", "depthwise", "attention")


def run(seed: int) -> dict[str, float]:
    """Train one network a mixer and return test accuracies."""
    world = digits(seed)
    inputs, test_inputs = world.inputs.view(-1, 1, 8, 8), world.test_inputs.view(-1, 1, 8, 8)
    found: dict[str, float] = {}
    for mixer in MIXERS:
        with seeded(seed, "weights"):
            model = MetaFormer(
                (1, 8, 8),
                10,
                depths=(3,),
                dims=(32,),
                strides=(2,),
                mixers=mixer,
                position_embedding=True,
                layer_scale=0.1,
                drop_path_rate=0.0,
            )
            # Patches that do not overlap: what mixes positions is then the mixer alone.
            model.stem = nn.Conv2d(1, 32, 2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        train(
            Step(model, optimizer, nn.CrossEntropyLoss()),
            inputs,
            world.targets,
            epochs=15,
            batch_size=64,
            seed=seed,
        )
        found[f"{mixer}/accuracy"] = accuracy(predict(model, test_inputs), world.test_targets)
    return found


CLAIM = Claim(
    slug="poolformer",
    claim="Pooling as token mixer is better than none or a random one, and close to attention, at the same "
    "depth and width.",
    paper="ImageNet top-1 with 12 blocks: pooling 77.2, no mixing 74.3, a random matrix 75.8, depthwise "
    "convolution 78.1; attention in the last two of four stages 81.0.",
    experiment="scikit-learn digits (8 x 8), half for training; one stage of 3 blocks, width 32, on 4 x 4 "
    "tokens from 2 x 2 patches with a learned position embedding; LayerScale 0.1, AdamW (lr 3e-3, cosine), 15 "
    "epochs, batches of 64, 5 seeds; only the mixer differs (attention and convolution have weights of their own "
    "besides).",
    statements=(
        Statement("Pooling beats no mixing", left="pooling/accuracy", right="identity/accuracy", above=0.0),
        Statement("Pooling beats a random matrix", left="pooling/accuracy", right="random/accuracy", above=0.0),
        Statement(
            "Attention is less than 7 points ahead of pooling",
            left="attention/accuracy",
            right="pooling/accuracy",
            below=0.07,
        ),
    ),
    run=run,
    seeds=5,
)
