"""Context on the BEV grid: two scales of residual blocks, brought back to the finer one."""

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
    coarse_channels: int
    """Channels at half resolution."""
    num_blocks: int
    """Residual blocks per scale."""


class BevEncoder(nn.Module):
    """Backbone and neck on the BEV grid."""

    def __init__(self, config: BevEncoderConfig):
        super().__init__()
        c, coarse = config.channels, config.coarse_channels
        self.fine = nn.Sequential(*(ResidualBlock(c) for _ in range(config.num_blocks)))
        self.coarse = nn.Sequential(
            conv_bn_relu(c, coarse, stride=2),
            *(ResidualBlock(coarse) for _ in range(config.num_blocks)),
        )
        self.mix = conv_bn_relu(c + coarse, c, kernel=1)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Return a map of the same size that has seen its surroundings."""
        fine = self.fine(bev)
        coarse = F.interpolate(
            self.coarse(fine), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return self.mix(torch.cat([fine, coarse], dim=1))
