r"""Help a network that trains badly: pull its hidden layers towards those of a guide from a better suited family.

## Idea
Some networks do not train on a task that others learn easily: a deep perceptron on images, a deep convolutional network
without skip connections, a recurrent network on long sequences. Guidance adds a penalty that draws the network's
hidden layers towards those of a frozen guide on the same batch. It compares how the examples lie to each other, not
the activations themselves (centred kernel alignment, CKA), so neither widths nor shapes nor weights need to match. A
trained guide passes on what it knows; an untrained one passes on only the bias of its architecture.

## Use it when
- you must use an architecture that trains badly or overfits at once, and another one does well on the same inputs;
- training stalls for want of a good start: guide only the first steps (`stop`), as a kind of initialisation;
- you ask which bias of an architecture matters.

## Do not use it when
- you are free to use the guide itself, or its logits: distillation is simpler;
- you have not tried to train longer: in the recorded claim the same passes did more for the network alone;
- activations vanish with depth: CKA ignores scale, so add normalisation or a critical initialisation first;
- batches hold fewer than about 64 examples: what few examples in many dimensions have in common is mostly chance;
- the guide was trained on data that you test on. A saved model has seen its own training part, so compare on others.

## Equations
With $T_j$ and $G_i$ the outputs of paired layers for a batch, one centred row an example,
$$ \mathrm{CKA}(T, G) = \frac{\lVert G^\top T \rVert_F^2}{\lVert T^\top T \rVert_F \, \lVert G^\top G \rVert_F}, \qquad
   L = L_{\text{task}} + \alpha \sum_i \big(1 - \mathrm{CKA}(T_{j(i)}, G_i)\big), $$
$$ j(i) = \operatorname{round}\!\Big(i \, \frac{q - 1}{p - 1}\Big), \quad i = 0, \dots, p - 1, $$
for $p$ layers of the guide and $q$ of the network: convolutions, linear, recurrent, attention, layer normalisation and
adaptive pooling, in the order in which they run, without the last one.

## Defaults
`alpha=1` and `match=depth` are the authors'; `stop=None` guides throughout (their option guides about 300 steps). They
trained with Adam, learning rate 1e-3, and guided by ResNets and ViTs from torchvision. `guide=auto` is ours: an
untrained small network that suits the shape of the inputs. Others are named as models are: `guide=timm:resnet18`,
`guide=repertory:poolformer_tiny`, `guide=mypkg.module:factory`; in a comparison with one option each at most,
`guide=timm:resnet18:pretrained=true`. A folder that `repertory fit` wrote is a trained guide, and in Python any module
may be one. `match=name` pairs layers of equal names, `match=[layer1=0,layer2=3]` those of the guide and the network
that you name.

## Cost
One forward pass of the guide, counted like one of the network whatever its size (with a large guide compare at
`--budget seconds`), and two Gram matrices of the batch a pair of layers. The network itself runs once. What a guide
cost to train is not counted: give the baseline as much, or show it beside the result.

## Claim
A network that trains badly alone gains accuracy from a trained guide, and also from an untrained one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.algorithms.guidance.alignment import (
    Pairs,
    layer_alignment,
    linear_cka,
    match_by_depth,
    match_by_name,
    matched,
    named_pairs,
)
from repertory.algorithms.guidance.guide import AUTO, build_guide, guide_part
from repertory.card import Card
from repertory.core.activations import LayerOutputs
from repertory.core.frozen import FrozenCopy
from repertory.core.method import Inner, Method
from repertory.core.randomness import seeded
from repertory.core.state import Run, State, batch_size
from repertory.errors import DataError, OptionError, UserError, check_number
from repertory.recipe import Part, Recipe

__all__ = ["Guidance", "edit", "layer_alignment", "linear_cka", "match_by_depth", "match_by_name"]

CARD = Card(
    slug="guidance",
    name="Guidance",
    title="Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
    authors="Vighnesh Subramaniam et al.",
    year=2025,
    venue="NeurIPS 2025",
    link="https://arxiv.org/abs/2410.20035",
    kind="algorithm",
    entry="Guidance",
    problems=(
        "network does not train",
        "transfer of inductive bias",
        "representational alignment",
        "knowledge transfer",
        "deep plain networks",
        "overfitting",
    ),
    defaults={"guide": "auto", "alpha": 1.0, "match": "depth", "stop": None},
    neutral={"alpha": 0.0},
    search={"alpha": (0.1, 3.0)},
    across_batch=True,
    tags=("CKA", "centred kernel alignment", "distillation", "teacher", "untrained guide"),
)


class Guidance(Method):
    """Layer-wise alignment of the network in training to a frozen guide.

    The guide is a copy in evaluation mode that gets each batch as it reaches this method; list methods that change
    inputs before it. Both networks' activations come from one forward pass each.

    Args:
        guide: the network that guides, of which a frozen copy is kept; or its description, from which it is built with
            the first batch, untrained weights drawn from the run's seed: "auto", "timm:NAME", "repertory:NAME",
            "package.module:factory", or the folder of a saved model.
        alpha: weight of the penalty, which is summed over the pairs of layers; 0 trains without a guide.
        match: "depth" pairs layers by relative depth, "name" those of equal names; or a mapping from layers of
            the guide to layers of the network, also as a list of "guide layer=network layer".
        stop: number of steps after which the guide is left out, None for never.

    Raises:
        OptionError: if an option is outside its range; in setup or the first step, if a layer does not exist or nothing
            can be paired.
        UserError: in the first step, if the guide cannot be built, cannot take the inputs, or is not finite.
        DataError: in a step, if a batch, or a part of one that is split, has a single example.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> guide = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[Guidance(guide)])
    >>> _ = step((torch.randn(8, 4), torch.randint(2, (8,))))
    >>> step.explain(), step.run.counts.forward
    ('step > gradient > loss[guidance]', 16)

    Notes:
        The authors' code runs the network a second time for its activations: other dropout masks, and running
        statistics updated twice. Here there is one pass. Where several layers of the guide share a layer of the
        network, their code keeps only the last of these pairs; here all count. A layer whose output is changed in place
        by the next one (`ReLU(inplace=True)`) is seen after the change, as in their code. On several devices, and where
        batches are split, examples are compared within each part.

    Reference: Subramaniam, Mayo, Conwell, Poggio, Katz, Cheung, Barbu, https://arxiv.org/abs/2410.20035.
    """

    slug = "guidance"

    def __init__(
        self,
        guide: nn.Module | str = AUTO,
        alpha: float = 1.0,
        match: str | Mapping[str, str] | Sequence[str] = "depth",
        stop: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(guide, (nn.Module, str)):
            raise OptionError(f"guide={guide!r} is not allowed: guide must be a torch.nn.Module or the name of one")
        check_number("alpha", alpha, minimum=0)
        if stop is not None:
            check_number("stop", stop, minimum=1, integer=True)
        self.alpha = alpha
        self.match = match
        self.stop = stop
        self.guide: FrozenCopy | None = None
        self._named = named_pairs(match)
        self._part = guide_part(guide) if isinstance(guide, str) else None
        self._built: tuple[list[int], int] | None = None
        if isinstance(guide, nn.Module):
            self.guide = FrozenCopy(guide)
        self._run: Run | None = None
        self._own: LayerOutputs | None = None
        self._theirs: LayerOutputs | None = None
        self._pairs: Pairs | None = None

    def setup(self, run: Run) -> None:
        """Listen to the layers of the network, and of the guide if it is there."""
        if self.alpha == 0:
            return
        self._run, self._pairs = run, None
        self._own = LayerOutputs(run.model, self._names(1), "match")
        if self.guide is not None:
            self._theirs = LayerOutputs(self.guide.model, self._names(0), "match")

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the penalty to the inner loss."""
        run = state.run
        if self._own is None or (self.stop is not None and run.counts.steps >= self.stop):
            return inner(state)
        size = batch_size(state.batch)
        if size < 2:
            raise DataError(
                "guidance compares the examples of a batch with each other, but a batch, or a part of one, has a "
                "single example; raise batch_size (to 64 or more), or lower accumulate"
            )
        with self._own.recorded(size) as own:
            loss = inner(state)
        if self.guide is None:
            self._build(tuple(_tensor(state.batch["input"]).shape[1:]), _tensor(state.output).shape[-1])
        assert self.guide is not None
        assert self._theirs is not None
        with self._theirs.recorded(size) as theirs:
            self._guide(state.batch["input"])
        run.counts.forward += size
        if self._pairs is None:
            self._pair(own, theirs)
        penalty = sum(1 - linear_cka(own[mine], theirs[other]) for other, mine in self._pairs or ())
        return torch.add(loss, penalty, alpha=self.alpha)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the guide was built for, where it was built with the first batch."""
        return {} if self._built is None else {"in_shape": self._built[0], "outputs": self._built[1]}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Build the guide again, so that its weights can be loaded."""
        if state and self.guide is None:
            self._build(tuple(state["in_shape"]), state["outputs"])

    def _names(self, place: int) -> list[str] | None:
        if self._named is None:
            return None
        return list(dict.fromkeys(pair[place].partition("@")[0] for pair in self._named))

    def _build(self, in_shape: tuple[int, ...], outputs: int) -> None:
        assert self._run is not None
        with seeded(self._run.seed, self.slug):
            made = build_guide(self._part, in_shape, outputs)
        self.guide = FrozenCopy(made).to(self._run.device)
        self._built = (list(in_shape), outputs)
        self._theirs = LayerOutputs(self.guide.model, self._names(0), "match")

    def _guide(self, inputs: Any) -> None:
        assert self.guide is not None
        if self._pairs is not None:
            self.guide(inputs)
            return
        try:
            self.guide(inputs)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"guide {type(self.guide.model).__name__} cannot take inputs of shape {tuple(_tensor(inputs).shape)}: "
                f"{reason}; choose another guide"
            ) from error

    def _pair(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        self._pairs = matched(self.match, list(theirs), list(own))
        assert self._own is not None
        assert self._theirs is not None
        for other, _ in self._pairs:
            if not bool(theirs[other].isfinite().all()):
                raise UserError(
                    f"guide: the output of its layer {other!r} is not finite; choose another guide, normalise the "
                    "inputs, or name other layers with match"
                )
        self._theirs.keep([other for other, _ in self._pairs])
        self._own.keep([mine for _, mine in self._pairs])


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(
            f"guide: a guide that is named is built for inputs and outputs that are one tensor each, not "
            f"{type(value).__name__}; give Guidance the network itself"
        )
    return value


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add Guidance to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.guidance:Guidance", options, "guidance"))
