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

    Source: specs, base network section 7.
    """

    def __init__(self, c_camera: int, c_lidar: int, channels: int):
        super().__init__()
        self.out_channels = channels
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
            seen.append(bev_lidar * lidar_mask[:, :, None, None].to(bev_lidar))
        return self.mix(torch.cat(seen, dim=1))
