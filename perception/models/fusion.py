"""Camera and LiDAR BEV maps to one map."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perception.models.blocks import conv_bn_relu


class ConvFusion(nn.Module):
    """Concatenate in the order (camera, LiDAR), then one convolution.

    A sensor that is masked enters as zeros: whatever its branch computed from nothing (biases,
    batch-norm offsets) is taken out again, so that the network can tell "nothing there" from "not
    looked". A network without cameras, or without LiDAR, has no channels of it.

    In training the LiDAR's map may be left out at random where there is a camera: the LiDAR is the
    easier teacher, and a network that always has it never learns to look at its cameras.

    Source: specs, base network section 7; leaving out is ours.
    """

    def __init__(self, c_camera: int, c_lidar: int, channels: int, lidar_dropout: float = 0.0):
        super().__init__()
        self.c_camera, self.c_lidar = c_camera, c_lidar
        self.out_channels = channels
        self.lidar_dropout = lidar_dropout
        self.mix = conv_bn_relu(c_camera + c_lidar, channels)

    def forward(
        self,
        bev_camera: Float[Tensor, "b c_camera y x"] | None,
        bev_lidar: Float[Tensor, "b c_lidar y x"] | None,
        camera_mask: Float[Tensor, "b cam"],
        lidar_mask: Float[Tensor, "b 1"],
    ) -> Float[Tensor, "b c y x"]:
        """Fuse what the masks say is there; None for a sensor that the network has not."""
        seen = []
        if bev_camera is not None:
            any_camera = (camera_mask.sum(dim=1, keepdim=True) > 0).to(bev_camera)
            seen.append(bev_camera * any_camera[:, :, None, None])
        if bev_lidar is not None:
            lidar_mask = lidar_mask.to(bev_lidar)
            if self.training and self.lidar_dropout > 0 and bev_camera is not None:
                kept = torch.rand_like(lidar_mask) >= self.lidar_dropout
                lidar_mask = lidar_mask * (kept | (any_camera == 0))
            seen.append(bev_lidar * lidar_mask[:, :, None, None])
        return self.mix(torch.cat(seen, dim=1))
