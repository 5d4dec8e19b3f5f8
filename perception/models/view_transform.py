"""Image features to the BEV grid: a depth distribution per pixel, then the BEV pool."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perception.geometry.grid import BevGrid
from perception.models.blocks import conv_bn_relu
from perception.ops.bev_pool import bev_pool


@dataclass(frozen=True, kw_only=True)
class ViewTransformConfig:
    """Width of what is lifted."""

    channels: int
    """Context channels per pixel and of the camera's BEV map."""


class ViewTransform(nn.Module):
    """Lift, splat. Source: Philion & Fidler 2020; specs, base network section 4 (plain LSS)."""

    def __init__(self, config: ViewTransformConfig, c_in: int, num_depths: int, grid: BevGrid):
        super().__init__()
        self.grid = grid
        self.num_depths = num_depths
        self.depth_and_context = nn.Conv2d(c_in, num_depths + config.channels, kernel_size=1)
        self.smooth = conv_bn_relu(config.channels, config.channels)

    def forward(
        self,
        feat_img: Float[Tensor, "b cam c h w"],
        camera_mask: Float[Tensor, "b cam"],
        point_depth: Int[Tensor, " p"],
        point_feat: Int[Tensor, " p"],
        cell_start: Int[Tensor, " bg_plus_1"],
    ) -> Float[Tensor, "b c_out y x"]:
        """Spread features along their rays and sum them per cell; masked cameras add nothing."""
        b, cam = feat_img.shape[:2]
        x = self.depth_and_context(feat_img.flatten(0, 1))
        depth_logits, context = x.split([self.num_depths, x.shape[1] - self.num_depths], dim=1)
        # geometry, pooling and softmax stay in fp32 under autocast
        depth_prob = torch.softmax(depth_logits.float(), dim=1)
        depth_prob = depth_prob * camera_mask.reshape(b * cam, 1, 1, 1)
        bev = bev_pool(
            depth_prob,
            context.float().permute(0, 2, 3, 1).contiguous(),
            point_depth,
            point_feat,
            cell_start,
        )
        bev = bev.reshape(b, self.grid.ny, self.grid.nx, -1).permute(0, 3, 1, 2)
        return self.smooth(bev.contiguous())
