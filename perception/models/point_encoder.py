"""LiDAR pillars to the BEV grid: a network per point, the maximum per pillar, convolutions."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.geometry.pillars import INTENSITY_MAX, PillarConfig
from perception.models.blocks import conv_bn_relu, full_precision

NUM_POINT_FEATURES = 10
"""x, y (of the range), z, intensity, dt, offset to the pillar's centre (2) and mean point (3)."""


@dataclass(frozen=True, kw_only=True)
class PillarEncoderConfig:
    """Width of the LiDAR branch."""

    kind: Literal["pillars"] = "pillars"
    pillar_channels: int
    """Channels of a pillar's feature."""
    channels: int
    """Channels of the LiDAR's BEV map."""


class PillarEncoder(nn.Module):
    """PointPillars. Source: Lang et al. 2019, section 2.1; placement by gather is ours."""

    def __init__(self, config: PillarEncoderConfig, pillars: PillarConfig, bev_grid: BevGrid):
        super().__init__()
        if pillars.num_slices != 1:
            raise ValueError(f"{pillars.num_slices} slices of points, expected 1 for pillars")
        self.out_channels = config.channels
        pillar_grid = pillars.grid
        stride = bev_grid.fine_cells(pillar_grid, allowed=(1, 2))
        self.grid = pillar_grid
        self.point_net = nn.Sequential(
            nn.Linear(NUM_POINT_FEATURES, config.pillar_channels),
            nn.ReLU(inplace=True),
            nn.Linear(config.pillar_channels, config.pillar_channels),
            nn.ReLU(inplace=True),
        )
        self.smooth = nn.Sequential(
            nn.BatchNorm2d(config.pillar_channels),
            conv_bn_relu(config.pillar_channels, config.channels, stride=stride),
            conv_bn_relu(config.channels, config.channels),
        )

    def forward(
        self,
        pillar_points: Float[Tensor, "v m 5"],
        pillar_num_points: Int[Tensor, " v"],
        pillar_cell: Int[Tensor, " v"],
        cell_pillar: Int[Tensor, " bg"],
        lidar_mask: Float[Tensor, "b 1"],
    ) -> Float[Tensor, "b c y x"]:
        """Encode pillars and place them; a masked LiDAR gives zeros before the convolutions."""
        b = lidar_mask.shape[0]
        slots = torch.arange(pillar_points.shape[1], device=pillar_points.device)
        used = (slots[None, :] < pillar_num_points[:, None]).unsqueeze(-1)
        features = self.decorate(pillar_points, pillar_num_points, pillar_cell)
        with full_precision(features):
            # the features end in a ReLU, so zero for an unused slot never wins the maximum
            pillars = (self.point_net(features) * used).amax(dim=1)
        rows = torch.cat([pillars.new_zeros(1, pillars.shape[1]), pillars])
        bev = rows.index_select(0, cell_pillar).reshape(b, self.grid.ny, self.grid.nx, -1)
        bev = bev.permute(0, 3, 1, 2).contiguous() * lidar_mask[:, :, None, None]
        return self.smooth(bev)

    def decorate(
        self,
        pillar_points: Float[Tensor, "v m 5"],
        pillar_num_points: Int[Tensor, " v"],
        pillar_cell: Int[Tensor, " v"],
    ) -> Float[Tensor, "v m 10"]:
        """Describe each point by itself, its pillar and its pillar's other points."""
        grid = self.grid
        xyz, intensity, dt = pillar_points.split([3, 1, 1], dim=-1)
        center_x = (pillar_cell % grid.nx + 0.5) * grid.cell + grid.x_min
        center_y = (pillar_cell // grid.nx % grid.ny + 0.5) * grid.cell + grid.y_min
        center = torch.stack([center_x, center_y], dim=-1).to(xyz.dtype).unsqueeze(1)
        mean = xyz.sum(dim=1, keepdim=True) / pillar_num_points[:, None, None]
        return torch.cat(
            [
                xyz[..., :2] / grid.x_max,
                xyz[..., 2:],
                intensity / INTENSITY_MAX,
                dt,
                (xyz[..., :2] - center) / grid.cell,
                xyz - mean,
            ],
            dim=-1,
        )
