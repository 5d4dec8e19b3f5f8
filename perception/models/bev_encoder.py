"""Context on the BEV grid: residual blocks at several scales, brought back to the finest."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perception.models.blocks import ResidualBlock, conv_bn_relu


@dataclass(frozen=True, kw_only=True)
class BevEncoderConfig:
    """Size of the encoder."""

    channels: int
    """Channels at full resolution, in and out."""
    coarse_channels: tuple[int, ...]
    """Channels at a half, a quarter, ... of the resolution; the grid divides by the coarsest."""
    num_blocks: int
    """Residual blocks per scale."""


class BevEncoder(nn.Module):
    """Backbone and neck on the BEV grid.

    Coarse scales are cheap and see far: what lies behind a house follows from the road that leads
    there.
    """

    def __init__(self, config: BevEncoderConfig):
        super().__init__()
        c = config.channels
        self.fine = nn.Sequential(*(ResidualBlock(c) for _ in range(config.num_blocks)))
        self.coarse = nn.ModuleList()
        c_above = c
        for c_scale in config.coarse_channels:
            blocks = (ResidualBlock(c_scale) for _ in range(config.num_blocks))
            self.coarse.append(nn.Sequential(conv_bn_relu(c_above, c_scale, stride=2), *blocks))
            c_above = c_scale
        self.mix = conv_bn_relu(c + sum(config.coarse_channels), c, kernel=1)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Return a map of the same size that has seen its surroundings."""
        scale = self.fine(bev)
        scales = [scale]
        for k, coarser in enumerate(self.coarse, start=1):
            scale = coarser(scale)
            scales.append(
                F.interpolate(scale, scale_factor=2.0**k, mode="bilinear", align_corners=False)
            )
        return self.mix(torch.cat(scales, dim=1))
