"""Named runs: functions that return a complete `TrainConfig`."""

import dataclasses
import difflib
from collections.abc import Callable

from perception.errors import InputError
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.geometry.pillars import PillarConfig
from perception.model_inputs import InputSpec
from perception.models.bev_encoder import BevEncoderConfig
from perception.models.detector import DetectorConfig
from perception.models.heads.center_head import CenterHeadConfig
from perception.models.heads.map_head import MapHeadConfig
from perception.models.image_encoder import ImageEncoderConfig
from perception.models.point_encoder import PointEncoderConfig
from perception.models.view_transform import ViewTransformConfig
from perception.taxonomy import CAMERAS
from training.config import DataConfig, OptimConfig, TrainConfig


def tiny() -> TrainConfig:
    """Camera + LiDAR, boxes and map, small enough for a CPU: the smallest real network.

    Source: specs, base network section 14; cells of 0.8 m instead of 1.6 m, because neighbours in a
    group of pedestrians or a row of barriers are 1-2 m apart.
    """
    square = {"x_min": -51.2, "x_max": 51.2, "y_min": -51.2, "y_max": 51.2}
    detector = DetectorConfig(
        inputs=InputSpec(
            cameras=CAMERAS,
            image=ImageCrop(height_px=128, width_px=352),
            frustum=Frustum(
                stride=8, depth_min=1.0, depth_max=60.0, depth_step=1.0, z_min=-10.0, z_max=10.0
            ),
            bev=BevGrid(**square, cell=0.8),
            pillars=PillarConfig(
                grid=BevGrid(**square, cell=0.4),
                z_min=-5.0,
                z_max=3.0,
                max_points=10,
                max_pillars=30000,
                num_sweeps=10,
            ),
        ),
        image_encoder=ImageEncoderConfig(
            stem_channels=32,
            stage_channels=(32, 64, 128, 256),
            stage_depths=(2, 2, 2, 2),
            channels=64,
        ),
        view_transform=ViewTransformConfig(channels=32),
        point_encoder=PointEncoderConfig(pillar_channels=32, channels=48),
        bev_encoder=BevEncoderConfig(channels=48, coarse_channels=(96, 96), num_blocks=2),
        box_head=CenterHeadConfig(channels=48, num_boxes=200),
        map_head=MapHeadConfig(
            channels=32, grid=BevGrid(x_min=-50.0, x_max=50.0, y_min=-50.0, y_max=50.0, cell=0.5)
        ),
    )
    return TrainConfig(
        recipe="tiny",
        detector=detector,
        data=DataConfig(split="mini_train", frames="all"),
        optim=OptimConfig(steps=1150, batch_size=2, lr=3e-3, map_weight=10.0, sensor_dropout=0.1),
    )


def tiny_lidar() -> TrainConfig:
    """The tiny network without its camera branch: a third of the work."""
    fusion = tiny()
    detector = dataclasses.replace(
        fusion.detector,
        inputs=dataclasses.replace(fusion.detector.inputs, cameras=()),
        image_encoder=None,
        view_transform=None,
    )
    return dataclasses.replace(
        fusion,
        recipe="tiny_lidar",
        detector=detector,
        optim=dataclasses.replace(fusion.optim, sensor_dropout=0.0),
    )


def tiny_demo() -> TrainConfig:
    """The tiny network for as long as a demo may take: shows the way, not what can be reached."""
    longer = tiny()
    return dataclasses.replace(
        longer,
        recipe="tiny_demo",
        data=DataConfig(split="synthetic_train", frames="all"),
        optim=dataclasses.replace(longer.optim, steps=260),
        cache_samples=True,
    )


def tiny_overfit() -> TrainConfig:
    """The tiny network on the complete keyframes of a log until it knows them by heart.

    The proof that geometry, targets and decoding agree, not a model to use.
    """
    return dataclasses.replace(
        tiny(),
        recipe="tiny_overfit",
        data=DataConfig(split="all", frames="complete"),
        optim=OptimConfig(steps=300, batch_size=2, lr=4e-3, sensor_dropout=0.0),
        cache_samples=True,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe for recipe in (tiny, tiny_lidar, tiny_demo, tiny_overfit)
}


def recipe_by_name(name: str) -> TrainConfig:
    """Look a recipe up.

    Raises:
        InputError: There is none of that name.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(RECIPES)}."
        raise InputError(f"There is no recipe {name!r}: {hint}")
    return RECIPES[name]()
