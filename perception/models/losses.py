"""Losses that more than one head uses."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gaussian_focal_loss(
    logits: Float[Tensor, "b k y x"],
    heatmap: Float[Tensor, "b k y x"],
    weight: Float[Tensor, "b 1 1 1"],
) -> Float[Tensor, ""]:
    """Focal loss on a heatmap whose peaks are 1 and whose slopes are penalised less.

    Args:
        logits: Before the sigmoid.
        heatmap: 1 at each object's cell, falling off around it.
        weight: Per frame; 0 leaves a frame out.

    Returns:
        Sum over cells divided by the number of peaks (at least 1).

    Source: Law & Deng 2018 (CornerNet), equation 1, alpha 2, beta 4.
    """
    probability = torch.sigmoid(logits)
    is_peak = heatmap.eq(1.0)
    positive = F.logsigmoid(logits) * (1 - probability) ** 2 * is_peak
    negative = F.logsigmoid(-logits) * probability**2 * (1 - heatmap) ** 4 * ~is_peak
    num_peaks = (is_peak * weight).sum().clamp(min=1.0)
    return -((positive + negative) * weight).sum() / num_peaks


def sigmoid_focal_loss(
    logits: Float[Tensor, "*b"], target: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """Focal loss per element, gamma 2, no alpha. Source: specs, base network section 7."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross_entropy * (1 - torch.exp(-cross_entropy)) ** 2
