"""Context on the BEV grid: two kinds of backbone and neck, both back at the finest scale."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perception.models.blocks import ResidualBlock, conv_bn_relu

SECOND_EPS, SECOND_MOMENTUM = 1e-3, 0.01
"""Batch norm of the SECOND backbone. Source: specs, base network section 7."""

_second_conv = partial(conv_bn_relu, eps=SECOND_EPS, momentum=SECOND_MOMENTUM)


@dataclass(frozen=True, kw_only=True)
class ResidualBevEncoderConfig:
    """Size of the residual encoder."""

    kind: Literal["residual"] = "residual"
    channels: int
    """Channels at full resolution, in and out."""
    coarse_channels: tuple[int, ...]
    """Channels at a half, a quarter, ... of the resolution; the grid divides by the coarsest."""
    num_blocks: int
    """Residual blocks per scale."""


@dataclass(frozen=True, kw_only=True)
class SecondBevEncoderConfig:
    """Size of the SECOND encoder. Source of the defaults: specs, base network section 7."""

    kind: Literal["second"] = "second"
    channels: int = 256
    """Channels that come in."""
    stage_channels: tuple[int, ...] = (128, 256)
    """Channels of the stages, the first at full resolution, each other at half the one before."""
    num_convs: int = 5
    """Convolutions of a stage after its first."""
    neck_channels: int = 256
    """Channels that each stage gives to the result."""


BevEncoderConfig = ResidualBevEncoderConfig | SecondBevEncoderConfig


class ResidualBevEncoder(nn.Module):
    """Residual blocks at several scales.

    Coarse scales are cheap and see far: what lies behind a house follows from the road that leads
    there.
    """

    def __init__(self, config: ResidualBevEncoderConfig):
        super().__init__()
        c = self.out_channels = config.channels
        self.fine = nn.Sequential(*(ResidualBlock(c) for _ in range(config.num_blocks)))
        self.coarse = nn.ModuleList()
        c_above = c
        for c_scale in config.coarse_channels:
            blocks = (ResidualBlock(c_scale) for _ in range(config.num_blocks))
            self.coarse.append(nn.Sequential(conv_bn_relu(c_above, c_scale, stride=2), *blocks))
            c_above = c_scale
        self.mix = conv_bn_relu(c + sum(config.coarse_channels), c, kernel=1)

    @property
    def last_parameters(self) -> list[nn.Parameter]:
        """Weights of the layer that makes the result."""
        return list(self.mix.parameters())

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


class SecondBevEncoder(nn.Module):
    """Plain stages, each brought back to the first one's size. Source: Yan et al. 2018 (SECOND)."""

    def __init__(self, config: SecondBevEncoderConfig):
        super().__init__()
        self.out_channels = config.neck_channels * len(config.stage_channels)
        self.stages = nn.ModuleList()
        self.necks = nn.ModuleList()
        c_above = config.channels
        for k, c in enumerate(config.stage_channels):
            first = _second_conv(c_above, c, stride=1 if k == 0 else 2)
            more = (_second_conv(c, c) for _ in range(config.num_convs))
            self.stages.append(nn.Sequential(first, *more))
            self.necks.append(_upsampling(c, config.neck_channels, 2**k))
            c_above = c

    @property
    def last_parameters(self) -> list[nn.Parameter]:
        """Weights of the layers that make the result."""
        return list(self.necks.parameters())

    def forward(self, bev: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c_out y x"]:
        """Return the stages side by side, at the size that came in."""
        scales = []
        for stage, neck in zip(self.stages, self.necks, strict=True):
            bev = stage(bev)
            scales.append(neck(bev))
        return torch.cat(scales, dim=1)


BevEncoder = ResidualBevEncoder | SecondBevEncoder


def build_bev_encoder(config: BevEncoderConfig) -> BevEncoder:
    """Build the encoder of a configuration."""
    if isinstance(config, SecondBevEncoderConfig):
        return SecondBevEncoder(config)
    return ResidualBevEncoder(config)


def _upsampling(c_in: int, c_out: int, factor: int) -> nn.Sequential:
    if factor == 1:
        return _second_conv(c_in, c_out, kernel=1)
    return nn.Sequential(
        nn.ConvTranspose2d(c_in, c_out, factor, factor, bias=False),
        nn.BatchNorm2d(c_out, eps=SECOND_EPS, momentum=SECOND_MOMENTUM),
        nn.ReLU(inplace=True),
    )
