"""The second stage of CFCD as a method: local triplets on the network's last feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repertory.core.activations import LayerOutputs
from repertory.core.features import takes_embeddings
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State, batch_size
from repertory.core.tables import ExampleTable
from repertory.errors import ConflictError, OptionError, check_number
from repertory.losses.cfcd.local import local_triplets
from repertory.losses.cfcd.tuples import TupleSampler


class LocalTriplet(Method):
    """Add triplets of local descriptors to the loss, in batches of tuples, once the first stage is over.

    In every epoch it records which class each example is taken for, if the criterion tells. From the share `start` of
    the epochs on, the order of the examples is that of `TupleSampler` with this record (`run.sampler`, which
    `repertory.training.train` follows; in a loop of your own give it to the loader), and the triplets of the last
    feature map, taken from the same forward pass, join the loss: each example bears the sum of its tuple.

    Args:
        weight: factor on a tuple's sum of triplets; 0 leaves the loss and the order alone.
        start: share of the epochs after which it acts, in [0, 1).
        size: examples in a tuple.
        margin: of the triplets.
        ratio: how much nearer a match must be than the second best.
        share: of positions with most attention that may be matched.
        layer: module that gives the feature map `(batch, channels, height, width)`; None for the last one that does.

    Raises:
        OptionError: if an option is outside its range, there is no such layer, or the epochs end before it acts.
        ConflictError: if the network has no feature map, or a batch does not consist of tuples when it acts.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(),
    ...             methods=[LocalTriplet(start=0.0)], epochs=1, classes=3)
    >>> target = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    >>> _ = step({"input": torch.randn(8, 1, 6, 6), "target": target, "index": torch.arange(8)})

    Notes:
        The authors train the stages one after the other, with the order decided by the first; here the record goes on,
        so that the order follows what is still confused. They add the sums of all tuples of a process, of which there
        are two; so `weight=2` is theirs, whatever the batch. (Their configuration names 0.05, which their code does not
        use.)

    Reference: Zhu, Gao, Ke, Qiao, Sun, https://arxiv.org/abs/2308.04008.
    """

    slug = "cfcd"
    needs = frozenset({"index", "epochs"})

    def __init__(
        self,
        weight: float = 2.0,
        start: float = 0.5,
        size: int = 8,
        margin: float = 0.1,
        ratio: float = 0.9,
        share: float = 0.5,
        layer: str | None = None,
    ) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        check_number("start", start, minimum=0, below=1)
        check_number("size", size, minimum=3, integer=True)
        check_number("margin", margin, minimum=0)
        check_number("ratio", ratio, above=0)
        check_number("share", share, above=0, maximum=1)
        self.weight = weight
        self.start = start
        self.size = size
        self.margin = margin
        self.ratio = ratio
        self.share = share
        self.layer = layer
        self.predicted = ExampleTable()
        self._maps: LayerOutputs | None = None
        self._found = layer

    def setup(self, run: Run) -> None:
        """Listen to the network's layers, and take over the order of the examples."""
        if self.weight == 0:
            return
        if not any(isinstance(module, nn.modules.conv._ConvNd) for module in run.model.modules()):
            raise _no_map(run.model)
        if run.epochs is not None and math.ceil(self.start * run.epochs) >= run.epochs:
            raise OptionError(
                f"start={self.start} leaves nothing of {run.epochs:g} epochs; train for more, or give a smaller start"
            )
        names = [name for name, _ in run.model.named_modules() if name] if self.layer is None else [self.layer]
        self._maps = LayerOutputs(run.model, names, "layer")
        run.sampler = _Order(self, run)

    def acts(self, run: Run) -> bool:
        """Whether the triplets are part of the loss in the present epoch."""
        return self.weight > 0 and run.epoch >= self.start * (run.epochs or 1)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Record what each example is taken for, and add the triplets of its tuple."""
        if self._maps is None:
            return inner(state)
        with self._maps.recorded(batch_size(state.batch)) as seen:
            loss = inner(state)
        if state.evaluation == 0:
            self._record(state)
        if not self.acts(state.run):
            return loss
        target = state.batch["target"]
        if len(target) % self.size or not bool((target[:: self.size] == target[1 :: self.size]).all()):
            raise ConflictError(
                f"{self.slug} needs tuples of {self.size} (an anchor, one of its class, others) one after the other, "
                f"but a batch of {len(target)} is not made of them; let the loader take its order from "
                "step.run.sampler, and give batches and micro-batches of whole tuples"
            )
        maps = self._map(seen, state.run.model)
        sums = local_triplets(maps, target, size=self.size, margin=self.margin, ratio=self.ratio, share=self.share)
        extra = sums.repeat_interleave(self.size) if loss.ndim else sums.mean()
        return torch.add(loss, extra, alpha=self.weight)

    def _record(self, state: State) -> None:
        logits = getattr(state.run.criterion, "logits", None)
        if not callable(logits) and takes_embeddings(state.run.criterion):
            return
        with torch.no_grad():
            scores = logits(state.output) if callable(logits) else state.output
            self.predicted.write(state.batch["index"], scores.argmax(1, keepdim=True))

    def _map(self, seen: dict[str, Tensor], model: nn.Module) -> Tensor:
        if self._found is None:
            maps = [name for name, value in seen.items() if value.ndim == 4 and value.shape[2:].numel() > 1]
            if not maps:
                raise _no_map(model)
            self._found = maps[-1]
        value = seen.get(self._found)
        if value is None or value.ndim != 4:
            raise OptionError(
                f"layer={self._found!r} gives no feature map (batch, channels, height, width); name a layer that does"
            )
        return value


class _Order:
    """The order of an epoch: random in the first stage, as without the method; in tuples in the second."""

    def __init__(self, method: LocalTriplet, run: Run) -> None:
        self.method, self.run = method, run

    @property
    def group(self) -> int:
        """Rows that a loader must not part."""
        return self.method.size if self.method.acts(self.run) else 1

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return rows in order."""
        if not self.method.acts(self.run):
            return rows[torch.randperm(len(rows), generator=generator)]
        places, classes = self.method.predicted.entries()
        known = torch.full((int(rows.max()) + 1,), -1)
        inside = places < len(known)
        known[places[inside].cpu()] = classes[inside].flatten().long().cpu()
        return TupleSampler(known, self.method.size)(rows, targets, generator)


def _no_map(model: nn.Module) -> ConflictError:
    return ConflictError(
        f"local triplets need a network with a feature map (batch, channels, height, width), which "
        f"{type(model).__name__} has not; take a convolutional network, or leave local out"
    )
