"""Class heatmaps of both box heads: their loss, their peaks, and how clear the peaks are."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from perception.models.heads.box_code import BoxTargets
from perception.models.losses import gaussian_focal_loss

HEATMAP_BIAS = -2.19
"""Start at a probability of 0.1. Source: Lin et al. 2017 (focal loss), section 4.1."""


def num_peaks(targets: BoxTargets) -> Float[Tensor, ""]:
    """Peaks of the labelled frames: what the heatmap loss is divided by."""
    return (targets.heatmap.eq(1.0) * targets.labelled[:, None, None, None]).sum()


def heatmap_loss(
    logits: Float[Tensor, "b k y x"], targets: BoxTargets, count: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Gaussian focal loss of the labelled frames, summed and divided by `count` (at least 1)."""
    loss = gaussian_focal_loss(logits.float(), targets.heatmap)
    return (loss * targets.labelled[:, None, None, None]).sum() / count.clamp(min=1.0)


def local_maxima(score: Float[Tensor, "b k y x"]) -> Bool[Tensor, "b k y x"]:
    """Cells that none of the eight around them exceeds; all cells of a plateau are maxima."""
    return score == F.max_pool2d(score, kernel_size=3, stride=1, padding=1)


def lead_over_neighbours(values: Float[Tensor, "b k y x"]) -> Float[Tensor, "b k y x"]:
    """By how much each cell exceeds the highest of the eight cells around it."""
    ny, nx = values.shape[-2:]
    padded = F.pad(values, (1, 1, 1, 1), value=-torch.inf)
    around = [padded[..., y : y + ny, x : x + nx] for y in range(3) for x in range(3)]
    del around[4]  # the cell itself
    return values - torch.stack(around).amax(dim=0)
