"""The tiny recipe's network, smaller still: for tests that need a whole detector in a second."""

import dataclasses

from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.models.bev_encoder import ResidualBevEncoderConfig
from perception.models.detector import DetectorConfig
from perception.models.heads.center_head import CenterHeadConfig
from perception.models.heads.map_head import MapHeadConfig
from perception.models.image_backbone import ResNetBackboneConfig
from perception.models.image_encoder import ImageEncoderConfig
from perception.models.point_encoder import PillarEncoderConfig
from perception.models.view_transform import ViewTransformConfig
from training.recipes import tiny_fusion

SQUARE = {"x_min": -51.2, "x_max": 51.2, "y_min": -51.2, "y_max": 51.2}


def small_config() -> DetectorConfig:
    """Images of 32 x 96, cells of 3.2 m, a few channels."""
    inputs = tiny_fusion().detector.inputs
    return DetectorConfig(
        inputs=dataclasses.replace(
            inputs,
            image=ImageCrop(height_px=32, width_px=96),
            frustum=Frustum(
                stride=8, depth_min=1.0, depth_max=61.0, depth_step=4.0, z_min=-10.0, z_max=10.0
            ),
            bev=BevGrid(**SQUARE, cell=3.2),
            camera_grid=BevGrid(**SQUARE, cell=3.2),
            pillars=dataclasses.replace(inputs.pillars, grid=BevGrid(**SQUARE, cell=1.6)),
        ),
        image_encoder=ImageEncoderConfig(
            backbone=ResNetBackboneConfig(
                stem_channels=8,
                stage_channels=(8, 8, 16, 16),
                stage_depths=(1, 1, 1, 1),
                block="basic",
            ),
            channels=16,
        ),
        view_transform=ViewTransformConfig(channels=8, hidden_channels=16, depth_prior=True),
        point_encoder=PillarEncoderConfig(pillar_channels=8, channels=16),
        bev_encoder=ResidualBevEncoderConfig(channels=16, coarse_channels=(16, 16), num_blocks=1),
        box_head=CenterHeadConfig(channels=16, num_boxes=50),
        map_head=MapHeadConfig(
            channels=8, grid=BevGrid(x_min=-50.0, x_max=50.0, y_min=-50.0, y_max=50.0, cell=2.0)
        ),
    )
