"""Camera images to one feature map per camera: backbone of `transformers`, top-down neck."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig

from perception.models.blocks import conv_bn_relu

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in 0..1. Source: specs, base network section 4."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Size of the backbone and its neck."""

    stem_channels: int
    """Channels after the stem (stride 4)."""
    stage_channels: tuple[int, int, int, int]
    """Channels of the four stages, strides 4, 8, 16, 32."""
    stage_depths: tuple[int, int, int, int]
    """Residual blocks per stage; (2, 2, 2, 2) is ResNet-18's."""
    channels: int
    """Channels of the feature map that leaves the neck, stride 8."""


class ImageEncoder(nn.Module):
    """Normalisation, ResNet, neck; output at stride 8."""

    stride = 8
    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.backbone = ResNetBackbone(
            ResNetConfig(
                embedding_size=config.stem_channels,
                hidden_sizes=list(config.stage_channels),
                depths=list(config.stage_depths),
                layer_type="basic",
                out_features=["stage2", "stage3", "stage4"],  # type: ignore[call-arg]
            )
        )
        c8, c16, c32 = config.stage_channels[1:]
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
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float()
        pixels = pixels * camera_mask.reshape(b * cam, 1, 1, 1)
        x8, x16, x32 = self.backbone((pixels - self.mean) / self.std).feature_maps
        x16 = self.smooth16(self.lateral16(torch.cat([_double(x32), x16], dim=1)))
        x8 = self.smooth8(self.lateral8(torch.cat([_double(x16), x8], dim=1)))
        return x8.unflatten(0, (b, cam))


def _double(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
