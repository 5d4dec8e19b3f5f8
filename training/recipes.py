"""Named runs: functions that return a complete `TrainConfig`."""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from perception.data.augment import BevAugmentConfig, ImageAugmentConfig
from perception.data.faults import FaultConfig
from perception.errors import InputError
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.geometry.pillars import PillarConfig
from perception.input_spec import InputSpec
from perception.models.bev_encoder import ResidualBevEncoderConfig, SecondBevEncoderConfig
from perception.models.detector import DetectorConfig
from perception.models.heads.center_head import CenterHeadConfig
from perception.models.heads.map_head import MapHeadConfig
from perception.models.heads.query_box_head import QueryBoxHeadConfig
from perception.models.heads.query_map_head import QueryMapHeadConfig
from perception.models.image_backbone import ResNetBackboneConfig, swin_tiny
from perception.models.image_encoder import ImageEncoderConfig
from perception.models.point_encoder import PillarEncoderConfig
from perception.models.sparse_encoder import SparseEncoderConfig
from perception.models.view_transform import ViewTransformConfig
from perception.taxonomy import CAMERAS
from training.config import DataConfig, OptimConfig, TrainConfig
from training.gradient_calibration import EqualConfig
from training.task_rules import InterConfig

MAP_GRID = BevGrid(x_min=-50.0, x_max=50.0, y_min=-50.0, y_max=50.0, cell=0.5)
"""Raster of the map layers. Source: specs, base network section 3."""


def tiny_fusion() -> TrainConfig:
    """Camera + LiDAR, boxes and map, small enough for a CPU: the smallest real network.

    Source: specs, base network section 14; cells of 0.8 m instead of 1.6 m, because neighbours in a
    group of pedestrians or a row of barriers are 1-2 m apart. All differences: docs/spec_tests.md.
    """
    detector = DetectorConfig(
        inputs=InputSpec(
            cameras=CAMERAS,
            image=ImageCrop(height_px=128, width_px=352),
            frustum=_frustum(depth_step=1.0),
            bev=_square(51.2, 0.8),
            camera_grid=_square(51.2, 0.8),
            pillars=PillarConfig(
                grid=_square(51.2, 0.4),
                z_min=-5.0,
                z_max=3.0,
                max_points=10,
                max_pillars=30000,
                num_sweeps=10,
            ),
            depth_image=True,
        ),
        image_encoder=ImageEncoderConfig(
            backbone=ResNetBackboneConfig(
                stem_channels=32,
                stage_channels=(32, 64, 128, 256),
                stage_depths=(2, 2, 2, 2),
                block="basic",
            ),
            channels=64,
        ),
        view_transform=ViewTransformConfig(channels=32, hidden_channels=64),
        point_encoder=PillarEncoderConfig(pillar_channels=32, channels=48),
        bev_encoder=ResidualBevEncoderConfig(channels=48, coarse_channels=(96, 96), num_blocks=2),
        box_head=CenterHeadConfig(channels=48, num_boxes=200),
        map_head=MapHeadConfig(channels=32, grid=MAP_GRID),
    )
    return TrainConfig(
        recipe="tiny_fusion",
        detector=detector,
        data=DataConfig(split="mini_train", frames="all", faults=_dropped(0.1)),
        optim=OptimConfig(steps=1150, batch_size=2, lr=3e-3, map_weight=10.0, depth_weight=0.1),
    )


def tiny_camera() -> TrainConfig:
    """The tiny network without its LiDAR branch; LiDAR depths supervise it in training only."""
    return _cameras_only(tiny_fusion(), "tiny_camera")


def tiny_lidar() -> TrainConfig:
    """The tiny network without its camera branch: a third of the work."""
    return _lidar_only(tiny_fusion(), "tiny_lidar")


def tiny_light() -> TrainConfig:
    """The tiny fusion network with the two light query heads. Source: specs, FULLER section 5."""
    fusion = tiny_fusion()
    detector = dataclasses.replace(
        fusion.detector,
        box_head=QueryBoxHeadConfig(channels=64, num_queries=200, ffn_channels=128, num_heads=4),
        map_head=QueryMapHeadConfig(grid=MAP_GRID, channels=64, ffn_channels=128, num_heads=4),
    )
    return dataclasses.replace(fusion, recipe="tiny_light", detector=detector)


def tiny_fuller() -> TrainConfig:
    """The tiny network with light heads, calibrated between its tasks and between its sensors.

    Source: specs, FULLER sections 2, 3 and 5.
    """
    return dataclasses.replace(
        tiny_light(), recipe="tiny_fuller", inter=InterConfig(), intra=EqualConfig()
    )


def tiny_voxels() -> TrainConfig:
    """The tiny LiDAR network with the sparse voxel encoder instead of pillars."""
    lidar = tiny_lidar()
    inputs = dataclasses.replace(
        lidar.detector.inputs,
        pillars=dataclasses.replace(
            lidar.detector.inputs.pillars,
            grid=_square(51.2, 0.1),
            num_slices=40,
            max_pillars=120_000,
        ),
    )
    detector = dataclasses.replace(
        lidar.detector, inputs=inputs, point_encoder=SparseEncoderConfig(channels=(8, 16, 32, 64))
    )
    return dataclasses.replace(lidar, recipe="tiny_voxels", detector=detector)


def micro_fusion() -> TrainConfig:
    """The tiny network at half its resolution: a tenth of the work, for studies of many runs.

    Source: ours.
    """
    tiny = tiny_fusion()
    inputs = dataclasses.replace(
        tiny.detector.inputs,
        image=ImageCrop(height_px=64, width_px=176),
        bev=_square(51.2, 1.6),
        camera_grid=_square(51.2, 1.6),
        pillars=dataclasses.replace(
            tiny.detector.inputs.pillars,
            grid=_square(51.2, 0.8),
            max_pillars=12_000,
            num_sweeps=5,
        ),
    )
    detector = dataclasses.replace(
        tiny.detector,
        inputs=inputs,
        image_encoder=ImageEncoderConfig(
            backbone=ResNetBackboneConfig(
                stem_channels=16,
                stage_channels=(16, 32, 64, 128),
                stage_depths=(1, 1, 1, 1),
                block="basic",
            ),
            channels=48,
        ),
        view_transform=ViewTransformConfig(channels=24, hidden_channels=48),
        point_encoder=PillarEncoderConfig(pillar_channels=24, channels=32),
        bev_encoder=ResidualBevEncoderConfig(channels=32, coarse_channels=(64, 64), num_blocks=1),
        box_head=CenterHeadConfig(channels=32, num_boxes=200),
        map_head=MapHeadConfig(channels=24, grid=dataclasses.replace(MAP_GRID, cell=1.0)),
    )
    return dataclasses.replace(
        tiny,
        recipe="micro_fusion",
        detector=detector,
        optim=dataclasses.replace(tiny.optim, steps=600, map_weight=1.0),
    )


def tiny_demo() -> TrainConfig:
    """The tiny network for as long as a demo may take: shows the way, not what can be reached."""
    longer = tiny_fusion()
    return dataclasses.replace(
        longer,
        recipe="tiny_demo",
        data=dataclasses.replace(longer.data, split="synthetic_train"),
        optim=dataclasses.replace(longer.optim, steps=260),
    )


def tiny_overfit() -> TrainConfig:
    """The tiny network on the complete keyframes of a log until it knows them by heart.

    The proof that geometry, targets and decoding agree, not a model to use.
    """
    return dataclasses.replace(
        tiny_fusion(),
        recipe="tiny_overfit",
        # the shared excerpts of real logs lack some of the older sweeps
        data=DataConfig(split="all", frames="complete", skip_damaged=False),
        optim=OptimConfig(steps=300, batch_size=2, lr=4e-3),
    )


def p075_fusion() -> TrainConfig:
    """Camera + LiDAR at full size, 0.075 m voxels, for GPUs. Start it from p075_lidar's run.

    Weights are random: give --init-from, and --detector.image-encoder.weights for the backbone.

    Source: specs, base network sections 3-9 (starting from nothing costs some 5-10 mAP: section 12,
    trap 6).
    """
    return TrainConfig(
        recipe="p075_fusion",
        detector=_full_detector(extent=54.0, voxel=0.075, max_voxels=160_000),
        data=DataConfig(
            split="train",
            frames="all",
            cbgs=True,
            image_augment=ImageAugmentConfig(),
            bev_augment=BevAugmentConfig(),
            faults=_dropped(0.1),
        ),
        # 6 epochs of 123,600 resampled keyframes
        optim=OptimConfig(
            steps=23_175, batch_size=32, lr=2e-4, schedule="cosine", precision="fp16"
        ),
    )


def p075_lidar() -> TrainConfig:
    """The LiDAR branch of p075_fusion alone."""
    lidar = _lidar_only(p075_fusion(), "p075_lidar")
    # 20 epochs of 123,600 resampled keyframes
    optim = dataclasses.replace(lidar.optim, steps=77_250, **_ONE_CYCLE)
    return dataclasses.replace(lidar, optim=optim)


def p075_camera() -> TrainConfig:
    """The camera branch of p075_fusion alone."""
    return _cameras_only(p075_fusion(), "p075_camera")


def p075_pillars() -> TrainConfig:
    """p075_fusion with dense pillars of 0.3 m instead of voxels: what exports everywhere."""
    fusion = p075_fusion()
    inputs = fusion.detector.inputs
    pillars = dataclasses.replace(
        inputs.pillars, grid=_square(54.0, 0.3), num_slices=1, max_points=20, max_pillars=60_000
    )
    detector = dataclasses.replace(
        fusion.detector,
        inputs=dataclasses.replace(inputs, pillars=pillars),
        point_encoder=PillarEncoderConfig(pillar_channels=64, channels=256),
    )
    return dataclasses.replace(fusion, recipe="p075_pillars", detector=detector)


def p100_fusion() -> TrainConfig:
    """The grid of map segmentation, 0.1 m voxels; boxes with it. Source: specs, sections 3, 9."""
    p075 = p075_fusion()
    detector = _full_detector(extent=51.2, voxel=0.1, max_voxels=120_000)
    backbone = dataclasses.replace(swin_tiny(), drop_path=0.3)
    return dataclasses.replace(
        p075,
        recipe="p100_fusion",
        detector=dataclasses.replace(
            detector, image_encoder=ImageEncoderConfig(backbone=backbone, channels=256)
        ),
        data=dataclasses.replace(p075.data, cbgs=False),
        # 20 epochs of 28,130 keyframes
        optim=dataclasses.replace(p075.optim, steps=17_580, **_ONE_CYCLE),
    )


def p100_lidar() -> TrainConfig:
    """The LiDAR branch of p100_fusion alone."""
    return _lidar_only(p100_fusion(), "p100_lidar")


def p100_camera() -> TrainConfig:
    """The camera branch of p100_fusion alone."""
    return _cameras_only(p100_fusion(), "p100_camera")


_ONE_CYCLE: dict[str, Any] = {"schedule": "one_cycle", "lr": 1e-3, "warmup_share": 0.4}
"""AdamW at 1e-4 with a peak of ten times that at 40 %. Source: specs, base network section 9."""

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        tiny_fusion,
        tiny_camera,
        tiny_lidar,
        tiny_light,
        tiny_fuller,
        tiny_voxels,
        micro_fusion,
        tiny_demo,
        tiny_overfit,
        p075_fusion,
        p075_camera,
        p075_lidar,
        p075_pillars,
        p100_fusion,
        p100_camera,
        p100_lidar,
    )
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


def _full_detector(*, extent: float, voxel: float, max_voxels: int) -> DetectorConfig:
    """The network of specs, base network sections 3-7, on a grid of `extent` [m] to each side."""
    return DetectorConfig(
        inputs=InputSpec(
            cameras=CAMERAS,
            image=ImageCrop(height_px=256, width_px=704),
            frustum=_frustum(depth_step=0.5),
            bev=_square(extent, 8 * voxel),
            camera_grid=_square(extent, 4 * voxel),
            pillars=PillarConfig(
                grid=_square(extent, voxel),
                z_min=-5.0,
                z_max=3.0,
                num_slices=40,
                max_points=10,
                max_pillars=max_voxels,
                num_sweeps=10,
            ),
            depth_image=True,
        ),
        image_encoder=ImageEncoderConfig(backbone=swin_tiny(), channels=256),
        view_transform=ViewTransformConfig(channels=80, hidden_channels=256),
        point_encoder=SparseEncoderConfig(),
        bev_encoder=SecondBevEncoderConfig(),
        box_head=QueryBoxHeadConfig(),
        map_head=MapHeadConfig(channels=512, num_convs=2, grid=MAP_GRID),
    )


def _cameras_only(fusion: TrainConfig, recipe: str) -> TrainConfig:
    inputs = dataclasses.replace(fusion.detector.inputs, use_lidar=False, depth_image=False)
    detector = dataclasses.replace(fusion.detector, inputs=inputs, point_encoder=None)
    faults = dataclasses.replace(fusion.data.faults, drop_lidar=0.0, drop_all_cameras=0.0)
    data = dataclasses.replace(fusion.data, faults=faults)
    return dataclasses.replace(fusion, recipe=recipe, detector=detector, data=data)


def _lidar_only(fusion: TrainConfig, recipe: str) -> TrainConfig:
    inputs = dataclasses.replace(fusion.detector.inputs, cameras=(), depth_image=False)
    detector = dataclasses.replace(
        fusion.detector, inputs=inputs, image_encoder=None, view_transform=None
    )
    return dataclasses.replace(
        fusion,
        recipe=recipe,
        detector=detector,
        data=dataclasses.replace(fusion.data, image_augment=None, faults=FaultConfig()),
        optim=dataclasses.replace(fusion.optim, depth_weight=0.0),
    )


def _square(extent: float, cell: float) -> BevGrid:
    return BevGrid(x_min=-extent, x_max=extent, y_min=-extent, y_max=extent, cell=cell)


def _frustum(depth_step: float) -> Frustum:
    return Frustum(
        stride=8, depth_min=1.0, depth_max=60.0, depth_step=depth_step, z_min=-10.0, z_max=10.0
    )


def _dropped(probability: float) -> FaultConfig:
    """Cameras and LiDAR are lost with a probability, so that the network learns to do without.

    Each camera for itself, and all together as well: that six go at once would never be drawn.
    """
    return FaultConfig(
        drop_camera=probability, drop_lidar=probability, drop_all_cameras=probability
    )
