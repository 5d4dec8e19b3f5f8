"""The car's sensors: a nominal rig in round numbers, with the layout and timing of nuScenes'.

No value is taken from a real vehicle's calibration.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from perception.geometry import rigid

FULL_WIDTH_PX = 1600
FULL_HEIGHT_PX = 900
LIDAR_RINGS = 32
LIDAR_AZIMUTHS = 1084
"""Rays per ring and revolution. Source: 34,688 rays at 20 Hz, as nuScenes' sensor has."""
LIDAR_ELEVATION_MIN_DEG = -30.67
LIDAR_ELEVATION_MAX_DEG = 10.67
LIDAR_RANGE = 100.0
"""Furthest return [m]."""
LIDAR_BLIND_RANGE = 1.0
"""Nearest return [m]; what the car's own roof would hide."""


@dataclass(frozen=True, kw_only=True)
class CameraMount:
    """Where a camera sits."""

    position_ego: tuple[float, float, float]
    yaw_deg: float
    """Heading against the car's, counter-clockwise."""
    view_deg: float
    """Horizontal angle of view."""
    lead_us: int
    """How much earlier than the LiDAR's stamp it takes its picture [us]."""


CAMERA_MOUNTS = {
    "CAM_FRONT": CameraMount(
        position_ego=(1.70, 0.0, 1.50), yaw_deg=0.0, view_deg=65.0, lead_us=35_200
    ),
    "CAM_FRONT_RIGHT": CameraMount(
        position_ego=(1.55, -0.50, 1.50), yaw_deg=-55.0, view_deg=65.0, lead_us=27_400
    ),
    "CAM_FRONT_LEFT": CameraMount(
        position_ego=(1.55, 0.50, 1.50), yaw_deg=55.0, view_deg=65.0, lead_us=43_100
    ),
    "CAM_BACK": CameraMount(
        position_ego=(0.05, 0.0, 1.55), yaw_deg=180.0, view_deg=89.0, lead_us=10_300
    ),
    "CAM_BACK_LEFT": CameraMount(
        position_ego=(1.05, 0.50, 1.55), yaw_deg=110.0, view_deg=65.0, lead_us=600
    ),
    "CAM_BACK_RIGHT": CameraMount(
        position_ego=(1.05, -0.50, 1.55), yaw_deg=-110.0, view_deg=65.0, lead_us=19_700
    ),
}
"""In the order in which nuScenes lists its cameras; offsets 0 .. 45 ms as there."""

_R_EGO_FORWARD_CAM = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Optical axes (x right, y down, z forward) in ego axes, for a camera that looks ahead."""


def intrinsics(camera: str, width_px: int, height_px: int) -> Float64[np.ndarray, "3 3"]:
    """`K_cam` for an image size; the first pixel's centre is (0.5, 0.5), the axis in the middle."""
    focal_px = width_px / 2 / np.tan(np.deg2rad(CAMERA_MOUNTS[camera].view_deg) / 2)
    return np.array(
        [[focal_px, 0.0, width_px / 2], [0.0, focal_px, height_px / 2], [0.0, 0.0, 1.0]]
    )


def T_ego_cam(camera: str) -> Float64[np.ndarray, "4 4"]:
    """Pose of a camera."""
    mount = CAMERA_MOUNTS[camera]
    T = np.eye(4)
    T[:3, :3] = _about_z(np.deg2rad(mount.yaw_deg)) @ _R_EGO_FORWARD_CAM
    T[:3, 3] = mount.position_ego
    return T


def T_ego_lidar() -> Float64[np.ndarray, "4 4"]:
    """Pose of the LiDAR: its x axis points to the car's right, its y axis ahead, as in nuScenes."""
    T = np.eye(4)
    T[:3, :3] = _about_z(-np.pi / 2)
    T[:3, 3] = (0.94, 0.0, 1.84)
    return T


def lidar_directions() -> Float64[np.ndarray, "rays 3"]:
    """Unit directions of one revolution in the sensor's frame; ray `azimuth * LIDAR_RINGS + ring`.

    Ring 0 is the lowest; the azimuth grows clockwise from above, beginning behind the car.
    """
    elevation = np.deg2rad(
        np.linspace(LIDAR_ELEVATION_MIN_DEG, LIDAR_ELEVATION_MAX_DEG, LIDAR_RINGS)
    )
    azimuth = -np.pi / 2 - 2 * np.pi * np.arange(LIDAR_AZIMUTHS) / LIDAR_AZIMUTHS
    azimuth_of_ray = np.repeat(azimuth, LIDAR_RINGS)
    elevation_of_ray = np.tile(elevation, LIDAR_AZIMUTHS)
    return np.stack(
        [
            np.cos(elevation_of_ray) * np.cos(azimuth_of_ray),
            np.cos(elevation_of_ray) * np.sin(azimuth_of_ray),
            np.sin(elevation_of_ray),
        ],
        axis=-1,
    )


def _about_z(angle: float) -> Float64[np.ndarray, "3 3"]:
    return rigid.transform_from_quaternion(rigid.quaternion_from_yaw(angle), (0.0, 0.0, 0.0))[
        :3, :3
    ]
