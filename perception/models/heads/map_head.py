"""Map layers as six binary masks: the convolutional head and its loss.

Source: Liu et al. 2022 (BEVFusion); specs, base network section 7, map head.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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

    kind: Literal["conv"] = "conv"
    """Tells the map heads apart."""
    channels: int
    """Channels of its convolutions."""
    num_convs: int = 1
    """3x3 convolutions on the raster; the reference has two."""
    grid: BevGrid
    """The output raster."""


@dataclass(frozen=True, kw_only=True)
class MapHeadOutput:
    """Logits per layer on the raster."""

    logits: Float[Tensor, "b k y x"]
    aux_logits: tuple[Float[Tensor, "b k y x"], ...]
    """What earlier stages of the head would have said; for the loss alone, may be empty."""


@dataclass(frozen=True, kw_only=True)
class MapTargets:
    """What the head should have said."""

    mask: Float[Tensor, "b k y x"]
    """1 where the layer is, else 0."""
    labelled: Float[Tensor, "b k"]
    """1 where the log knows the layer, else 0: left out of the loss, never a negative."""


class MapHead(nn.Module):
    """Resample the BEV map to the raster, then convolve."""

    def __init__(self, config: MapHeadConfig, c_in: int, num_classes: int, bev_grid: BevGrid):
        super().__init__()
        self.resample = RasterSampler(bev_grid, config.grid)
        widths = [c_in] + [config.channels] * config.num_convs
        self.layers = nn.Sequential(
            *(conv_bn_relu(a, b) for a, b in itertools.pairwise(widths)),
            nn.Conv2d(widths[-1], num_classes, 1),
        )

    def forward(self, bev: Float[Tensor, "b c y x"]) -> MapHeadOutput:
        """Predict the layers."""
        return MapHeadOutput(logits=self.layers(self.resample(bev)), aux_logits=())

    def counts(self, targets: MapTargets) -> dict[str, Float[Tensor, " k"]]:
        """What the loss is divided by: the frames that know each layer."""
        return {"map": targets.labelled.sum(dim=0)}

    def loss(
        self, output: MapHeadOutput, targets: MapTargets, counts: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """`mask_loss` of the layers.

        Args:
            output: What the head said.
            targets: What it should have said.
            counts: As `counts`, summed over all that one step of the optimiser sees; may hold
                those of other heads, too.
        """
        return {"map": mask_loss(output.logits, targets, counts["map"])}


class RasterSampler(nn.Module):
    """Reads a BEV map at the centres of another grid's cells, bilinearly; 0 beyond its edge."""

    points: Tensor

    def __init__(self, source: BevGrid, raster: BevGrid):
        super().__init__()
        points = torch.from_numpy(resampling_points(source, raster))[None]
        self.register_buffer("points", points, persistent=False)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y_map x_map"]:
        """Resample."""
        points = self.points.expand(bev.shape[0], -1, -1, -1)
        return F.grid_sample(bev, points, mode="bilinear", align_corners=False)


def mask_loss(
    logits: Float[Tensor, "b k y x"], targets: MapTargets, frames: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """Focal loss, mean over pixels and over `frames` frames per layer, summed over layers."""
    error = sigmoid_focal_loss(logits.float(), targets.mask).mean(dim=(2, 3))
    return ((error * targets.labelled).sum(dim=0) / frames.clamp(min=1.0)).sum()


def resampling_points(source: BevGrid, raster: BevGrid) -> Float[np.ndarray, "y x 2"]:
    """Where each raster cell's centre lies in `source`, in `grid_sample`'s -1..1 over its range."""
    x, y = np.meshgrid(raster.x_centers(), raster.y_centers())
    u = (x - source.x_min) / (source.x_max - source.x_min) * 2 - 1
    v = (y - source.y_min) / (source.y_max - source.y_min) * 2 - 1
    return np.stack([u, v], axis=-1).astype(np.float32)
