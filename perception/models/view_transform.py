"""Image features to the BEV grid: a depth distribution per pixel, then the BEV pool."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from perception.geometry.frustum import Frustum
from perception.input_spec import InputSpec
from perception.models.blocks import conv_bn_relu, full_precision
from perception.ops.bev_pool import bev_pool

DEPTH_CHANNELS = (8, 32, 64)
"""Widths of the depth image's encoder at strides 1, 4, 8. Source: specs, base network section 4."""

INITIAL_SCORE = 6.0
"""Of a bin that the LiDAR names: it begins with e^6 / (e^6 + 58) = 0.87 of 59 bins. Ours."""


@dataclass(frozen=True, kw_only=True)
class ViewTransformConfig:
    """Widths of what is lifted."""

    channels: int
    """Context channels per pixel and of the camera's BEV map."""
    hidden_channels: int
    """Channels where image features and depth image meet; of no use without a depth image."""
    depth_prior: bool = False
    """Whether a pixel whose depth the LiDAR knows begins with a higher score of this depth's bin,
    instead of having to learn what a number of metres means; of no use without a depth image."""


@dataclass(frozen=True, kw_only=True)
class ViewTransformOutput:
    """What the cameras say."""

    bev: Float[Tensor, "b c y x"]
    """The cameras' BEV map, on the network's BEV grid."""
    depth_logits: Float[Tensor, "b cam d h w"]
    """Scores of the depth bins per pixel of the feature map, in fp32."""


class ViewTransform(nn.Module):
    """Lift, splat; with a depth image: depth-LSS.

    Source: Philion & Fidler 2020; specs, base network section 4.
    """

    def __init__(self, config: ViewTransformConfig, c_in: int, spec: InputSpec):
        super().__init__()
        stride = spec.bev.fine_cells(spec.camera_grid, allowed=(1, 2))
        self.grid = spec.camera_grid
        self.num_depths = spec.frustum.num_depths
        self.out_channels = channels = config.channels
        self.depth_encoder: DepthImageEncoder | None = None
        self.depth_prior: DepthPrior | None = None
        c_out = self.num_depths + channels
        if spec.depth_image:
            hidden = config.hidden_channels
            self.depth_encoder = DepthImageEncoder()
            self.depth_prior = DepthPrior(spec.frustum) if config.depth_prior else None
            self.depth_and_context = nn.Sequential(
                conv_bn_relu(c_in + DEPTH_CHANNELS[-1], hidden),
                conv_bn_relu(hidden, hidden),
                nn.Conv2d(hidden, c_out, kernel_size=1),
            )
        else:
            self.depth_and_context = nn.Sequential(nn.Conv2d(c_in, c_out, kernel_size=1))
        strides = (1,) if stride == 1 else (1, stride, 1)
        self.smooth = nn.Sequential(*(conv_bn_relu(channels, channels, stride=s) for s in strides))

    def forward(
        self,
        feat_img: Float[Tensor, "b cam c h w"],
        depth_img: Float[Tensor, "b cam h_depth w_depth"],
        camera_mask: Float[Tensor, "b cam"],
        lidar_mask: Float[Tensor, "b 1"],
        pool_runs: Int[Tensor, "r 3"],
        cell_start: Int[Tensor, " bg_plus_1"],
    ) -> ViewTransformOutput:
        """Spread features along their rays and sum them per cell; masked cameras add nothing."""
        b, cam = feat_img.shape[:2]
        x = feat_img.flatten(0, 1)
        if self.depth_encoder is not None:
            # of a masked camera or LiDAR not even what is not a number gets through
            known = (camera_mask * lidar_mask > 0)[..., None, None]
            depth_img = torch.where(known, depth_img, torch.zeros_like(depth_img))
            x = torch.cat([x, self.depth_encoder(depth_img.flatten(0, 1).unsqueeze(1))], dim=1)
        x = self.depth_and_context(x)
        depth_logits, context = x.split([self.num_depths, self.out_channels], dim=1)
        # geometry, pooling and softmax stay in fp32 under autocast
        depth_logits = depth_logits.float()
        if self.depth_prior is not None:
            depth_logits = depth_logits + self.depth_prior(depth_img.flatten(0, 1))
        depth_prob = torch.softmax(depth_logits, dim=1)
        depth_prob = depth_prob * camera_mask.reshape(b * cam, 1, 1, 1)
        bev = bev_pool(
            depth_prob,
            context.float().permute(0, 2, 3, 1).contiguous(),
            pool_runs,
            cell_start,
        )
        bev = bev.reshape(b, self.grid.ny, self.grid.nx, -1).permute(0, 3, 1, 2)
        return ViewTransformOutput(
            bev=self.smooth(bev.contiguous()), depth_logits=depth_logits.unflatten(0, (b, cam))
        )


class DepthPrior(nn.Module):
    """Scores that the depth image alone gives to the depth bins. Ours.

    Without it the depths of a network of random weights are spread over all bins for thousands of
    steps, although the LiDAR has measured them: images land nowhere, and the network learns not to
    look at them.
    """

    near_edge: Tensor

    def __init__(self, frustum: Frustum):
        super().__init__()
        self.stride, self.step = frustum.stride, frustum.depth_step
        edges = frustum.depth_min + torch.arange(frustum.num_depths) * frustum.depth_step
        self.register_buffer("near_edge", edges.float().view(1, -1, 1, 1), persistent=False)
        self.score = nn.Parameter(torch.tensor(INITIAL_SCORE))

    def forward(self, depth_img: Float[Tensor, "n h w"]) -> Float[Tensor, "n d h8 w8"]:
        """Score the bin of the nearest point in each pixel of the feature map."""
        depth = depth_img.float().unsqueeze(1)
        far = torch.where(depth > 0, -depth, torch.full_like(depth, -torch.inf))
        nearest = -F.max_pool2d(far, self.stride)
        in_bin = (nearest >= self.near_edge) & (nearest < self.near_edge + self.step)
        return self.score * in_bin


class DepthImageEncoder(nn.Module):
    """Sparse depths [m] to features at stride 8. Source: specs, base network section 4."""

    def __init__(self) -> None:
        super().__init__()
        c1, c4, c8 = DEPTH_CHANNELS
        self.layers = nn.Sequential(
            conv_bn_relu(1, c1, kernel=1),
            conv_bn_relu(c1, c4, kernel=5, stride=4),
            conv_bn_relu(c4, c8, kernel=5, stride=2),
        )

    def forward(self, depth_img: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c h8 w8"]:
        """Encode; metres go in as they are, scaled in fp32 by the batch norm of the first layer."""
        with full_precision(depth_img):
            x = self.layers[0](depth_img)
        return self.layers[1:](x)
