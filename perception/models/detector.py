"""The whole network on one page.

    6 images --> image encoder --> depth x context --> BEV pool --.
                                        ^                         +-> fusion --> BEV encoder -.
    LiDAR sweeps --.-- depth images ----'                         |   (or one per task)       |
                   '-> pillars or voxels --> point encoder -------'                           |
                                                                       boxes, map <-----------'

BEV tensors are `bev[b, c, y, x]` in the ego frame at the LiDAR stamp. A network for one sensor
alone lacks the other's branch and is otherwise the same.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from perception.input_spec import InputSpec
from perception.models.bev_encoder import BevEncoder, BevEncoderConfig, build_bev_encoder
from perception.models.fusion import ConvFusion
from perception.models.heads.center_head import CenterHead, CenterHeadConfig, CenterHeadOutput
from perception.models.heads.map_head import MapHead, MapHeadConfig, MapHeadOutput
from perception.models.heads.query_box_head import (
    QueryBoxHead,
    QueryBoxHeadConfig,
    QueryBoxOutput,
)
from perception.models.heads.query_map_head import QueryMapHead, QueryMapHeadConfig
from perception.models.image_encoder import ImageEncoder, ImageEncoderConfig
from perception.models.point_encoder import PillarEncoder, PillarEncoderConfig
from perception.models.sparse_encoder import SparseEncoder, SparseEncoderConfig, TableTensors
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
    point_encoder: PillarEncoderConfig | SparseEncoderConfig | None
    """None where `inputs.use_lidar` is False."""
    lidar_dropout: float = 0.0
    """Share of training frames with cameras whose LiDAR map does not reach the fuser; its depth
    images stay. In [0, 1]."""
    bev_encoder: BevEncoderConfig
    separate_bev_encoders: bool = False
    """A BEV encoder of its own for the map: no task shares more than the fused map."""
    box_head: CenterHeadConfig | QueryBoxHeadConfig
    map_head: MapHeadConfig | QueryMapHeadConfig

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        wanted = bool(self.inputs.cameras)
        if {wanted} != {self.image_encoder is not None, self.view_transform is not None}:
            raise ValueError(
                f"inputs.cameras are {self.inputs.cameras}, expected image_encoder and "
                f"view_transform {'to be given' if wanted else 'to be None'}"
            )
        if self.inputs.use_lidar != (self.point_encoder is not None):
            raise ValueError(
                f"inputs.use_lidar is {self.inputs.use_lidar}, expected point_encoder "
                f"{'to be given' if self.inputs.use_lidar else 'to be None'}"
            )
        if not 0.0 <= self.lidar_dropout <= 1.0:
            raise ValueError(f"lidar_dropout is {self.lidar_dropout}, expected 0 to 1")
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
    pool_runs: Int[Tensor, "r 3"]
    cell_start: Int[Tensor, " bg_plus_1"]
    depth_img: Float[Tensor, "b cam h_depth w_depth"]
    pillar_points: Float[Tensor, "v m 5"]
    pillar_num_points: Int[Tensor, " v"]
    pillar_cell: Int[Tensor, " v"]
    """Frame i's cells are shifted by i times the cells of a frame."""
    cell_pillar: Int[Tensor, " bg_lidar"]
    lidar_mask: Float[Tensor, "b 1"]
    sparse_tables: TableTensors | None = None
    """For an exported sparse encoder, in evaluation; without them it finds its neighbours."""


@dataclass(frozen=True, kw_only=True)
class DetectorOutput:
    """Raw output of the heads."""

    boxes: CenterHeadOutput | QueryBoxOutput
    map: MapHeadOutput
    depth_logits: Float[Tensor, "b cam d h w"] | None
    """Before the softmax over d; None without cameras."""


class BevDetector(nn.Module):
    """Cameras and LiDAR to boxes and map layers; made of parts that are built elsewhere."""

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder | None,
        view_transform: ViewTransform | None,
        point_encoder: PillarEncoder | SparseEncoder | None,
        fusion: ConvFusion,
        bev_encoder: BevEncoder,
        map_bev_encoder: BevEncoder | None,
        box_head: CenterHead | QueryBoxHead,
        map_head: MapHead | QueryMapHead,
    ):
        super().__init__()
        self.image_encoder = image_encoder
        self.view_transform = view_transform
        self.point_encoder = point_encoder
        self.fusion = fusion
        self.bev_encoder = bev_encoder
        self.map_bev_encoder = map_bev_encoder
        self.box_head = box_head
        self.map_head = map_head

    def forward(self, x: InputTensors) -> DetectorOutput:
        """Run every part once; a sensor whose mask is 0 has no influence."""
        bev_shared, depth_logits = self.shared_part(x)
        return DetectorOutput(
            boxes=self.boxes_part(bev_shared),
            map=self.map_part(bev_shared),
            depth_logits=depth_logits,
        )

    def shared_part(
        self, x: InputTensors
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b cam d h w"] | None]:
        """The last map that boxes and map layers share, and the depth logits."""
        bev_camera, depth_logits = self.camera_branch(x)
        bev_lidar = self.lidar_branch(x)
        bev_fused = self.fusion(bev_camera, bev_lidar, x.camera_mask, x.lidar_mask)
        if self.map_bev_encoder is not None:
            return bev_fused, depth_logits
        return self.bev_encoder(bev_fused), depth_logits

    def boxes_part(self, bev_shared: Float[Tensor, "b c y x"]) -> CenterHeadOutput | QueryBoxOutput:
        """What only the boxes use."""
        if self.map_bev_encoder is not None:
            bev_shared = self.bev_encoder(bev_shared)
        return self.box_head(bev_shared)

    def map_part(self, bev_shared: Float[Tensor, "b c y x"]) -> MapHeadOutput:
        """What only the map layers use."""
        if self.map_bev_encoder is not None:
            bev_shared = self.map_bev_encoder(bev_shared)
        return self.map_head(bev_shared)

    @property
    def task_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Weights that only one task uses, by task."""
        boxes, layers = list(self.box_head.parameters()), list(self.map_head.parameters())
        if self.map_bev_encoder is not None:
            boxes += self.bev_encoder.parameters()
            layers += self.map_bev_encoder.parameters()
        return {"boxes": boxes, "map": layers}

    @property
    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Weights of the layer that makes the map that the tasks share."""
        if self.map_bev_encoder is not None:
            return list(self.fusion.mix.parameters())
        return self.bev_encoder.last_parameters

    def camera_branch(
        self, x: InputTensors
    ) -> tuple[Float[Tensor, "b c y x"] | None, Float[Tensor, "b cam d h w"] | None]:
        """Images on the BEV grid and their depth logits; nothing without cameras."""
        if self.image_encoder is None or self.view_transform is None:
            return None, None
        feat_img = self.image_encoder(x.images, x.camera_mask)
        lifted = self.view_transform(
            feat_img,
            x.depth_img,
            x.camera_mask,
            x.lidar_mask,
            x.pool_runs,
            x.cell_start,
        )
        return lifted.bev, lifted.depth_logits

    def lidar_branch(self, x: InputTensors) -> Float[Tensor, "b c y x"] | None:
        """Points on the BEV grid; nothing without LiDAR."""
        if self.point_encoder is None:
            return None
        voxels = x.pillar_points, x.pillar_num_points, x.pillar_cell, x.cell_pillar, x.lidar_mask
        if x.sparse_tables is not None:
            return self.point_encoder(*voxels, x.sparse_tables)
        return self.point_encoder(*voxels)


def build_detector(config: DetectorConfig) -> BevDetector:
    """Build a detector with random weights: the one function that knows the numbers."""
    inputs = config.inputs
    image_encoder = view_transform = point_encoder = None
    c_camera = c_lidar = 0
    if config.image_encoder is not None and config.view_transform is not None:
        image_encoder = ImageEncoder(config.image_encoder)
        view_transform = ViewTransform(config.view_transform, image_encoder.out_channels, inputs)
        c_camera = view_transform.out_channels
    if config.point_encoder is not None:
        point_encoder = _build_point_encoder(config.point_encoder, inputs)
        c_lidar = point_encoder.out_channels
    fusion = ConvFusion(c_camera, c_lidar, config.bev_encoder.channels, config.lidar_dropout)
    bev_encoder = build_bev_encoder(config.bev_encoder)
    c_bev = bev_encoder.out_channels
    return BevDetector(
        image_encoder=image_encoder,
        view_transform=view_transform,
        point_encoder=point_encoder,
        fusion=fusion,
        bev_encoder=bev_encoder,
        map_bev_encoder=(
            build_bev_encoder(config.bev_encoder) if config.separate_bev_encoders else None
        ),
        box_head=_build_box_head(config.box_head, c_bev, inputs),
        map_head=_build_map_head(config.map_head, c_bev, inputs),
    )


def _build_point_encoder(
    config: PillarEncoderConfig | SparseEncoderConfig, inputs: InputSpec
) -> PillarEncoder | SparseEncoder:
    if isinstance(config, SparseEncoderConfig):
        return SparseEncoder(config, inputs.pillars, inputs.bev)
    return PillarEncoder(config, inputs.pillars, inputs.bev)


def _build_box_head(
    config: CenterHeadConfig | QueryBoxHeadConfig, c_bev: int, inputs: InputSpec
) -> CenterHead | QueryBoxHead:
    if isinstance(config, QueryBoxHeadConfig):
        return QueryBoxHead(config, c_bev, len(DETECTION_CLASSES), inputs.bev)
    return CenterHead(config, c_bev, len(DETECTION_CLASSES), inputs.bev)


def _build_map_head(
    config: MapHeadConfig | QueryMapHeadConfig, c_bev: int, inputs: InputSpec
) -> MapHead | QueryMapHead:
    if isinstance(config, QueryMapHeadConfig):
        return QueryMapHead(config, c_bev, len(MAP_CLASSES), inputs.bev)
    return MapHead(config, c_bev, len(MAP_CLASSES), inputs.bev)
