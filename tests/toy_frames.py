"""Frames for the toy bundle, whose answer shows what went in, and an engine that is told."""

import dataclasses

import numpy as np

from perception.geometry import rigid
from perception.messages import (
    Calibration,
    CameraCalibration,
    CameraImage,
    LidarSweep,
    SensorFrame,
)
from perception.model_inputs import ModelInputs
from perception.taxonomy import CAMERAS
from runtime.engines.base import EngineError, ModelOutputs

WIDTH, HEIGHT = 160, 90


def calibration(focal_px: float = 100.0) -> Calibration:
    """Every camera at 1.5 m above the ground, looking ahead."""
    forward = rigid.transform_from_quaternion((0.5, -0.5, 0.5, -0.5), (0, 0, 1.5))
    camera = CameraCalibration(
        K_cam=np.array([[focal_px, 0, WIDTH / 2], [0, focal_px, HEIGHT / 2], [0, 0, 1]]),
        T_ego_cam=forward,
        width_px=WIDTH,
        height_px=HEIGHT,
    )
    return Calibration(cameras=dict.fromkeys(CAMERAS, camera), T_ego_lidar=np.eye(4))


def frame(cameras: tuple[str, ...] = CAMERAS, lidar: bool = True) -> SensorFrame:
    """A grey picture per camera (level 10 * its index), one point 5 m ahead of the LiDAR."""
    images = {
        name: CameraImage(
            camera=name,
            stamp_ns=0,
            rgb=np.full((HEIGHT, WIDTH, 3), 10 * CAMERAS.index(name), np.uint8),
            T_global_ego=None,
        )
        for name in cameras
    }
    points = np.array([[5.0], [0.0], [0.0], [1.0]], np.float32)
    sweep = LidarSweep(stamp_ns=0, points_lidar=points, T_global_ego=None)
    return SensorFrame(
        stamp_ns=0,
        T_global_ego=None,
        images=images,
        sweeps=(sweep,) * lidar,
        calibration=calibration(),
        missing={},
    )


def moving(still: SensorFrame, ahead: float) -> SensorFrame:
    """The frame of a car that drove so far [m] between its images and its stamp."""
    now = np.eye(4)
    now[0, 3] = ahead
    images = {
        name: dataclasses.replace(image, T_global_ego=np.eye(4))
        for name, image in still.images.items()
    }
    return dataclasses.replace(still, images=images, T_global_ego=now)


class FakeEngine:
    """Answers what it is told to."""

    description = "fake"
    precision = "fp32"

    def __init__(self, **changes: np.ndarray) -> None:
        self.calls = 0
        self.num_closed = 0
        self.error: EngineError | None = None
        answer = {
            "boxes_ego": np.tile(np.array([1, 2, 0, 4, 2, 1.5, 0, 0, 0], np.float32), (3, 1)),
            "scores": np.array([0.2, 0.9, 0.5], np.float32),
            "labels": np.array([0, 1, 2]),
            "map_prob": np.full((6, 40, 40), 0.25, np.float32),
        }
        self.outputs = ModelOutputs(**{**answer, **changes})

    def input_buffer(self, name: str) -> None:
        return None

    def run(self, inputs: ModelInputs) -> ModelOutputs:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.outputs

    def close(self) -> None:
        self.num_closed += 1
