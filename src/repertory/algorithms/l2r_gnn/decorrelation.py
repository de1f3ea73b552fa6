"""Weights under which groups of features are independent, also where they depend on each other in curved ways."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.errors import DataError, OptionError, check_choice

COVARIANCES = ("probability", "paper")
"""How weights enter the covariance: as probabilities, or as factors on the functions as the paper writes it."""
_HALVINGS = 20


def standardised(features: Tensor) -> Tensor:
    """Return features with mean 0 and standard deviation 1 (over n) in each dimension; constant ones are 0.

    Args:
        features: `(rows, dim)`.

    >>> standardised(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    centred = features - features.mean(0)
    deviation = centred.square().mean(0).sqrt()
    # Rounding leaves a tiny deviation in a constant dimension.
    there = deviation > 1e-6 * features.abs().amax(0)
    return torch.where(there, centred / torch.where(there, deviation, 1.0), 0.0)


def random_functions(features: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    r"""Return $u(z) = \sqrt 2 \cos(\omega z + \phi)$ of every feature, `(rows, dim, functions)`.

    Args:
        features: standardised, `(rows, dim)`.
        frequencies: $\omega$, standard normal, `(dim, functions)`.
        phases: $\phi$, from 0 to $2 \pi$, `(dim, functions)`.

    Raises:
        OptionError: if the shapes do not fit.
    """
    if features.ndim != 2 or frequencies.shape != phases.shape or len(frequencies) != features.shape[1]:
        raise OptionError(
            f"features {tuple(features.shape)}, frequencies {tuple(frequencies.shape)} and phases "
            f"{tuple(phases.shape)} do not fit; they must be (rows, dim) and twice (dim, functions)"
        )
    return math.sqrt(2) * (features[:, :, None] * frequencies + phases).cos()


def cross_covariance(functions: Tensor, weights: Tensor, covariance: str = "probability") -> Tensor:
    r"""Return the weighted covariance of all functions of all features, `(dim, functions, dim, functions)`.

    As probabilities $p = w / \sum w$ it is $\sum_n p_n u_n v_n - (\sum_n p_n u_n)(\sum_n p_n v_n)$. The paper has, with
    weights of mean 1, $\frac{1}{N-1} \sum_n (w_n u_n - \overline{w u})(w_n v_n - \overline{w v})$, in which a weight
    counts twice.

    Args:
        functions: `(rows, dim, functions)`.
        weights: `(rows,)`, not negative.
        covariance: "probability" or "paper".

    Raises:
        OptionError: if there is no such form.
        DataError: if there are other than as many weights as rows, or fewer than two rows.
    """
    flat, shares = _checked(functions, weights, covariance)
    found = _covariance(flat, shares, covariance)[0]
    return found.view(*functions.shape[1:], *functions.shape[1:])


def dependence(functions: Tensor, weights: Tensor, apart: Tensor, covariance: str = "probability") -> Tensor:
    r"""Return $D(w) = \sum_{i<j} [\text{apart}_{ij}] \lVert S_{ij} \rVert_F^2$, 0-d; 0 where features are independent.

    Args:
        functions: `(rows, dim, functions)`.
        weights: `(rows,)`, not negative.
        apart: which pairs of features are to be independent `(dim, dim)`, bool, symmetric.
        covariance: "probability" or "paper".

    Raises:
        OptionError: if there is no such form.
        DataError: if there are other than as many weights as rows, or fewer than two rows.
    """
    flat, shares = _checked(functions, weights, covariance)
    return _value(flat, shares, _expanded(apart, functions), covariance)[0]


def effective_size(weights: Tensor) -> Tensor:
    """Return the share of the examples that the weights leave, `(sum w)^2 / (n sum w^2)`, from 1/n to 1.

    >>> effective_size(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    tensor(0.5000)
    """
    return weights.sum().square() / (len(weights) * weights.square().sum())


def learn_weights(
    functions: Tensor,
    apart: Tensor,
    past: Tensor | None = None,
    *,
    strength: float | Tensor,
    steps: int = 20,
    lr: float | Tensor = 1.0,
    momentum: float = 0.9,
    power: float = 2.0,
    covariance: str = "probability",
) -> Tensor:
    r"""Return logits $\theta$ of weights that make features independent, `(rows,)`; the weights are their softmax.

    Gradient descent with momentum from $\theta = 0$ on
    $$ \text{strength} \cdot D(\operatorname{softmax}(\theta, \theta_\text{past}))
       + \sum_b \operatorname{softmax}(\theta)_b^{\,\text{power}}; $$
    the second term keeps weights even. The rate falls to a tenth after half of the steps. Gradients are written out, so
    it needs no graph and can be compiled into the step around it.

    Args:
        functions: of the rows that get weights, then of past ones `(rows + past, dim, functions)`.
        apart: which pairs of features are to be independent `(dim, dim)`, bool, symmetric.
        past: logits of the past rows `(past,)`; None where there are none.
        strength: factor on the dependence; 1 over the paper's lambda.
        steps: of the descent.
        lr: its rate.
        momentum: its momentum.
        power: of the weights in the second term, above 1.
        covariance: "probability" or "paper".

    Raises:
        OptionError: if there is no such form of the covariance.
        DataError: if there are fewer than two rows.
    """
    held = functions.new_zeros(0) if past is None else past
    count = len(functions) - len(held)
    flat, _ = _checked(functions, functions.new_ones(len(functions)), covariance)
    mask = _expanded(apart, functions)
    logits = functions.new_zeros(count)
    velocity = torch.zeros_like(logits)
    for number in range(steps):
        shares = torch.cat([logits, held]).softmax(0)
        slope = _value(flat, shares, mask, covariance)[1]
        pull = strength * (shares * (slope - (shares * slope).sum()))[:count]
        even = logits.softmax(0)
        raised = power * even.pow(power)
        velocity = momentum * velocity + pull + raised - even * raised.sum()
        logits = logits - lr * 0.1 ** (2 * number // steps) * velocity
    return logits


def tempered(logits: Tensor, least: float) -> Tensor:
    """Return logits, drawn towards 0 as far as it takes to leave a share of the examples.

    Args:
        logits: `(rows,)`.
        least: smallest effective size of their softmax, from 0 to 1.

    >>> round(float(effective_size(tempered(torch.tensor([9.0, 0.0, 0.0, 0.0]), 0.5).softmax(0))), 3)
    0.5
    """
    low, high = logits.new_zeros(()), logits.new_ones(())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = effective_size((middle * logits).softmax(0)) >= least
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where(effective_size(logits.softmax(0)) >= least, logits, low * logits)


def _checked(functions: Tensor, weights: Tensor, covariance: str) -> tuple[Tensor, Tensor]:
    check_choice("covariance", covariance, COVARIANCES)
    if functions.ndim != 3 or len(functions) < 2 or weights.shape != functions.shape[:1]:
        raise DataError(
            f"functions {tuple(functions.shape)} and weights {tuple(weights.shape)} do not fit; they must be "
            "(rows, dim, functions) and (rows,), of two rows at least"
        )
    return functions.flatten(1), weights / weights.sum()


def _expanded(apart: Tensor, functions: Tensor) -> Tensor:
    """The mask of pairs of functions, of one of pairs of features."""
    dim, count = functions.shape[1:]
    if apart.shape != (dim, dim):
        raise DataError(f"apart has shape {tuple(apart.shape)}, but there are {dim} features; give ({dim}, {dim})")
    wide = apart[:, None, :, None].expand(dim, count, dim, count)
    return wide.reshape(dim * count, dim * count).to(functions.dtype)


def _covariance(flat: Tensor, shares: Tensor, covariance: str) -> tuple[Tensor, Tensor, Tensor]:
    """The covariance, and what it is made of: weighted rows, and their mean."""
    if covariance == "probability":
        weighted = shares[:, None] * flat
        mean = weighted.sum(0)
        return flat.T @ weighted - mean[:, None] * mean, flat, mean
    rows = len(flat) * shares[:, None] * flat
    mean = rows.mean(0)
    return (rows - mean).T @ (rows - mean) / (len(flat) - 1), rows, mean


def _value(flat: Tensor, shares: Tensor, mask: Tensor, covariance: str) -> tuple[Tensor, Tensor]:
    """The dependence, and its derivative by the shares, each taken as free."""
    found, rows, mean = _covariance(flat, shares, covariance)
    pressed = mask * found
    value = (pressed * found).sum() / 2
    if covariance == "probability":
        return value, ((flat @ pressed) * (flat - 2 * mean)).sum(1)
    outer = 2 * len(flat) / (len(flat) - 1)
    return value, outer * (((rows - mean) @ pressed) * flat).sum(1)
