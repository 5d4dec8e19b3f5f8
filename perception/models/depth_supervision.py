"""Depth bins that the LiDAR knows, and the loss that teaches them to the view transform."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from perception.geometry.frustum import Frustum

UNKNOWN = -1
"""Bin of a pixel whose depth no point tells."""


@dataclass(frozen=True, kw_only=True)
class DepthTargets:
    """What the depth distributions should have said."""

    bin: Int64[Tensor, "b cam h8 w8"]
    """Index of the depth bin, -1 where it is not known."""


def depth_bins(
    depth_img: Float32[np.ndarray, "cam h w"], frustum: Frustum
) -> Int64[np.ndarray, "cam h8 w8"]:
    """Bin of the nearest point in each pixel of the feature map; -1 where there is none in range.

    Args:
        depth_img: Metres along the optical axis, 0 where no point is; see
            `perception.geometry.depth_image`.
        frustum: Bins and stride; a bin covers its near edge (included) to its far edge (excluded).

    Source: Li et al. 2023 (BEVDepth), section 3.2 (nearest point of a patch).
    """
    cam, height, width = depth_img.shape
    stride = frustum.stride
    patches = depth_img.reshape(cam, height // stride, stride, width // stride, stride)
    nearest = np.where(patches > 0, patches, np.float32(np.inf)).min(axis=(2, 4))
    known = (nearest >= frustum.depth_min) & (nearest < frustum.depth_max)
    position = np.where(known, (nearest - frustum.depth_min) / frustum.depth_step, UNKNOWN)
    # floor; rounding may not carry a depth just below the far edge over it
    return np.minimum(np.floor(position), frustum.num_depths - 1).astype(np.int64)


def depth_counts(targets: DepthTargets) -> dict[str, Tensor]:
    """What the loss is divided by: pixels whose depth is known."""
    return {"depth": (targets.bin != UNKNOWN).sum()}


def depth_loss(
    depth_logits: Float[Tensor, "b cam d h8 w8"],
    targets: DepthTargets,
    counts: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Cross-entropy over the bins, summed over the known pixels, divided by their number.

    Args:
        depth_logits: Scores of the bins, from the view transform.
        targets: The bins.
        counts: `depth_counts`, summed over all that make one step.
    """
    total = F.cross_entropy(
        depth_logits.float().flatten(0, 1),
        targets.bin.flatten(0, 1),
        ignore_index=UNKNOWN,
        reduction="sum",
    )
    return {"depth": total / counts["depth"].clamp(min=1)}
