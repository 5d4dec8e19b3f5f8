"""Map layers as six binary masks: the head and its loss.

Source: Liu et al. 2022 (BEVFusion); specs, base network section 7, map head.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.models.blocks import conv_bn_relu
from perception.models.losses import sigmoid_focal_loss


@dataclass(frozen=True, kw_only=True)
class MapHeadConfig:
    """Size of the head."""

    channels: int
    """Channels of its convolution."""
    grid: BevGrid
    """The output raster."""


@dataclass(frozen=True, kw_only=True)
class MapTargets:
    """What the head should have said."""

    mask: Float[Tensor, "b k y x"]
    """1 where the layer is, else 0."""
    labelled: Float[Tensor, "b k"]
    """1 where the log knows the layer, else 0: left out of the loss, never a negative."""


class MapHead(nn.Module):
    """Resample the BEV map to the raster, then convolve."""

    points: Tensor

    def __init__(self, config: MapHeadConfig, c_in: int, num_classes: int, bev_grid: BevGrid):
        super().__init__()
        points = resampling_points(bev_grid, config.grid)
        self.register_buffer("points", torch.from_numpy(points)[None], persistent=False)
        self.layers = nn.Sequential(
            conv_bn_relu(c_in, config.channels), nn.Conv2d(config.channels, num_classes, 1)
        )

    def forward(self, bev: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k y_map x_map"]:
        """Logits per layer on the raster."""
        points = self.points.expand(bev.shape[0], -1, -1, -1)
        raster = F.grid_sample(bev, points, mode="bilinear", align_corners=False)
        return self.layers(raster)

    def loss(
        self, logits: Float[Tensor, "b k y x"], targets: MapTargets
    ) -> dict[str, Float[Tensor, ""]]:
        """Focal loss, mean over the pixels of the frames that know a layer, summed over layers."""
        error = sigmoid_focal_loss(logits.float(), targets.mask).mean(dim=(2, 3))
        frames = targets.labelled.sum(dim=0).clamp(min=1.0)
        return {"map": ((error * targets.labelled).sum(dim=0) / frames).sum()}


def resampling_points(source: BevGrid, raster: BevGrid) -> Float[np.ndarray, "y x 2"]:
    """Where each raster cell's centre lies in `source`, in `grid_sample`'s -1..1 over its range."""
    x, y = np.meshgrid(raster.x_centers(), raster.y_centers())
    u = (x - source.x_min) / (source.x_max - source.x_min) * 2 - 1
    v = (y - source.y_min) / (source.y_max - source.y_min) * 2 - 1
    return np.stack([u, v], axis=-1).astype(np.float32)
