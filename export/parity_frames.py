"""Inputs for the parity table: a log's frames, noise, and frames with sensors missing."""

import dataclasses
from typing import Any

import numpy as np

from perception.data.nuscenes_log import NuScenesLog
from perception.geometry.pillars import build_pillars
from perception.input_spec import InputSpec
from perception.model_inputs import (
    CameraRig,
    ModelInputs,
    prepare_frame,
    rig_depth_images,
    rig_pool_table,
)


def log_frames(log: NuScenesLog, spec: InputSpec, number: int) -> list[ModelInputs]:
    """Prepare keyframes spread over a log, those with the most sensors first."""
    tokens = log.keyframe_tokens()
    tokens = tokens[:: max(1, len(tokens) // (4 * number))]
    prepared = [prepare_frame(log.keyframe(t, spec.pillars.num_sweeps), spec) for t in tokens]
    prepared.sort(key=lambda frame: len(frame.sensors_missing))
    return [frame.inputs for frame in prepared[:number]]


def noise_frame(spec: InputSpec, seed: int = 0) -> ModelInputs:
    """Random pictures and points on a made-up rig: cameras evenly round the car, 1.5 m high."""
    random = np.random.default_rng(seed)
    num_cameras = len(spec.cameras)
    height, width = spec.image.height_px, spec.image.width_px
    K = np.array([[0.8 * width, 0.0, width / 2], [0.0, 0.8 * width, height / 2], [0.0, 0.0, 1.0]])
    T_ego_cam = [_camera_pose(2 * np.pi * index / num_cameras) for index in range(num_cameras)]
    rig = CameraRig(K_img_aug=(K,) * num_cameras, T_ego_cam=tuple(T_ego_cam))
    table = rig_pool_table(rig, spec, np.eye(4))
    x_y = random.normal(0.0, 15.0, (2, 20_000))
    z_intensity_dt = random.uniform([[-2.0], [0.0], [0.0]], [[2.0], [255.0], [0.5]], (3, 20_000))
    points_ego = np.concatenate([x_y, z_intensity_dt]).astype(np.float32)
    if not spec.use_lidar:
        points_ego = points_ego[:, :0]
    pillars = build_pillars(points_ego, spec.pillars)
    no_depth = np.zeros((num_cameras, 0, 0), np.float32)
    return ModelInputs(
        images=random.integers(0, 256, (num_cameras, height, width, 3), dtype=np.uint8),
        camera_mask=np.ones(num_cameras, np.float32),
        pool_runs=table.runs,
        cell_start=table.cell_start,
        depth_img=rig_depth_images(points_ego, rig, spec) if spec.depth_image else no_depth,
        pillar_points=pillars.points,
        pillar_num_points=pillars.num_points,
        pillar_cell=pillars.cell,
        cell_pillar=pillars.cell_pillar,
        lidar_mask=np.full(1, spec.use_lidar, np.float32),
    )


def with_missing_sensors(frame: ModelInputs) -> list[ModelInputs]:
    """The same frame without its LiDAR, without its cameras, and with neither."""
    empty = np.zeros(0, np.int32)
    no_lidar: dict[str, Any] = {
        "pillar_points": frame.pillar_points[:0],
        "pillar_num_points": empty,
        "pillar_cell": empty,
        "cell_pillar": np.zeros_like(frame.cell_pillar),
        "depth_img": np.zeros_like(frame.depth_img),
        "lidar_mask": np.zeros_like(frame.lidar_mask),
    }
    no_cameras: dict[str, Any] = {
        "camera_mask": np.zeros_like(frame.camera_mask),
        "pool_runs": frame.pool_runs[:0],
        "cell_start": np.zeros_like(frame.cell_start),
    }
    return [
        dataclasses.replace(frame, **no_lidar),
        dataclasses.replace(frame, **no_cameras),
        dataclasses.replace(frame, **no_lidar, **no_cameras),
    ]


def _camera_pose(yaw: float) -> np.ndarray:
    """`T_ego_cam` of a camera at 1.5 m that looks along a heading [rad]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    T_ego_cam = np.eye(4)
    T_ego_cam[:3, :3] = [[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]]
    T_ego_cam[2, 3] = 1.5
    return T_ego_cam
