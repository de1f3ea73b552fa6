"""Gradient matching: gradients of real and made examples, how far they are apart, and the loop of both methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from repertory.curation.condensing.augmentation import STRATEGY, Change, draw_augmentation
from repertory.curation.condensing.functional import Logits, frozen_network, sgd_passes
from repertory.curation.condensing.real import RealClasses, RealExamples
from repertory.curation.condensing.synthetic import Condensed, synthetic_start, to_raw
from repertory.errors import ConflictError, DataError, DivergedError, OptionError, check_choice, check_number

DISTANCES = ("rows", "cosine", "squared")
"""How gradients may be compared."""
STARTS = ("noise", "real")
"""What made examples may begin as: normal noise, or random real examples."""

_MOMENTUM = 0.5
"""Of the updates of the made examples, as in the authors' code."""
_TINY = 1e-6
"""Added to the product of two norms, as in the authors' code."""
_CALIBRATION = 16
"""Real examples of each class from which norm layers take their statistics, as in the authors' code."""
_THROUGH_GRADIENT = 4
"""Backward passes that a gradient counts as if it is differentiated: its own, and twice its forward and backward."""
_NETWORK_BATCH = 256
"""Made examples in a step of the network, as in the authors' code."""


def gradient_distance(made: Mapping[str, Tensor], real: Mapping[str, Tensor], distance: str = "rows") -> Tensor:
    r"""Return how far two gradients of a network are apart.

    "rows" sums $1 - \cos$ over the outputs of every layer, the rows of weights flattened to `(out, rest)`; biases and
    other vectors do not count. "cosine" is $1 - \cos$ of the whole, "squared" the squared difference. Cosines are
    $\langle a, b \rangle / (\lVert a \rVert \lVert b \rVert + 10^{-6})$, so rows of zeros are 1 apart.

    Args:
        made: by name, any shapes.
        real: of the same names and shapes.
        distance: one of `DISTANCES`.

    Returns:
        A number, float32 or wider.

    Raises:
        DataError: if names or shapes differ.
        OptionError: if the distance is none of these.

    >>> weights = {"weight": torch.eye(2)}
    >>> round(gradient_distance(weights, {"weight": -torch.eye(2)}).item(), 4)
    4.0

    Reference: Zhao, Mopuri, Bilen, https://arxiv.org/abs/2006.05929, equation 9.
    """
    check_choice("distance", distance, DISTANCES)
    if {name: value.shape for name, value in made.items()} != {name: value.shape for name, value in real.items()}:
        raise DataError("made and real gradients have different names or shapes; take both of the same parameters")
    pairs = [(_wide(made[name]), _wide(real[name])) for name in made]
    if distance == "rows":
        layers = [_apart(a.flatten(1), b.flatten(1)).sum() for a, b in pairs if a.ndim > 1]
        return torch.stack(layers).sum() if layers else torch.zeros(())
    whole = [torch.cat([pair[which].flatten() for pair in pairs]) for which in (0, 1)]
    return _apart(*whole) if distance == "cosine" else (whole[0] - whole[1]).square().sum()


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (a * b).sum(-1) / (torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1) + _TINY)


def class_gradients(
    logits: Logits, parameters: Mapping[str, Tensor], inputs: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy of each class by itself, all classes in one batched pass.

    Args:
        logits: the network.
        parameters: where to take the gradient.
        inputs: `(classes, n, ...)`, those of class `k` in row `k`; may want gradients themselves.
        weights: of the examples in the mean of their class `(classes, n)`; None for equal ones.

    Returns:
        By parameter, `(classes, *shape)`.
    """
    classes, count = inputs.shape[:2]
    weights = inputs.new_full((classes, count), 1 / count) if weights is None else weights

    def loss(at: Mapping[str, Tensor], given: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(logits(at, given), label.expand(count), reduction="none") @ weight

    labels = torch.arange(classes, device=inputs.device)
    found: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0, 0))(dict(parameters), inputs, labels, weights)
    return found


def _in_turn(
    logits: Logits, parameters: Mapping[str, Tensor], inputs: Tensor, weights: Tensor | None
) -> dict[str, Tensor]:
    """Return what `class_gradients` does, one class after the other; not to be differentiated."""
    found = []
    for label, given in enumerate(inputs):
        labels = torch.full((len(given),), label, device=given.device)
        losses = F.cross_entropy(logits(parameters, given), labels, reduction="none")
        loss = losses.mean() if weights is None else losses @ weights[label]
        found.append(torch.autograd.grad(loss, list(parameters.values())))
    return {name: torch.stack(each) for name, each in zip(parameters, zip(*found))}


def summed_gradient(
    logits: Logits,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    weights: Tensor | None = None,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Return the mean over classes of the gradients of their mean cross-entropies, in one plain pass.

    Args:
        logits: the network.
        parameters: leaves that want gradients.
        inputs: `(classes, n, ...)`.
        weights: of the examples in the mean of their class `(classes, n)`; None for equal ones.
        create_graph: whether the result is to be differentiated.

    Returns:
        By parameter, of its shape.
    """
    classes, count = inputs.shape[:2]
    labels = torch.arange(classes, device=inputs.device).repeat_interleave(count)
    losses = F.cross_entropy(logits(parameters, inputs.flatten(0, 1)), labels, reduction="none")
    loss = losses.mean() if weights is None else losses @ weights.flatten() / classes
    found = torch.autograd.grad(loss, list(parameters.values()), create_graph=create_graph)
    return dict(zip(parameters, found))


def matching_loss(
    logits: Logits,
    parameters: Mapping[str, Tensor],
    made: Tensor,
    real: Tensor,
    weights: Tensor | None = None,
    *,
    contrastive: bool = False,
    distance: str = "rows",
) -> Tensor:
    """Return how far the gradients of made examples are from those of real ones.

    Args:
        logits: the network.
        parameters: leaves that want gradients.
        made: `(classes, per_class, ...)`; the loss can be differentiated by them.
        real: `(classes, n, ...)`.
        weights: of the real examples in the mean of their class `(classes, n)`; None for equal ones.
        contrastive: compare the sums over all classes once (DCC), in place of every class by itself (DC).
        distance: see `gradient_distance`.

    Returns:
        A number: for DC the sum over classes.
    """
    if contrastive:
        wanted = {n: g.detach() for n, g in summed_gradient(logits, parameters, real, weights).items()}
        return gradient_distance(summed_gradient(logits, parameters, made, create_graph=True), wanted, distance)
    at = {name: value.detach() for name, value in parameters.items()}
    # Gradients of kernels for several classes at once are grouped convolutions, which are slow on a CPU.
    in_turn = real.device.type == "cpu" and any(value.ndim > 2 for value in at.values())
    wanted = (_in_turn if in_turn else class_gradients)(logits, parameters if in_turn else at, real, weights)
    apart: Callable[..., Tensor] = vmap(functools.partial(gradient_distance, distance=distance))
    return apart(class_gradients(logits, at, made), wanted).sum()


class GradientMatcher:
    """Make examples whose gradients are those of the real ones, along trainings on the made ones themselves.

    Args:
        slug: names the random draws.
        loops: by examples a class, the updates of the made examples for each network, and the passes of the network
            over them between two updates; a size in between takes those of the next smaller one.
        start: what the made examples begin as, one of `STARTS`.
        iterations: networks, each from fresh weights; 0 leaves the made examples as they begin.
        updates: in place of the first number of `loops`.
        passes: in place of the second one.
        lr_inputs: learning rate of the made examples.
        lr_network: learning rate of the network, plain gradient descent.
        batch: real examples of each class in an update.
        distance: one of `DISTANCES`.
        strategy: augmentations of which one is drawn for each class and update, the same for real and made images, and
            one for each batch of the network's training; empty for none.

    Raises:
        OptionError: if an option is out of range.
    """

    def __init__(
        self,
        slug: str,
        *,
        loops: Mapping[int, tuple[int, int]],
        start: str,
        iterations: int,
        updates: int | None,
        passes: int | None,
        lr_inputs: float,
        lr_network: float,
        batch: int,
        distance: str,
        strategy: Sequence[str],
    ) -> None:
        check_choice("start", start, STARTS)
        check_number("iterations", iterations, minimum=0, integer=True)
        for name, value in (("updates", updates), ("passes", passes)):
            if value is not None:
                check_number(name, value, minimum=1, integer=True)
        check_number("lr_inputs", lr_inputs, above=0)
        check_number("lr_network", lr_network, above=0)
        check_number("batch", batch, minimum=1, integer=True)
        check_choice("distance", distance, DISTANCES)
        if isinstance(strategy, str):
            raise OptionError(f"strategy={strategy!r} must be a list of operations, as in [{strategy!r}]")
        for name in strategy:
            check_choice("strategy", name, STRATEGY)
        self.slug = slug
        self.loops = loops
        self.start = start
        self.iterations = iterations
        self.updates = updates
        self.passes = passes
        self.lr_inputs = lr_inputs
        self.lr_network = lr_network
        self.batch = batch
        self.distance = distance
        self.strategy = tuple(strategy)

    def contrastive(self, iteration: int, update: int) -> bool:
        """Return whether an update compares the sums over all classes, in place of every class by itself."""
        return False

    def condense(self, bench: Any) -> Condensed:
        """Return `bench.per_class` made examples of each class of the bench's training part.

        Raises:
            ConflictError: if the targets are not classes.
            DataError: if augmentations are asked for and the inputs are no images.
            DivergedError: if a made example stops being finite.
        """
        if bench.splits.train.targets.is_floating_point():
            raise ConflictError(f"{self.slug} needs classes, but the targets are numbers; leave it out of a regression")
        if not self.iterations and self.start == "real":
            found: Condensed = RealExamples().condense(bench)
            return found
        real, (inputs, targets) = RealClasses.of(bench, self.slug), synthetic_start(bench)
        if self.start == "noise":
            drawn = torch.randn(inputs.shape, generator=bench.generator(f"{self.slug}/noise"))
            inputs = drawn.to(inputs).requires_grad_()
        generator = bench.generator(f"{self.slug}/order")
        optimizer = torch.optim.SGD([inputs], lr=self.lr_inputs, momentum=_MOMENTUM)
        updates, passes = self.loops[max(size for size in self.loops if size <= bench.per_class)]
        updates, passes = self.updates or updates, self.passes or passes
        for iteration in range(self.iterations):
            network = bench.fresh_model(f"{self.slug}-{iteration}").network
            for update in range(updates):
                logits, parameters = frozen_network(network, real.draw(_CALIBRATION)[0].flatten(0, 1))
                drawn, weights = real.draw(self.batch)
                made = inputs.unflatten(0, (bench.outputs, bench.per_class))
                drawn, made = self._changed(drawn, made, generator)
                loss = matching_loss(
                    logits,
                    parameters,
                    made,
                    drawn,
                    weights,
                    contrastive=self.contrastive(iteration, update),
                    distance=self.distance,
                )
                (inputs.grad,) = torch.autograd.grad(loss, inputs)
                optimizer.step()
                examples, read = len(inputs), drawn.shape[0] * drawn.shape[1]
                bench.count(forward=read + examples, backward=read + _THROUGH_GRADIENT * examples)
                if update < updates - 1:
                    self._train(network, logits, parameters, inputs, targets, passes, generator)
                    bench.count(forward=passes * examples, backward=passes * examples)
            if not bool(inputs.isfinite().all()):
                raise DivergedError(
                    f"lr_inputs={self.lr_inputs}: a made example is not finite after {iteration + 1} of "
                    f"{self.iterations} iterations; a smaller one helps most"
                )
            bench.progress((iteration + 1) / self.iterations)
        return to_raw(bench, inputs, targets)

    def _changed(self, real: Tensor, made: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.strategy:
            return real, made
        changes = [draw_augmentation(generator, self.strategy) for _ in range(len(made))]
        return _each(changes, real), _each(changes, made)

    def _train(
        self,
        network: torch.nn.Module,
        logits: Logits,
        parameters: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        passes: int,
        generator: torch.Generator,
    ) -> None:
        def augment(batch: Tensor) -> Tensor:
            return draw_augmentation(generator, self.strategy, len(batch))(batch)

        trained = sgd_passes(
            logits,
            parameters,
            inputs,
            targets,
            passes=passes,
            lr=self.lr_network,
            batch_size=_NETWORK_BATCH,
            generator=generator,
            augment=augment if self.strategy else None,
        )
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name, value in trained.items():
                own[name].copy_(value)


def _each(changes: Sequence[Change], inputs: Tensor) -> Tensor:
    return torch.stack([change(own) for change, own in zip(changes, inputs)])
