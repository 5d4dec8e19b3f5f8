"""Camera images to one feature map per camera: normalisation, backbone, top-down neck."""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from perception.models.blocks import conv_bn_relu
from perception.models.image_backbone import (
    ImageBackbone,
    ImageBackboneConfig,
    LoadedWeights,
    load_backbone,
)

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in 0..1. Source: specs, base network section 4."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """The backbone and its neck."""

    backbone: ImageBackboneConfig
    """Network that makes the maps at strides 8, 16, 32."""
    channels: int
    """Channels of the feature map that leaves the neck, stride 8."""
    weights: str = ""
    """What `load_pretrained` gets when a training starts from nothing; "" for random weights."""


class ImageEncoder(nn.Module):
    """Normalisation, backbone, neck; output at stride 8.

    Source: specs, base network section 4 (LSS-style pyramid: the coarser map is doubled and
    concatenated with the finer one).
    """

    stride = 8
    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.out_channels = config.channels
        self.backbone = ImageBackbone(config.backbone)
        c8, c16, c32 = self.backbone.channels
        self.lateral16 = conv_bn_relu(c32 + c16, config.channels, kernel=1)
        self.smooth16 = conv_bn_relu(config.channels, config.channels)
        self.lateral8 = conv_bn_relu(config.channels + c8, config.channels, kernel=1)
        self.smooth8 = conv_bn_relu(config.channels, config.channels)
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(
        self, images: UInt8[Tensor, "b cam h w 3"], camera_mask: Float[Tensor, "b cam"]
    ) -> Float[Tensor, "b cam c h8 w8"]:
        """Encode each image; a masked camera's picture is black, whatever its buffer holds."""
        b, cam = images.shape[:2]
        # planes: torch's batch norm on a CPU is off by up to 4e-4 with the channels last
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).contiguous().float()
        pixels = pixels * camera_mask.reshape(b * cam, 1, 1, 1)
        x8, x16, x32 = self.backbone((pixels - self.mean) / self.std)
        x16 = self.smooth16(self.lateral16(_beside(x32, x16)))
        x8 = self.smooth8(self.lateral8(_beside(x16, x8)))
        return x8.unflatten(0, (b, cam))


def load_pretrained(encoder: ImageEncoder, source: str) -> LoadedWeights:
    """Fill the encoder's backbone with weights that lie on this machine, and log what was used.

    Args:
        encoder: Its backbone is changed in place, its neck is left.
        source: See `perception.models.image_backbone.load_backbone`.

    Raises:
        InputError: There are none, they are a pickle, damaged, or of another network.
    """
    loaded = load_backbone(encoder.backbone, source)
    logger.info(
        "image backbone: %d tensors from %s; %d of the file not used, %d as built",
        loaded.num_used,
        loaded.path,
        len(loaded.left_in_file),
        len(loaded.left_as_built),
    )
    return loaded


def _beside(
    coarse: Float[Tensor, "n c2 h2 w2"], fine: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c3 h w"]:
    """The coarser map, doubled, then the finer; what the doubling is too large by is cut off."""
    doubled = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.cat([doubled[..., : fine.shape[2], : fine.shape[3]], fine], dim=1)
