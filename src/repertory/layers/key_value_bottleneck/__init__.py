r"""Learn new classes by changing only a few stored values, so that what was learnt before stays where it is.

## Idea
Between a frozen encoder and the output stands a discrete bottleneck. The embedding is projected to many small heads;
each head snaps to its nearest key in a codebook, and only the value stored with that key goes on. Keys are placed once,
without labels, where embeddings lie. Training then touches only the values of the keys that its inputs choose, so
learning one class leaves those of others alone: no replay, no task identities, no boundaries between tasks.

## Use it when
- classes or domains come one after the other, and examples of the old ones cannot be kept (`?rehearsal=0` after the
  data's name);
- a good frozen encoder is at hand (`--model timm:...`), and unlabelled inputs like those to come.

## Do not use it when
- all classes are there at once, or enough examples of the old ones are kept: training the whole network does better;
- the encoder is not trained: a network without pretrained weights gives random features, which do for digits but not
  for photographs;
- unlabelled inputs are unlike those to come: keys then lie where nothing falls, see `usage`.

## Equations
With an embedding $z$, fixed random projections $R_c$ with columns of length 1, keys $K_{cj}$ and values $V_{cj}$ of
codebooks $c = 1, \dots, C$ with $J$ pairs each,
$$ k_c = \arg\min_j \lVert R_c^\top z - K_{cj} \rVert^2, \qquad \mathrm{logits} = \frac1C \sum_c V_{c, k_c} . $$
With `topk` the values of as many nearest keys are added up; of several tokens the mean is taken. Keys are placed by
moving averages over batches, of the number $n_{cj}$ of heads at a key and of their sum $s_{cj}$,
$$ N_{cj} \leftarrow \gamma N_{cj} + (1 - \gamma)\, n_{cj}, \qquad
   A_{cj} \leftarrow \gamma A_{cj} + (1 - \gamma)\, s_{cj}, \qquad K_{cj} = \frac{A_{cj}}{\hat N_{cj}}, \qquad
   \hat N_{cj} = \frac{N_{cj} + \epsilon}{\sum_i N_{ci} + J \epsilon} \sum_i N_{ci} , $$
after which keys with $N_{cj}$ below `threshold` times an equal share are put on random heads of the batch.

## Defaults
256 codebooks of 4096 pairs, keys of 14 numbers, 10 epochs over unlabelled inputs with $\gamma = 0.95$ and a threshold
of 0.1, values from 0, SGD without momentum and label smoothing 0.1 are the authors'. They train the values for 2000
epochs a task with a learning rate of 0.3; since the mean over codebooks divides the gradient by their number, a
comparison takes `lr` 0.3 times the codebooks. It has 64 codebooks of 256 pairs and keys of 8 numbers, as small data do
not fill more. Momentum, Adam or weight decay would move values that no input chose.

## Cost
`batch * codebooks * pairs * dim_key` multiplications to find the keys, no backward pass through the encoder, and
`codebooks * pairs * outputs` values. Placing the keys takes one pass of the encoder over the training inputs.

## Claim
Classes learnt one after the other are forgotten less, without replay, than with a linear classifier or a perceptron on
the same frozen encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.classifier import replace_classifier
from repertory.core.frozen import FrozenCopy
from repertory.errors import check_number
from repertory.layers.key_value_bottleneck.bottleneck import KeyValueBottleneck, nearest_keys
from repertory.layers.key_value_bottleneck.keys import initialise_keys, moved_keys
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="key-value-bottleneck",
    name="DKVB",
    title="Discrete Key-Value Bottleneck",
    authors="Frederik Träuble et al.",
    year=2023,
    venue="ICML 2023",
    link="https://arxiv.org/abs/2207.11240",
    kind="layer",
    entry="KeyValueBottleneck",
    problems=(
        "class-incremental learning",
        "catastrophic forgetting",
        "continual learning without replay",
        "no task boundaries",
        "frozen backbone",
        "local updates",
    ),
    defaults={
        "codebooks": 256,
        "pairs": 4096,
        "dim_key": 14,
        "topk": 1,
        "splitter": "random",
        "mask_unused": True,
    },
    scenarios=("continual", "supervised"),
    needs=("classes",),
    owns=("head",),
    search={"lr": (0.03, 3.0)},
    tags=("memory layer", "vector quantisation", "codebook", "frozen encoder", "incremental classes"),
)

__all__ = [
    "BottleneckNetwork",
    "KeyInitialisation",
    "KeyValueBottleneck",
    "edit",
    "initialise_keys",
    "moved_keys",
    "nearest_keys",
    "replace_with_bottleneck",
]


class BottleneckNetwork(nn.Module):
    """A frozen encoder before a bottleneck.

    Args:
        encoder: from inputs to embeddings `(batch, dim)`; it is copied, and stays in evaluation mode.
        bottleneck: from embeddings to logits.
    """

    def __init__(self, encoder: nn.Module, bottleneck: KeyValueBottleneck) -> None:
        super().__init__()
        self.encoder = FrozenCopy(encoder)
        self.bottleneck = bottleneck

    def encode(self, inputs: Any) -> Tensor:
        """Return the embedding of the frozen encoder."""
        embedding: Tensor = self.encoder(inputs)
        return embedding

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of `KeyValueBottleneck`."""
        logits: Tensor = self.bottleneck(self.encoder(inputs))
        return logits


def replace_with_bottleneck(
    model: nn.Module,
    outputs: int,
    codebooks: int = 256,
    pairs: int = 4096,
    dim_key: int = 14,
    topk: int = 1,
    splitter: str = "random",
    mask_unused: bool = True,
) -> BottleneckNetwork:
    """Freeze what comes before the network's classifier, and put a `KeyValueBottleneck` in the classifier's place.

    Args:
        model: the network; its last linear layer is left out.
        outputs: number of classes.
        codebooks: as in `KeyValueBottleneck`, like what follows.
        pairs: keys in a codebook.
        dim_key: size of a key.
        topk: keys whose values are added up.
        splitter: "random" or "chunk".
        mask_unused: in evaluation, choose only among keys with a value.

    Raises:
        OptionError: if an option is outside its range.
        UserError: if the network has no linear layer.
    """
    widths: list[int] = []

    def left_out(width: int) -> nn.Module:
        widths.append(width)
        return nn.Identity()

    encoder = replace_classifier(model, left_out)
    layer = KeyValueBottleneck(widths[0], outputs, codebooks, pairs, dim_key, topk, splitter, mask_unused)
    return BottleneckNetwork(encoder, layer)


class KeyInitialisation:
    """Place the keys of a network's bottleneck by the training inputs, before training; labels are not looked at.

    Args:
        epochs: as in `initialise_keys`, like what follows.
        batch_size: embeddings at a time.
        decay: share of the moving averages that is kept.
        threshold: share of an equal share of heads below which a key is moved.
    """

    def __init__(self, epochs: int = 10, batch_size: int = 256, decay: float = 0.95, threshold: float = 0.1) -> None:
        self.options: dict[str, Any] = {
            "epochs": epochs, "batch_size": batch_size, "decay": decay, "threshold": threshold,
        }  # fmt: skip

    def apply(self, model: Any, bench: Any) -> Any:
        """Place the keys by all inputs of the training part, and of the unlabelled one where there is one."""
        parts = ["train", *(["unlabelled"] if bench.splits.unlabelled is not None else [])]
        embeddings = torch.cat([bench.embed(model, part)[0] for part in parts])
        generator = bench.generator("key-value-bottleneck")
        initialise_keys(model.network.bottleneck, embeddings, generator=generator, **self.options)
        return model


def edit(
    recipe: Recipe,
    codebooks: int = 64,
    pairs: int = 256,
    dim_key: int = 8,
    lr: float = 0.3,
    label_smoothing: float = 0.1,
    init_epochs: int = 10,
    **options: Any,
) -> Recipe:
    """Freeze the encoder, replace the classifier by the bottleneck, place its keys first, and train by plain SGD."""
    check_number("lr", lr, minimum=0)
    slug, sizes = "key-value-bottleneck", {"codebooks": codebooks, "pairs": pairs, "dim_key": dim_key, **options}
    if recipe.criterion.factory == "torch.nn:CrossEntropyLoss":
        smooth = {**recipe.criterion.options, "label_smoothing": label_smoothing}
        recipe = recipe.replace(criterion=Part(recipe.criterion.factory, smooth, slug))
    recipe = recipe.replace(optimizer=Part("torch.optim:SGD", {"lr": lr * codebooks}, slug))
    recipe = recipe.add(
        "before", Part("repertory.layers.key_value_bottleneck:KeyInitialisation", {"epochs": init_epochs}, slug)
    )
    return recipe.add("surgery", Part("repertory.layers.key_value_bottleneck:replace_with_bottleneck", sizes, slug))
