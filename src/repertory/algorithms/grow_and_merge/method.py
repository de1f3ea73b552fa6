"""One time step of Grow and Merge as a method of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.algorithms.grow_and_merge.merging import merge_branches
from repertory.algorithms.grow_and_merge.novelty import (
    SCORES,
    leading,
    novelty_scores,
    novelty_split,
)
from repertory.algorithms.grow_and_merge.pairs import batch_pair_loss, mean_of, ramp_up
from repertory.algorithms.kd import distillation_loss
from repertory.core.consistency import wide
from repertory.core.distributed import gather_rows, world_size
from repertory.core.features import NetworkFeatures, takes_embeddings
from repertory.core.frozen import FrozenCopy
from repertory.core.method import Inner
from repertory.core.modes import evaluating
from repertory.core.objective import Objective
from repertory.core.state import Run, State
from repertory.core.tables import ExampleTable
from repertory.errors import ConflictError, DataError, OptionError, check_choice, check_number

if TYPE_CHECKING:
    from repertory.algorithms.grow_and_merge.stream import GrowMerge
    from repertory.scenarios.category_discovery import DiscoveryBench
    from repertory.training.learner import Learner

_NOVEL, _LABEL, _SURE = range(3)
"""Columns of what is noted of each example: taken for new, its label or pseudo-label, whether that is learnt from."""


class GM(Objective):
    r"""One time step of Grow and Merge: find the new classes in a set without labels, then learn all classes together.

    The network that the step is built on has an output for every class, and knows all but the last `new`. The training
    set is the set without labels (target -1, or any that is no known class's), and some labelled examples. First they
    are split by how new they look to the network as it came, the static branch. Then the network, now the dynamic
    branch, grows: pairs of new examples with the same largest features are pulled to the same new output. At a share
    `growing` of the run both branches are merged, and the rest of it is training on labels and pseudo-labels.

    In a loop of your own pass `training=loader` to the `Step`, in batches `(input, target, index)`, and call
    `step.end_epoch()` after each pass. `GrowMerge` does all of it for one set after the other.

    Args:
        new: how many of the network's last outputs are new classes; None leaves it to `GrowMerge` or the scenario. 0 is
            replay on what there is.
        k: features of a pair that must be the largest of both, at most the width of the features.
        growing: share of the run for growing; 1 never merges.
        momentum: share of the static branch in the merged weights.
        consistency: weight, once it has risen, of the squared difference of two versions' probabilities.
        distillation: weight of the divergence from the static branch's outputs, on known and labelled examples.
        temperature: of this divergence.
        novelty: "probability" or "energy", see `novelty_scores`.
        quantile: share of examples of known classes that count as known, which draws the line for the others.
        confident: share of the pseudo-labels that are learnt from after merging, the surest ones.
        exemplars: examples of each class to keep, for `GrowMerge` and the scenario.

    Attributes:
        reference: novelty scores of examples of known classes `(n,)` that were not trained on, for the split; None
            takes those of the labelled examples in the training set, to which a network that learnt them by heart gives
            scores too low, so that more than the rest of `quantile` is then taken for new.
        merged: whether the branches are.

    Raises:
        ConflictError: in use, if nobody said how many classes are new, or the loss holds the classifier.
        DataError: in use, if the training set has no labelled example, or fewer others than new classes.
        OptionError: if an option is out of range.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))  # two known classes, two new ones
    >>> inputs, target = torch.randn(12, 4), torch.tensor([0, 1] * 2 + [-1] * 8)
    >>> method = GM(new=2, k=2)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [method], epochs=4,
    ...             training=[(inputs, target, torch.arange(12))])
    >>> views = [inputs + 0.1, inputs - 0.1]
    >>> for _ in range(4):
    ...     loss = step({"input": inputs, "target": target, "index": torch.arange(12), "views": views})
    ...     step.end_epoch()
    >>> method.merged, method.novel[1].shape
    (True, torch.Size([12]))

    Notes:
        No code of the paper was found. The two branches, growing by pairs, momentum merging and one classifier are the
        paper's; the pair loss and its ramp are AutoNovel's. The order of the losses, the rule of the split, `momentum`
        once at the end of growing, the alignment of the new rows and all weights but AutoNovel's are designed here. The
        static branch's outputs are noted once, on the inputs as they are, as in learning without forgetting; what the
        paper adds to the first training to keep features rich is left to whoever trains on the known classes.

    Reference: Zhang, Jiang, Feng, Wu, Zhao, Wan, Tang, Jin, Gao, https://arxiv.org/abs/2210.04174.
    """

    slug = "grow-and-merge"
    needs = frozenset({"views", "index", "epochs", "training"})

    def __init__(
        self,
        new: int | None = None,
        k: int = 5,
        growing: float = 0.5,
        momentum: float = 0.5,
        consistency: float = 50.0,
        distillation: float = 1.0,
        temperature: float = 2.0,
        novelty: str = "probability",
        quantile: float = 0.95,
        confident: float = 0.7,
        exemplars: int = 20,
    ) -> None:
        super().__init__()
        if new is not None:
            check_number("new", new, minimum=0, integer=True)
        check_number("k", k, minimum=1, integer=True)
        check_number("growing", growing, minimum=0, maximum=1)
        check_number("momentum", momentum, minimum=0, maximum=1)
        check_number("consistency", consistency, minimum=0)
        check_number("distillation", distillation, minimum=0)
        check_number("temperature", temperature, above=0)
        check_choice("novelty", novelty, SCORES)
        check_number("quantile", quantile, above=0, below=1)
        check_number("confident", confident, above=0, maximum=1)
        check_number("exemplars", exemplars, minimum=1, integer=True)
        self.new, self.k, self.growing, self.momentum = new, k, growing, momentum
        self.consistency, self.distillation, self.temperature = consistency, distillation, temperature
        self.novelty, self.quantile, self.confident, self.exemplars = novelty, quantile, confident, exemplars
        self.reference: Tensor | None = None
        self.merged = False
        self._stream: GrowMerge | None = None

    def setup(self, run: Run) -> None:
        """Copy the network as it is: the static branch. A further `Step` begins a further time step."""
        if takes_embeddings(run.criterion):
            raise ConflictError(
                f"grow-and-merge adds outputs to the network, but {type(run.criterion).__name__} holds the classifier; "
                "use a loss on logits, such as CrossEntropyLoss"
            )
        self._features = NetworkFeatures(run.model, run.criterion, "penultimate")
        if self.k > self._features.dim:
            raise OptionError(f"k={self.k} is more than the {self._features.dim} features of the network; choose fewer")
        if isinstance(run.criterion, nn.Module):
            run.criterion.requires_grad_(False)
        self.static = FrozenCopy(run.model)
        self.said = ExampleTable(run.examples)  # the static branch's logits of known classes
        self.notes = ExampleTable(run.examples)
        self.merged = False

    @property
    def novel(self) -> tuple[Tensor, Tensor]:
        """Positions of the examples of the training set `(n,)`, and which of them are taken for new ones `(n,)`."""
        index, rows = self.notes.entries()
        return index, rows[:, _NOVEL] > 0 if len(index) else torch.zeros(0, dtype=torch.bool)

    @property
    def rejected(self) -> Tensor:
        """Which examples of the last set of `discover` were taken for new ones `(n,)`, bool."""
        return torch.zeros(0, dtype=torch.bool) if self._stream is None else self._stream.rejected

    def discover(self, learner: Learner, bench: DiscoveryBench) -> Learner:
        """Learn from the present set of the scenario category_discovery, and return the model with its new classes."""
        from repertory.algorithms.grow_and_merge.stream import GrowMerge

        def train(network: nn.Module, method: GM, inputs: Tensor, targets: Tensor) -> nn.Module:
            learner.network = network
            return bench.learn(learner, method, inputs, targets).network

        if self._stream is None:
            self._stream = GrowMerge(
                learner.network, self, train=train, outputs=lambda model, x: bench.look(model, x)[1], seed=bench.seed
            )
            self._stream.remember(bench.splits.train.inputs, bench.splits.train.targets)
            self._stream.calibrate(bench.splits.validation.inputs)
        self._stream.step(bench.unlabelled, bench.new_classes)
        return learner

    def step(self, state: State, inner: Inner) -> Tensor:
        """Split the training set before the first update, and merge the branches when it is time."""
        run = state.run
        if self.notes.rows is None:
            self._split(run)
        if not self.merged and (run.progress >= self.growing or not self.new) and self.growing < 1:
            self._merge(run)
        return inner(state)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return the loss of growing, or once the branches are merged that of all classes together, 0-d."""
        if self.notes.rows is None:
            self._split(state.run)
        return self._unifying(state) if self.merged else self._growing(state)

    def get_extra_state(self) -> dict[str, Any]:
        """Return whether the branches are merged, for the state dict."""
        return {"merged": self.merged}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.merged = state["merged"]

    def _growing(self, state: State) -> Tensor:
        batch, new = state.batch, self._new()
        features, outputs = self.evaluate(state, batch["views"][:2])
        logits = wide(outputs)
        novel = self.notes.read(batch["index"])[:, _NOVEL] > 0
        heads = logits.split([logits.shape[2] - new, new], 2)
        probabilities = [head.softmax(2) for head in heads]
        differences = [F.mse_loss(each[0], each[1]) for each in probabilities if each.shape[2]]
        weight = self.consistency * ramp_up(state.run.progress / self.growing if self.growing else 1.0)
        loss = weight * torch.stack(differences).sum() + self._kept(state, logits[0], ~novel)
        if new:
            first, second = probabilities[1]
            loss = loss + batch_pair_loss(features[0], first, second, novel, self.k)
        return loss

    def _unifying(self, state: State) -> Tensor:
        batch = state.batch
        logits = wide(self.evaluate(state, [batch["input"]])[1][0])
        notes = self.notes.read(batch["index"])
        right = F.cross_entropy(logits, notes[:, _LABEL].long(), reduction="none")
        return mean_of(right, notes[:, _SURE] > 0) + self._kept(state, logits, notes[:, _NOVEL] == 0)

    def _kept(self, state: State, logits: Tensor, chosen: Tensor) -> Tensor:
        """How far the known classes' logits of the chosen examples are from what the static branch said of them."""
        said = self.said.read(state.batch["index"])
        values = distillation_loss(logits[:, : said.shape[1]], said, self.temperature)
        return self.distillation * mean_of(values, chosen)

    def _new(self) -> int:
        if self.new is None:
            raise ConflictError(
                "grow-and-merge was not told how many classes are new; say it, as in GM(new=2), or use GrowMerge or "
                "the scenario category_discovery, which do"
            )
        return self.new

    @torch.no_grad()
    def _split(self, run: Run) -> None:
        """Note what the static branch says of each example: new or not, its label, and whether that is sure."""
        index, target, outputs = self._looked(run)
        known = outputs.shape[1] - self._new()
        if known < 1:
            raise OptionError(
                f"new={self.new} leaves none of the network's {outputs.shape[1]} outputs to known classes"
            )
        logits = wide(outputs)[:, :known]
        labelled = (target >= 0) & (target < known)
        if not bool(labelled.any()):
            raise DataError(
                f"training=... has no example of a known class (target from 0 to {known - 1}); keep some of each class"
            )
        novel = torch.zeros_like(labelled)
        if self.new:
            scores = novelty_scores(logits, self.novelty)
            reference = scores[labelled] if self.reference is None else self.reference.to(scores)
            novel[~labelled] = novelty_split(scores[~labelled], reference, self.quantile, least=self.new)
        sure, label = logits.softmax(1).max(1)
        others = ~labelled & ~novel
        learnt = labelled.clone()
        learnt[others] = leading(sure[others], self.confident)
        self.said.write(index, logits)
        self.notes.write(index, torch.stack([novel, torch.where(labelled, target, label), learnt], 1))

    @torch.no_grad()
    def _merge(self, run: Run) -> None:
        """Give the new examples the dynamic branch's labels, and merge the branches."""
        if new := self._new():
            index, _, outputs = self._looked(run)
            rows = self.notes.read(index)
            novel = rows[:, _NOVEL] > 0
            sure, label = wide(outputs)[novel, -new:].softmax(1).max(1)
            rows[novel, _LABEL] = (label + outputs.shape[1] - new).to(rows)
            rows[novel, _SURE] = leading(sure, self.confident).to(rows)
            self.notes.write(index, rows)
            merge_branches(self.static, run.model, self.momentum, new)
        self.merged = True

    def _looked(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, targets and outputs of the whole training set, each example once."""
        found: list[tuple[Tensor, ...]] = []
        with evaluating(run.model):
            for entries in run.training_batches():
                found.append((entries["index"], entries["target"], run.model(entries["input"])))
                run.counts.forward += len(entries["index"])
        if not found:
            raise DataError(
                "training=... gave no batch; give a loader of the whole training set, (input, target, index)"
            )
        index, target, outputs = (gather_rows(torch.cat(parts)) for parts in zip(*found))
        if world_size() > 1:
            # Processes that were all given the whole set count it once.
            order = index.sort(stable=True)
            first = order.indices[torch.cat([order.values.new_ones(1), order.values.diff()]) > 0]
            index, target, outputs = index[first], target[first], outputs[first]
        return index, target, outputs
