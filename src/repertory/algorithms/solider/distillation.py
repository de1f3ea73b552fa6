"""Self-distillation without labels (DINO): a student matches a slow teacher's view of the same image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import DataError, check_number

STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.04
CENTRE_KEPT = 0.9
"""Temperatures, and share of the centre that a step keeps, of the authors' code and of DINO's."""


class DistillationHead(nn.Module):
    """A perceptron of three layers, scaled to length 1, and cosines with learnt directions.

    Args:
        features: size of the input.
        outputs: number of directions.
        width: of the hidden layers.

    Raises:
        OptionError: if a size is no positive whole number.

    >>> DistillationHead(8, outputs=16, width=4)(torch.randn(2, 8)).shape
    torch.Size([2, 16])

    Reference: Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
    https://arxiv.org/abs/2104.14294.
    """

    def __init__(self, features: int, outputs: int, width: int = 256) -> None:
        super().__init__()
        for name, value in (("features", features), ("outputs", outputs), ("width", width)):
            check_number(name, value, minimum=1, integer=True)
        self.layers = nn.Sequential(
            *(nn.Linear(features, width), nn.GELU()),
            *(nn.Linear(width, width), nn.GELU()),
            nn.Linear(width, width),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(torch.randn(outputs, width))

    def forward(self, features: Tensor, still: bool = False) -> Tensor:
        """Return cosines `(..., outputs)`.

        Args:
            features: `(..., features)`.
            still: leave the directions without a gradient.
        """
        directions = nn.functional.normalize(self.directions, dim=1)
        if still:
            # A gradient of zero and not none, which processes that train together would wait for.
            directions = directions.detach() + 0.0 * directions
        return nn.functional.normalize(self.layers(features), dim=-1) @ directions.T


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor | None = None,
    *,
    student_temperature: float = STUDENT_TEMPERATURE,
    teacher_temperature: float = TEACHER_TEMPERATURE,
) -> Tensor:
    r"""Return the cross-entropy of the student's distribution for each view under the teacher's for the others.

    $-\sum_k q_k \log p_k$ with $q = \operatorname{softmax}((t - c) / \tau_t)$ and
    $p = \operatorname{softmax}(s / \tau_s)$, in the mean over pairs of different views. In float32 or wider.

    Args:
        student: outputs for each view, `(views, images, outputs)`.
        teacher: outputs for the first of these views, `(teacher views, images, outputs)`; no gradient reaches them.
        centre: running mean of the teacher's outputs `(outputs,)`, which keeps them from becoming all alike.
        student_temperature: above 0.
        teacher_temperature: above 0.

    Returns:
        `(images,)`.

    Raises:
        DataError: if the shapes do not match, or there is a single view.

    >>> distillation_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))  # log 4
    tensor([1.3863, 1.3863, 1.3863])
    """
    check_number("student_temperature", student_temperature, above=0)
    check_number("teacher_temperature", teacher_temperature, above=0)
    views, known = len(student), len(teacher)
    if student.shape[1:] != teacher.shape[1:] or student.ndim != 3 or views < 2 or not 1 <= known <= views:
        raise DataError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (views, images, outputs) with "
            "at least two views"
        )
    wide = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        logs = (student.to(wide) / student_temperature).log_softmax(-1)
        shifted = teacher.detach().to(wide) if centre is None else teacher.detach().to(wide) - centre.to(wide)
        aims = (shifted / teacher_temperature).softmax(-1)
        # All pairs less those of a view with itself, without forming the pairs.
        every = -(aims.sum(0) * logs.sum(0)).sum(-1)
        same = -(aims * logs[:known]).sum((0, -1))
        return (every - same) / (known * views - known)
