r"""Distil from crops that a teacher has labelled once, and correct its labels where it cannot know.

## Idea
The teacher labels many random crops of every image once, and the student replays them: no pass of the teacher in
training. Some crops show background only, where the teacher's label is a guess, and some are so easy that they teach
nothing. Crops are sorted by the teacher's confidence: both extremes are dropped, unsure ones get the smoothed true
class in place of the teacher's label (they show what surrounds the class), the others keep what the teacher said.
Crops are mixed with others of the same image only (SelfMix), whose labels are alike.

## Use it when
- images are large enough for crops that show parts of them, and objects do not fill them;
- the teacher is expensive, and students are trained for many epochs or several times;
- reading an image takes long: one reading serves several crops.

## Do not use it when
- inputs are no images, or each pixel counts (digits of 8 x 8 pixels);
- training is so short that each crop would be seen once: labelling it costs a third of a training pass;
- colours or other changes are drawn after cropping, for which stored labels do not hold.

## Equations
For a crop of an image of class $y$, of which the teacher says $p$ with confidence $c = \max_k p_k$:
$$ \tilde y = \begin{cases} \text{dropped} & c < T_L \text{ or } c > T_T \\
   (1 - \epsilon)\, e_y + \tfrac{\epsilon}{K - 1} (1 - e_y) & T_L \le c < T_M \\ p & \text{otherwise,} \end{cases}
   \qquad L = -\sum_k \tilde y_k \log \mathrm{softmax}(z)_k. $$
Of $p$ the $k$ largest entries are stored; the rest is spread evenly over the other classes.

## Defaults
`crops=4`, `k=5`, `smallest=0.08`, `largest=0.936` and mixing by Beta(0.8) or Beta(1) are those of the authors' scripts
for FKD, of which this is the successor. The thresholds `low=0.15`, `middle=0.3`, `top=0.95` and `smoothing=0.1` are
recalled: the repository has no code of FerKD's own. They suit a thousand classes; with few classes give quantiles,
`quantiles=true` with for example `low=0.1`, `middle=0.25`, `top=0.95`. `stored=200` crops of an image are the least
that the authors use; in a comparison, where labelling is paid for, it is as many as are then seen in training: three
for every four epochs of the baseline.

## Cost
One teacher pass a stored crop, before the first step; then no pass beside those of the student. A batch has
`batch_size / crops` images and, with `crops` of each, the size that it had. A crop takes 21 + 6 `k` bytes.

## Claim
ImageNet, ResNet-50: 81.2 %, one point above FKD, and faster convergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repertory.algorithms.ferkd.bank import LabelBank
from repertory.algorithms.ferkd.crops import replay
from repertory.algorithms.ferkd.labels import DROPPED, HARD, IMPORTANT, calibrated, regions, selfmix
from repertory.card import Card
from repertory.core.crops import draw_boxes
from repertory.core.distributed import gather_rows, own_rows, world_size
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State
from repertory.errors import ConflictError, OptionError, check_choice, check_number
from repertory.recipe import Part, Recipe

__all__ = ["FerKD", "LabelBank", "calibrated", "draw_boxes", "regions", "replay", "selfmix"]

CARD = Card(
    slug="ferkd",
    name="FerKD",
    title="FerKD: Surgical Label Adaptation for Efficient Distillation",
    authors="Zhiqiang Shen",
    year=2023,
    venue="ICCV 2023",
    link="https://arxiv.org/abs/2312.17473",
    kind="algorithm",
    entry="FerKD",
    problems=("knowledge distillation", "expensive teacher", "pre-computed soft labels", "label noise of crops"),
    defaults={
        "low": 0.15,
        "middle": 0.3,
        "top": 0.95,
        "quantiles": False,
        "confidence": "max",
        "smoothing": 0.1,
        "crops": 4,
        "stored": 200,
        "k": 5,
        "smallest": 0.08,
        "largest": 0.936,
        "flip": 0.5,
        "mix": 1.0,
        "folder": None,
    },
    scenarios=("distillation",),
    needs=("teacher", "training", "index", "classes", "images"),
    tags=("FKD", "fast knowledge distillation", "SelfMix", "label bank", "teacher", "student", "soft labels"),
)


class FerKD(Method):
    """Distillation from a bank of labelled crops, calibrated by region.

    The bank is made in the first step, from `run.training` by `run.teacher`. In each step the images of the batch give
    way to `crops` of their stored crops, so load them without augmentation, and as many fewer of them.

    Where fewer than `crops` crops of an image are left between the thresholds, the least extreme of those that were
    dropped come back, with the label of the region next to them, so that a batch keeps its size and no image is lost.

    Args:
        low: confidence below which a crop is dropped (T_L).
        middle: confidence below which a crop gets the smoothed true class (T_M).
        top: confidence above which a crop is dropped (T_T).
        quantiles: the three thresholds are shares of all stored crops, from the least sure on.
        confidence: how sure the teacher is: "max", its largest probability, or "true", that of the true class.
        smoothing: what the wrong classes of such a label get together (epsilon).
        crops: crops of an image that a step replays.
        stored: crops of an image that the teacher labels.
        k: probabilities kept of each label.
        smallest: least share of an image's area that a crop shows.
        largest: greatest share of it.
        flip: probability that a crop is mirrored.
        mix: probability that the crops of a step are mixed with others of their image (SelfMix).
        folder: where banks of more than 4 GiB are kept; None for the system's folder of temporary files.

    Raises:
        OptionError: if an option is outside its range.

    >>> from repertory import Step
    >>> images, target = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    >>> student, teacher = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)) for _ in range(2))
    >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    >>> batch = (images, target, torch.arange(6))
    >>> method = FerKD(crops=2, stored=5)
    >>> step = Step(student, optimizer, torch.nn.CrossEntropyLoss(), methods=[method], teacher=teacher,
    ...             training=[batch], examples=6, classes=3)
    >>> _ = step(batch)
    >>> step.run.counts.forward, step.run.counts.backward
    (42, 12)

    Notes:
        The authors' loss is the mean of the soft cross-entropies, which torch's is for probabilities; a temperature of
        the student, which their scripts leave at 1, is not offered.

    Reference: Shen, https://arxiv.org/abs/2312.17473; bank and replay: Shen and Xing, FKD,
    https://arxiv.org/abs/2112.01528.
    """

    slug = "ferkd"
    needs = frozenset({"teacher", "training", "index", "classes", "images"})
    owns = frozenset({"target"})
    takes = {"target": "hard"}
    gives = {"target": "soft"}

    def __init__(
        self,
        low: float = 0.15,
        middle: float = 0.3,
        top: float = 0.95,
        quantiles: bool = False,
        confidence: str = "max",
        smoothing: float = 0.1,
        crops: int = 4,
        stored: int = 200,
        k: int = 5,
        smallest: float = 0.08,
        largest: float = 0.936,
        flip: float = 0.5,
        mix: float = 1.0,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        check_number("low", low, minimum=0, maximum=1)
        check_number("middle", middle, minimum=low)
        check_number("top", top, minimum=middle)
        check_choice("quantiles", quantiles, (False, True))
        if quantiles:
            check_number("top", top, maximum=1)
        check_choice("confidence", confidence, ("max", "true"))
        check_number("smoothing", smoothing, minimum=0, maximum=1)
        check_number("crops", crops, minimum=1, integer=True)
        check_number("stored", stored, minimum=crops, integer=True)
        check_number("k", k, minimum=1, integer=True)
        check_number("smallest", smallest, above=0, maximum=1)
        check_number("largest", largest, minimum=smallest, maximum=1)
        check_number("flip", flip, minimum=0, maximum=1)
        check_number("mix", mix, minimum=0, maximum=1)
        self.thresholds = self._given = (low, middle, top)
        self.quantiles = quantiles
        self.smoothing = smoothing
        self.crops = crops
        self.mix = mix
        self._stored: dict[str, Any] = {"crops": stored, "k": k, "confidence": confidence, "folder": folder}
        self._drawn: dict[str, Any] = {"smallest": smallest, "largest": largest, "flip": flip}
        self._sizes: dict[str, Any] = {}
        # Not a submodule: the state of a run that goes on has one before this method makes its own.
        self._bank: list[LabelBank] = []

    @property
    def bank(self) -> LabelBank | None:
        """The bank, None before the first step."""
        return self._bank[0] if self._bank else None

    @property
    def bytes(self) -> int:
        """Memory that the bank takes."""
        return sum(bank.bytes + bank.table.bytes for bank in self._bank)

    def step(self, state: State, inner: Inner) -> Tensor:
        """Put crops of the images and their labels in place of the batch."""
        run, batch = state.run, state.batch
        bank = self._bank[0] if self._bank else self._made(run, batch["input"])
        index, target, generator = batch["index"], batch["target"], run.generator(self.slug)
        # All processes draw for all images and take what is theirs, as one process would.
        own = own_rows(len(index), index.device)
        images = len(gather_rows(index)) if world_size() > 1 else len(index)
        keys = torch.rand(images, bank.crops, generator=generator)[own]
        sure = bank.sure(index)
        chosen = keys.masked_fill(~self.kept(sure), 2.0).topk(self.crops, largest=False).indices
        crops, soft = bank.replayed(index, chosen, batch["input"]), bank.labels(index, chosen)
        trusted = (sure.gather(1, chosen) >= self.thresholds[1]).to(target.device)
        labels = calibrated(soft, target[:, None].expand(-1, self.crops), trusted, self.smoothing)
        if float(torch.rand((), generator=generator)) < self.mix:
            crops, labels = selfmix(crops, labels, generator, images=images, own=own)
        rows = torch.arange(len(index), device=index.device).repeat_interleave(self.crops)
        # What else there is of an example goes with each of its crops; the images themselves need not.
        many = state.with_batch(input=index).select(rows)
        return inner(many.with_batch(input=crops.flatten(0, 1), target=labels.flatten(0, 1)))

    def kept(self, sure: Tensor) -> Tensor:
        """Return which crops may be replayed: those between the thresholds, and at least `crops` of each image.

        Args:
            sure: confidence of all crops of some images `(images, stored)`.
        """
        low, middle, top = self.thresholds
        extreme = (low - sure).maximum(sure - top).clamp(min=0)
        rank = extreme.argsort(dim=1, stable=True).argsort(dim=1)
        return (regions(sure, low, middle, top) != DROPPED) | (rank < self.crops)

    def shares(self) -> dict[str, float]:
        """Return which shares of the labelled crops are "dropped", "hard" and "important".

        Raises:
            OptionError: if there is no bank yet.
        """
        if not self._bank:
            raise OptionError("there is no bank before the first step; make a step first")
        sure = self._bank[0].confidence
        region = regions(sure[sure > 0], *self.thresholds)
        named = {"dropped": DROPPED, "hard": HARD, "important": IMPORTANT}
        return {name: float((region == number).double().mean()) for name, number in named.items()}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the bank and the thresholds, for the state dict."""
        bank = dict(self._bank[0].state_dict()) if self._bank else None
        return {"sizes": self._sizes, "bank": bank, "thresholds": list(self.thresholds)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over a saved bank."""
        self._bank, self._sizes = [], dict(state["sizes"])
        low, middle, top = state["thresholds"]
        self.thresholds = (low, middle, top)
        if state["bank"] is not None:
            bank = self._empty(torch.Generator())
            bank.load_state_dict(state["bank"])
            self._bank = [bank]

    def _made(self, run: Run, images: Tensor) -> LabelBank:
        if run.examples is None:
            raise ConflictError("ferkd stores labels of all images; pass examples=... (how many there are) to Step")
        assert run.classes is not None
        assert run.teacher is not None
        height, width = images.shape[2:]
        self._sizes = {"examples": run.examples, "classes": run.classes, "height": height, "width": width}
        bank = self._empty(run.generator(f"{self.slug}/bank"))
        for entries in run.training_batches():
            if "index" not in entries:
                raise ConflictError("ferkd needs 'index' in the batches of training too; yield (input, target, index)")
            index, inputs, target = (entries[name] for name in ("index", "input", "target"))
            bank.fill(index, inputs, target, run.teacher)
            run.counts.forward += len(index) * bank.crops
        self.thresholds = bank.quantiles(self._given) if self.quantiles else self._given
        self._bank = [bank]
        return bank

    def _empty(self, generator: torch.Generator) -> LabelBank:
        return LabelBank(**self._sizes, **self._stored, **self._drawn, generator=generator)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add FerKD to the recipe's methods, in place of its augmentation.

    A batch has as many crops as it had images, and an epoch as many fewer passes over the images. As many crops are
    stored as the rest of the budget lets the student see, 200 at the most, and they are mirrored where the recipe
    mirrors.
    """
    crops = FerKD(**options).crops
    chosen = {
        # A crop costs one pass to label and three to learn from.
        "stored": max(crops, min(200, round(recipe.epochs * 3 / 4))),
        "flip": 0.5 if recipe.augment == "flip-shift" else 0.0,
        **options,
    }
    return recipe.add("methods", Part("repertory.algorithms.ferkd:FerKD", chosen, "ferkd")).replace(
        batch_size=max(1, recipe.batch_size // crops), epochs=max(1, round(recipe.epochs / crops)), augment="none"
    )
