"""Losses that more than one head uses, element by element: each head weighs and sums them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FOCAL_GAMMA = 2.0
"""Source: Lin et al. 2017 (focal loss); specs, base network section 7."""


def gaussian_focal_loss(
    logits: Float[Tensor, "*b"], heatmap: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """Focal loss on a heatmap whose peaks are 1 and whose slopes are penalised less.

    Args:
        logits: Before the sigmoid.
        heatmap: 1 at each object's cell, falling off around it.

    Source: Law & Deng 2018 (CornerNet), equation 1, alpha 2, beta 4.
    """
    probability = torch.sigmoid(logits)
    positive = F.logsigmoid(logits) * (1 - probability) ** 2
    negative = F.logsigmoid(-logits) * probability**2 * (1 - heatmap) ** 4
    return -torch.where(heatmap == 1.0, positive, negative)


def sigmoid_focal_loss(
    logits: Float[Tensor, "*b"], target: Float[Tensor, "*b"], alpha: float | None = None
) -> Float[Tensor, "*b"]:
    """Focal loss of binary problems, gamma 2.

    Args:
        logits: Before the sigmoid.
        target: 0 or 1.
        alpha: Weight of what is 1, against 1 - alpha of what is 0; None weighs both by 1.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = cross_entropy * (1 - torch.exp(-cross_entropy)) ** FOCAL_GAMMA
    return loss if alpha is None else loss * (alpha * target + (1 - alpha) * (1 - target))
