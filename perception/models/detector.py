"""The whole network on one page.

    6 images --> image encoder --> depth x context --> BEV pool --.
                                                                  +-> fusion --> BEV encoder -.
    LiDAR sweeps --> pillars --> point encoder -------------------'                           |
                                                                       boxes, map <-----------'

BEV tensors are `bev[b, c, y, x]` in the ego frame at the LiDAR stamp. A network for the LiDAR
alone has no camera branch.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from perception.model_inputs import InputSpec
from perception.models.bev_encoder import BevEncoder, BevEncoderConfig
from perception.models.fusion import ConvFusion
from perception.models.heads.center_head import CenterHead, CenterHeadConfig, CenterHeadOutput
from perception.models.heads.map_head import MapHead, MapHeadConfig
from perception.models.image_encoder import ImageEncoder, ImageEncoderConfig
from perception.models.point_encoder import PillarEncoder, PointEncoderConfig
from perception.models.view_transform import ViewTransform, ViewTransformConfig
from perception.taxonomy import DETECTION_CLASSES, MAP_CLASSES


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Everything that fixes the network."""

    inputs: InputSpec
    """How sensor data becomes tensors."""
    image_encoder: ImageEncoderConfig | None
    """None where `inputs.cameras` is empty."""
    view_transform: ViewTransformConfig | None
    """Likewise."""
    point_encoder: PointEncoderConfig
    bev_encoder: BevEncoderConfig
    box_head: CenterHeadConfig
    map_head: MapHeadConfig

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        wanted = bool(self.inputs.cameras)
        if {wanted} != {self.image_encoder is not None, self.view_transform is not None}:
            raise ValueError(
                f"inputs.cameras are {self.inputs.cameras}, expected image_encoder and "
                f"view_transform {'to be given' if wanted else 'to be None'}"
            )
        if self.inputs.frustum.stride != ImageEncoder.stride:
            raise ValueError(
                f"frustum stride is {self.inputs.frustum.stride}, the image encoder's is "
                f"{ImageEncoder.stride}: set inputs.frustum.stride"
            )


@dataclass(frozen=True, kw_only=True)
class InputTensors:
    """`perception.model_inputs.ModelInputs` of b frames: lists and pillars laid end to end."""

    images: UInt8[Tensor, "b cam h w 3"]
    camera_mask: Float[Tensor, "b cam"]
    point_depth: Int[Tensor, " p"]
    point_feat: Int[Tensor, " p"]
    cell_start: Int[Tensor, " bg_plus_1"]
    pillar_points: Float[Tensor, "v m 5"]
    pillar_num_points: Int[Tensor, " v"]
    pillar_cell: Int[Tensor, " v"]
    cell_pillar: Int[Tensor, " bg_lidar"]
    lidar_mask: Float[Tensor, "b 1"]


@dataclass(frozen=True, kw_only=True)
class DetectorOutput:
    """Raw output of the heads."""

    boxes: CenterHeadOutput
    map_logits: Float[Tensor, "b k y x"]


class BevDetector(nn.Module):
    """Cameras and LiDAR to boxes and map layers; made of parts that are built elsewhere."""

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder | None,
        view_transform: ViewTransform | None,
        point_encoder: PillarEncoder,
        fusion: ConvFusion,
        bev_encoder: BevEncoder,
        box_head: CenterHead,
        map_head: MapHead,
    ):
        super().__init__()
        self.image_encoder = image_encoder
        self.view_transform = view_transform
        self.point_encoder = point_encoder
        self.fusion = fusion
        self.bev_encoder = bev_encoder
        self.box_head = box_head
        self.map_head = map_head

    def forward(self, x: InputTensors) -> DetectorOutput:
        """Run every part once; a sensor whose mask is 0 has no influence."""
        bev_lidar = self.point_encoder(
            x.pillar_points, x.pillar_num_points, x.pillar_cell, x.cell_pillar, x.lidar_mask
        )
        if self.image_encoder is None or self.view_transform is None:
            bev_camera = bev_lidar[:, :0]
        else:
            feat_img = self.image_encoder(x.images, x.camera_mask)
            bev_camera = self.view_transform(
                feat_img, x.camera_mask, x.point_depth, x.point_feat, x.cell_start
            )
        bev = self.fusion(bev_camera, bev_lidar, x.camera_mask, x.lidar_mask)
        bev = self.bev_encoder(bev)
        return DetectorOutput(boxes=self.box_head(bev), map_logits=self.map_head(bev))


def build_detector(config: DetectorConfig) -> BevDetector:
    """Build a detector with random weights: the one function that knows the numbers."""
    bev_grid = config.inputs.bev
    c_bev = config.bev_encoder.channels
    image_encoder = view_transform = None
    c_camera = 0
    if config.image_encoder is not None and config.view_transform is not None:
        image_encoder = ImageEncoder(config.image_encoder)
        c_camera = config.view_transform.channels
        view_transform = ViewTransform(
            config.view_transform,
            config.image_encoder.channels,
            config.inputs.frustum.num_depths,
            bev_grid,
        )
    return BevDetector(
        image_encoder=image_encoder,
        view_transform=view_transform,
        point_encoder=PillarEncoder(config.point_encoder, config.inputs.pillars.grid, bev_grid),
        fusion=ConvFusion(c_camera, config.point_encoder.channels, c_bev),
        bev_encoder=BevEncoder(config.bev_encoder),
        box_head=CenterHead(config.box_head, c_bev, len(DETECTION_CLASSES), bev_grid),
        map_head=MapHead(config.map_head, c_bev, len(MAP_CLASSES), bev_grid),
    )
