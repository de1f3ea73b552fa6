r"""Learn from unlabelled images what and who is in them, and choose the mixture of both when the network is used.

## Idea
Self-supervised embeddings of people mix appearance (who) with semantics (which part of a body is where) in a ratio
that nobody chose. SOLIDER finds parts without labels: an image's own tokens, as the teacher of a self-distillation
sees them, are split into fore- and background by their length, and the foreground is clustered; clusters are numbered
from top to bottom, since people stand upright. A head must tell these parts from the student's tokens, also where one
part is erased. A controller, one number $\lambda$ in [0, 1], scales and shifts what the stages of the network give;
in training it is drawn 0 or 1 for each image, and the parts count only at 1. Afterwards you set it: low to identify,
high to parse.

## Use it when
- images show one kind of upright object with parts from top to bottom: people, animals, vehicles seen from the side;
- one network is to serve tasks that need identity and tasks that need parts;
- there are unlabelled images of the kind, before or beside labelled ones.

## Do not use it when
- objects come in any pose, or several to an image: parts numbered by height then mean nothing;
- feature maps have only a few places: parts are clusters of places;
- the budget is short: each step passes an image six to eight times, and the controller starts with next to no effect
  (after the 300 steps of the claim below it traded nothing).

## Equations
$c = (\lambda, 1 - \lambda)$, and behind each stage $x \leftarrow x \cdot \operatorname{softplus}(W_s c) + W_b c$.
With two views of an image, teacher weights $\theta' \leftarrow m \theta' + (1 - m) \theta$, and the labels $y$ of the
teacher's tokens at $\lambda = 1$:
$$ L = L_{dino} + w \, \frac{1}{|M|} \sum_{x \in M} \frac{\lambda_x}{T} \sum_{t=1}^{T}
   \mathrm{CE}\big(g(z_t(x)), y_t\big), $$
$M$ the views with a foreground of more than half of their tokens, each once as it is and once with part $k$, drawn
for the step, erased. $L_{dino}$ is the cross-entropy between softmaxed outputs for different views, the teacher's
centred.

## Defaults
`parts=3`, `semantic_weight` ($w$) `=1`, `momentum` ($m$, to 1 along a cosine) `=0.996`, temperatures 0.1 and 0.04, a
centre that keeps 0.9 a step, a last layer that stands still in the first epoch: the authors'. They have 65536
`prototypes` and heads 2048 wide, for millions of images; here it is 1024 and `width=256`. `ratio=0.2` is what they
fine-tune re-identification with. `weight=1`: how much all of this counts beside the recipe's own loss; they pre-train
without any (`supervised=false`) and fine-tune afterwards.

## Cost
Beside the recipe's own pass: of two views an image, one and a half passes of the teacher and one of the student, and
of those with parts and $\lambda = 1$ one more of the student. k-means on tokens, all images at once. A copy of the
network.

## Claim
The part head makes tokens tell parts, and the controller trades that for identity monotonically.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repertory.algorithms.solider.controller import (
    ControlledStage,
    SemanticController,
    add_semantic_control,
    controller_of,
)
from repertory.algorithms.solider.distillation import CENTRE_KEPT, DistillationHead, distillation_loss
from repertory.algorithms.solider.parts import foreground, part_labels
from repertory.card import Card
from repertory.core.activations import LayerOutputs
from repertory.core.classifier import classifier_of, features_and_output
from repertory.core.distributed import own_rows, sum_over_processes, world_size
from repertory.core.frozen import FrozenCopy
from repertory.core.method import Inner, Method
from repertory.core.randomness import seeded
from repertory.core.state import Run, State, batch_size
from repertory.errors import OptionError, check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="solider",
    name="SOLIDER",
    title="Beyond Appearance: a Semantic Controllable Self-Supervised Learning Framework for Human-Centric Visual "
    "Tasks",
    authors="Weihua Chen et al.",
    year=2023,
    venue="CVPR 2023",
    link="https://arxiv.org/abs/2303.17602",
    kind="algorithm",
    entry="SOLIDER",
    problems=(
        "controllable representation",
        "self-supervised pre-training",
        "pseudo part labels",
        "semantics versus appearance",
        "person re-identification",
        "conditional network",
    ),
    defaults={
        "parts": 3,
        "weight": 1.0,
        "semantic_weight": 1.0,
        "momentum": 0.996,
        "prototypes": 1024,
        "width": 256,
        "supervised": True,
    },
    scenarios=("retrieval",),
    needs=("views",),
    neutral={"weight": 0.0},
    search={"weight": (0.1, 3.0)},
    across_batch=True,
    tags=("DINO", "self-distillation", "teacher", "FiLM", "body parts", "unlabelled", "semantic controller"),
)

__all__ = [
    "CARD",
    "SOLIDER",
    "ControlledStage",
    "DistillationHead",
    "SemanticController",
    "add_semantic_control",
    "distillation_loss",
    "edit",
    "foreground",
    "part_labels",
]


class SOLIDER(Method):
    """Self-distillation with pseudo-labels of parts, for a network with a semantic controller.

    Give the network its controller first, `add_semantic_control(model, in_shape=...)`; recipes do it by themselves. The
    recipe's own loss, on the batch's inputs, is evaluated at `model.controller.ratio`, the rest on its two views.

    Args:
        parts: clusters of the foreground (P).
        weight: of everything that is added to the recipe's loss; 0 adds nothing.
        semantic_weight: of telling parts, beside self-distillation.
        momentum: share of the teacher that a step keeps at first, rising to 1 along a cosine over the run.
        prototypes: outputs of the self-distillation's head.
        width: of the hidden layers of both heads.
        supervised: False leaves out the recipe's own loss: pre-training without labels, as in the paper.

    Raises:
        OptionError: if an option is out of range.
        ConflictError: in setup, if the network has no semantic controller.
        DataError: in use, if maps have no more places than parts.

    >>> from torch import nn
    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    >>> model = add_semantic_control(model, in_shape=(1, 8, 8))
    >>> method = SOLIDER(prototypes=16, width=8)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[method])
    >>> inputs = torch.randn(6, 1, 8, 8)
    >>> views = [inputs + 0.1 * torch.randn(6, 1, 8, 8) for _ in range(2)]
    >>> _ = step({"input": inputs, "target": torch.arange(6) % 3, "views": views})
    >>> step.explain()
    'step[solider] > gradient > loss[solider]'

    Notes:
        In the authors' code the part head stands outside of what the optimizer is given, and so keeps its initial
        weights; here it is trained. The modulation behind their last stage reaches nothing, since features are taken
        before it; here they are taken behind it. When no image has a foreground their code fails; here
        self-distillation is all there is. There are two views and no smaller crops. Where $\\lambda$ was drawn 1 the
        teacher's pass for the parts serves for its outputs too, and erased copies are passed only where they count,
        both without a change to the loss. The teacher is in evaluation mode, with the student's running statistics.
        The paper's schedules of learning rate and decay, and its clipping at 3, are the recipe's business.

    Reference: Chen, Xu, Jia, Luo, Wang, Wang, Jin, Sun, https://arxiv.org/abs/2303.17602.
    """

    slug = "solider"
    needs = frozenset({"views"})

    centre: Tensor

    def __init__(
        self,
        parts: int = 3,
        weight: float = 1.0,
        semantic_weight: float = 1.0,
        momentum: float = 0.996,
        prototypes: int = 1024,
        width: int = 256,
        supervised: bool = True,
    ) -> None:
        super().__init__()
        check_number("parts", parts, minimum=2, integer=True)
        check_number("weight", weight, minimum=0)
        check_number("semantic_weight", semantic_weight, minimum=0)
        check_number("momentum", momentum, minimum=0, maximum=1)
        check_number("prototypes", prototypes, minimum=2, integer=True)
        check_number("width", width, minimum=1, integer=True)
        check_choice("supervised", supervised, (True, False))
        if weight == 0 and not supervised:
            raise OptionError("weight=0 with supervised=False leaves nothing to learn from; give a weight above 0")
        self.parts = parts
        self.weight = weight
        self.semantic_weight = semantic_weight
        self.momentum = momentum
        self.prototypes = prototypes
        self.width = width
        self.supervised = supervised
        self.part_head: DistillationHead | None = None

    def setup(self, run: Run) -> None:
        """Make both heads and the teacher, and listen to the last controlled stage."""
        if self.weight == 0:
            return
        model = run.model
        last = controller_of(model).stages[-1]
        name = next(name for name, module in model.named_modules() if module is last)
        with seeded(run.seed, self.slug):
            self.head = DistillationHead(classifier_of(model)[1].in_features, self.prototypes, self.width)
            if self.semantic_weight > 0:
                self.part_head = DistillationHead(last.channels, self.parts + 1, self.width)
        self.teacher, self.teacher_head = FrozenCopy(model), FrozenCopy(self.head)
        self.register_buffer("centre", torch.zeros(self.prototypes))
        self.to(run.device)
        self._name = name
        self._own, self._theirs = LayerOutputs(model, [name]), LayerOutputs(self.teacher.model, [name])

    def step(self, state: State, inner: Inner) -> Tensor:
        """Let teacher and centre follow once the weights are updated."""
        loss = inner(state)
        if self.weight > 0:
            self._follow(state)
        return loss

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add self-distillation and telling parts, a value an example."""
        if self.weight == 0:
            return inner(state)
        loss = inner(state) if self.supervised else None
        views, size = torch.cat(list(state.batch["views"])[:2]), batch_size(state.batch)
        ratios, erased = self._draws(state, size)
        ratios = ratios.to(views.device).repeat(2)
        labels, used, aims = self._taught(state, views, ratios)
        # Erased copies count where there are parts to tell and the image is seen semantically.
        chosen = (used & (ratios > 0) if self.semantic_weight else torch.zeros_like(used)).nonzero().flatten()
        count = len(chosen)
        shown = (labels[chosen] != erased).to(views.dtype)[:, None]
        copies = views[chosen] * _enlarged(shown, views.shape[2:])
        features, tokens = self._pass(state, torch.cat([copies, views]), torch.cat([ratios[chosen], ratios]))
        student = self.head(features[count:], still=state.run.epoch == 0).view(2, size, -1)
        values = distillation_loss(student, aims.view(2, size, -1), self.centre)
        if self.part_head is not None:
            told = self._told(torch.cat([tokens[:count], tokens[count:][chosen]]), labels[chosen].repeat(2, 1, 1))
            values = values + self.semantic_weight * self._shared(told, chosen, used, size)
        if loss is None:
            state.output = features[count : count + size]
            return self.weight * values
        return torch.add(loss, values if loss.ndim else values.mean(), alpha=self.weight)

    def _draws(self, state: State, size: int) -> tuple[Tensor, int]:
        """How semantically each image is seen, 0 or 1, and the part that is erased: the same for all of a step."""
        drawn = state.memo.setdefault(self.slug, {"ratios": torch.zeros(0), "erased": 0, "outputs": []})
        generator = state.run.generator(self.slug)
        if not drawn["erased"]:
            drawn["erased"] = int(torch.randint(1, self.parts + 1, (), generator=generator))
        rows, everyone = slice(0, size), size
        if world_size() > 1:
            device = state.run.device
            rows = own_rows(size, device)
            everyone = int(sum_over_processes(torch.tensor(size, device=device)))
        missing = everyone - len(drawn["ratios"])
        if missing > 0:
            more = torch.randint(2, (missing,), generator=generator).float()
            drawn["ratios"] = torch.cat([drawn["ratios"], more])
        return drawn["ratios"][rows], drawn["erased"]

    @torch.no_grad()
    def _taught(self, state: State, views: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's parts at a ratio of 1, which images have any, and its outputs at the images' ratios."""
        features, maps = self._teach(state, views, torch.ones_like(ratios[:1]))
        labels, used = part_labels(maps, self.parts)
        apart = (ratios < 1).nonzero().flatten()
        if len(apart):
            features = features.clone()
            features[apart] = self._teach(state, views[apart], ratios[apart])[0]
        aims = self.teacher_head(features)
        if state.evaluation == 0:
            state.memo[self.slug]["outputs"].append((aims.float().sum(0), len(aims)))
        return labels, used, aims

    def _teach(self, state: State, images: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        model = self.teacher.model
        controller = controller_of(model)
        with self._theirs.recorded(len(images)) as seen, controller.images(ratios):
            features, _ = features_and_output(model, images)
        state.run.counts.forward += len(images)
        return features, controller.stages[-1].maps(seen[self._name])

    def _pass(self, state: State, images: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        model = state.run.model
        controller = controller_of(model)
        with self._own.recorded(len(images)) as seen, controller.images(ratios):
            features, _ = features_and_output(model, images)
        # Where the recipe's own loss is left out, the step has counted one pass that was not made.
        extra = len(images) - (0 if self.supervised else batch_size(state.batch))
        state.run.counts.forward += extra
        state.run.counts.backward += extra
        return features, controller.stages[-1].maps(seen[self._name])

    def _told(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Return how badly the parts of each map are told, `(maps,)`."""
        assert self.part_head is not None
        guesses = self.part_head(maps.flatten(2).transpose(1, 2)).float()
        return functional.cross_entropy(guesses.transpose(1, 2), labels.flatten(1), reduction="none").mean(1)

    def _shared(self, told: Tensor, chosen: Tensor, used: Tensor, size: int) -> Tensor:
        """Give each example its part of the mean over all images with parts, `(batch,)`."""
        totals = torch.stack([used.sum(), used.new_tensor(size, dtype=torch.int64)])
        images, everyone = sum_over_processes(totals).unbind()
        values = torch.zeros(size, dtype=told.dtype, device=told.device)
        values = values.index_add(0, (chosen % size).repeat(2), told)
        return values * everyone / (2 * images.clamp(min=1))

    @torch.no_grad()
    def _follow(self, state: State) -> None:
        run = state.run
        kept = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * run.progress)) / 2
        self.teacher.follow(run.model, 1 - kept)
        for mine, other in zip(self.teacher.model.buffers(), run.model.buffers()):
            mine.copy_(other)
        self.teacher_head.follow(self.head, 1 - kept)
        outputs = state.memo.get(self.slug, {}).get("outputs", [])
        if outputs:
            summed = torch.stack([total for total, _ in outputs]).sum(0)
            count = summed.new_tensor([sum(images for _, images in outputs)])
            totals = sum_over_processes(torch.cat([summed, count]))
            self.centre.lerp_(totals[:-1] / totals[-1], 1 - CENTRE_KEPT)


def _enlarged(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Bring masks `(n, 1, height, width)` to the size of the images, by the nearest place; n may be 0."""
    rows, columns = (torch.arange(big, device=masks.device) * small // big for big, small in zip(size, masks.shape[2:]))
    return masks[:, :, rows[:, None], columns]


def edit(
    recipe: Recipe, ratio: float = 0.2, layers: Sequence[str] | None = None, weight: float = 1.0, **options: Any
) -> Recipe:
    """Give the network a semantic controller, and learn parts beside the recipe's own loss; `weight=0` does neither."""
    method = Part("repertory.algorithms.solider:SOLIDER", {"weight": weight, **options}, "solider")
    recipe = recipe.add("methods", method)
    if weight == 0:
        return recipe
    control: dict[str, Any] = {"ratio": ratio} if layers is None else {"ratio": ratio, "layers": list(layers)}
    path = "repertory.algorithms.solider.controller:add_semantic_control"
    return recipe.add("surgery", Part(path, control, "solider"))
