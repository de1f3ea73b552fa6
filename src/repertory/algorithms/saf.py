r"""Train towards flat minima at no extra cost: hold the network's outputs near those of a few epochs ago.

## Idea
Where the training loss of an example drops suddenly, the weights have fallen into a sharp minimum. SAF
records the logits of each training example as they come out of the ordinary forward pass, and adds a
divergence between those of `lag` epochs ago and those of now, so that outputs change slowly along the
trajectory. No second pass is made. MESA needs no record: it compares with the output of a moving average of
the weights, for one forward pass more.

## Use it when
- you would use SAM but cannot pay its second pass;
- labels are partly wrong, or a large network overfits, and training makes many passes over the data;
- memory for the record is short, or examples have no stable index: use `saf:variant=mesa`.

## Do not use it when
- training makes few passes: with `start=5, lag=3` the first six do not change at all;
- inputs are mixed with one another (mixup, CutMix): a recorded output then belongs to another mixture;
- the data is clean and the network small: expect little.

## Equations
With logits $z_i$ of now and $\tilde z_i$ of `lag` epochs ago, in epochs after `start`,
$$ p_i = \operatorname{softmax}(\tilde z_i / \tau), \quad q_i = \operatorname{softmax}(z_i / \tau), \quad
   L = \frac1B \sum_i \big( \ell_i + \lambda \tau^2\, \mathrm{KL}(p_i \Vert q_i) \big), $$
which adds $\lambda \tau (q_i - p_i) / B$ to the gradient with respect to $z_i$.
MESA: $\tilde z_i = f_v(x_i)$ with $v \leftarrow d\,v + (1-d)\,w$ after every update of the weights $w$.

## Defaults
`weight=0.3` ($\lambda$), `temperature=5` ($\tau$), `start=5` ($E_{start}$) and `lag=3` ($\tilde E$) are those
of the authors' code; on ImageNet they ran with `lag=2`. `stop` ($E_{end}$) lies past the end of their runs.
MESA has `weight=0.8` and `decay=0.9998` ($d$): a memory of 5000 steps, four epochs of ImageNet; shorter runs
need less.

## Cost
That of the base step; SAF keeps `(lag + 1) * classes` numbers an example. MESA adds one forward pass without
gradient and a copy of the weights.

## Claim
Generalises like SAM or better, at the cost of the base optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.frozen import FrozenCopy
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State, batch_size
from repertory.core.tables import ExampleTable
from repertory.errors import OptionError, check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="saf",
    name="SAF",
    title="Sharpness-Aware Training for Free",
    authors="Jiawei Du et al.",
    year=2022,
    venue="NeurIPS 2022",
    link="https://arxiv.org/abs/2205.14083",
    kind="algorithm",
    entry="SAF",
    problems=("flat minima", "generalisation", "cheaper SAM", "label noise", "overfitting"),
    defaults={"weight": 0.3, "temperature": 5.0, "start": 5, "lag": 3, "stop": None},
    needs=("index", "classes"),
    neutral={"weight": 0.0},
    tags=("sharpness", "MESA", "trajectory loss", "self-distillation", "moving average of weights"),
)


def trajectory_loss(logits: Tensor, past_logits: Tensor, temperature: float = 5.0) -> Tensor:
    r"""Return how far each output has moved from an older one.

    It is $\tau^2\, \mathrm{KL}(p \Vert q)$ of the softened past `p` and the softened present `q`. The
    gradient reaches `logits` alone. Adding a constant to all logits of an example changes nothing.

    Args:
        logits: outputs of now `(batch, classes)`.
        past_logits: outputs to stay near `(batch, classes)`.
        temperature: what both are divided by, above 0.

    Returns:
        `(batch,)`, in nats times the square of the temperature.

    >>> trajectory_loss(torch.tensor([[1.0986, 0.0]]), torch.zeros(1, 2), temperature=1.0)
    tensor([0.1438])
    """
    present = (logits / temperature).log_softmax(-1)
    past = (past_logits.detach() / temperature).log_softmax(-1)
    return nn.functional.kl_div(present, past, reduction="none", log_target=True).sum(-1) * temperature**2


class _TrajectoryMethod(Method):
    """The options that SAF and MESA share, and the epochs in which they act."""

    def __init__(self, weight: float, temperature: float, start: int, stop: int | None) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        check_number("temperature", temperature, above=0)
        check_number("start", start, minimum=0, integer=True)
        if stop is not None:
            check_number("stop", stop, above=start, integer=True)
        self.weight = weight
        self.temperature = temperature
        self.start = start
        self.stop = stop

    def acts(self, epoch: int) -> bool:
        """Whether the trajectory loss is part of the loss in this epoch, counted from 0."""
        return self.weight > 0 and epoch > self.start and (self.stop is None or epoch < self.stop)

    def _check_epochs(self, run: Run, first: int, options: str) -> None:
        if self.weight > 0 and run.epochs is not None and run.epochs <= first:
            raise OptionError(
                f"{options} leaves nothing of {run.epochs:g} epochs: {self.slug} first acts in epoch {first + 1}; "
                f"train for more epochs, or give smaller values"
            )

    def _add(self, loss: Tensor, state: State, past_logits: Tensor, known: Tensor | None = None) -> Tensor:
        extra = trajectory_loss(state.output, past_logits, self.temperature)
        if known is not None:
            extra = extra * known
        return torch.add(loss, extra if loss.ndim else extra.mean(), alpha=self.weight)


class SAF(_TrajectoryMethod):
    """Sharpness-aware training for free, around any base optimizer.

    An example that was not seen `lag` epochs ago contributes its ordinary loss only. Outputs are recorded in
    the first pass of a step, so that methods which perturb the weights leave the record alone.

    Args:
        weight: factor on the trajectory loss (the paper's lambda); 0 is the base optimizer.
        temperature: softens both outputs (tau); the loss carries its square, so gradients keep their size.
        start: the loss acts in the epochs after this one, counted from 0 (E_start).
        lag: how many epochs old the recorded outputs are (E tilde).
        stop: the loss acts in epochs before this one (E_end); None for all that follow.

    Raises:
        OptionError: if an option is outside its range, or the planned epochs end before the loss begins.

    >>> from repertory import Step
    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[SAF(start=0, lag=1)], classes=2)
    >>> batch = {"input": torch.randn(4, 2), "target": torch.tensor([0, 1, 0, 1]), "index": torch.arange(4)}
    >>> _ = step(batch)
    >>> step.end_epoch()
    >>> _ = step(batch)

    Notes:
        In the authors' code a row not yet written acts as a uniform target unless `start >= lag`; here such
        rows are left out. Their script's default weight is 0.16; they recommend 0.3 and ran ImageNet with it.

    Reference: Du, Zhou, Feng, Tan, Zhou, https://arxiv.org/abs/2205.14083.
    """

    slug = "saf"
    needs = frozenset({"index", "classes"})

    def __init__(
        self,
        weight: float = 0.3,
        temperature: float = 5.0,
        start: int = 5,
        lag: int = 3,
        stop: int | None = None,
    ) -> None:
        super().__init__(weight, temperature, start, stop)
        check_number("lag", lag, minimum=1, integer=True)
        self.lag = lag
        self.past = nn.ModuleList()

    def setup(self, run: Run) -> None:
        """Make one table of outputs for each epoch that has to be remembered."""
        self._check_epochs(run, max(self.start + 1, self.lag), f"start={self.start}, lag={self.lag}")
        self.past = nn.ModuleList(ExampleTable(run.examples) for _ in range(self.lag + 1))

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Record the outputs, and add their distance from those of `lag` epochs ago."""
        loss = inner(state)
        if self.weight == 0:
            return loss
        epoch, index = state.run.epoch, state.batch["index"]
        if state.evaluation == 0:
            self._table(epoch).write(index, state.output)
        old = self._table(epoch - self.lag)
        if not self.acts(epoch) or old.rows is None:
            return loss
        return self._add(loss, state, old.read(index), old.written(index))

    def _table(self, epoch: int) -> ExampleTable:
        table = self.past[epoch % len(self.past)]
        assert isinstance(table, ExampleTable)
        return table


class MESA(_TrajectoryMethod):
    """SAF without a record: the outputs to stay near are those of a moving average of the weights.

    Args:
        weight: factor on the trajectory loss (lambda); 0 is the base optimizer.
        temperature: softens both outputs (tau).
        start: the loss acts in the epochs after this one, counted from 0 (E_start).
        stop: the loss acts in epochs before this one (E_end); None for all that follow.
        decay: share of the average that each update keeps, in [0, 1).

    Raises:
        OptionError: if an option is outside its range, or the planned epochs end before the loss begins.

    >>> from repertory import Step
    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[MESA(start=0)], classes=2)
    >>> step.explain()
    'step[mesa] > gradient > loss[mesa]'

    Notes:
        Buffers, such as running statistics, are averaged like the weights, as in the authors' code. Until the
        loss acts the average is updated but not evaluated.

    Reference: Du, Zhou, Feng, Tan, Zhou, https://arxiv.org/abs/2205.14083.
    """

    slug = "mesa"
    needs = frozenset({"classes"})

    def __init__(
        self,
        weight: float = 0.8,
        temperature: float = 5.0,
        start: int = 5,
        stop: int | None = None,
        decay: float = 0.9998,
    ) -> None:
        super().__init__(weight, temperature, start, stop)
        check_number("decay", decay, minimum=0, below=1)
        self.decay = decay
        self.average: FrozenCopy | None = None

    def setup(self, run: Run) -> None:
        """Start the average at the network's initial weights."""
        self._check_epochs(run, self.start + 1, f"start={self.start}")
        if self.weight > 0:
            self.average = FrozenCopy(run.model)

    def step(self, state: State, inner: Inner) -> Tensor:
        """Let the average follow each update of the weights."""
        loss = inner(state)
        if self.average is not None:
            self.average.follow(state.run.model, 1 - self.decay)
        return loss

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the distance from the averaged network's outputs on the same inputs."""
        loss = inner(state)
        if self.average is None or not self.acts(state.run.epoch):
            return loss
        state.run.counts.forward += batch_size(state.batch)
        return self._add(loss, state, self.average(state.batch["input"]))


def edit(recipe: Recipe, variant: str = "saf", **options: Any) -> Recipe:
    """Add SAF to the recipe's methods, or MESA with `variant="mesa"`.

    Raises:
        OptionError: if there is no such variant.
    """
    check_choice("variant", variant, ("saf", "mesa"))
    name = {"saf": "SAF", "mesa": "MESA"}[variant]
    return recipe.add("methods", Part(f"repertory.algorithms.saf:{name}", options, "saf"))
