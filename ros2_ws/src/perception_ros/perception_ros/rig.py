"""The calibration as it stands: what a file, parameters, camera info and TF say together."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from runtime.api import LIDAR, Calibration, CameraCalibration

SAME_INTRINSICS_PX = 1e-6
"""Intrinsics that differ by less are the same ones, rounded [px]. Source: ours."""

SAME_TRANSFORM = 1e-6
"""Transforms whose entries differ by less are the same one, rounded [m]. Source: ours."""

MAX_CHAIN = 32
"""Longest chain of frames that is followed: beyond it there is a loop. Source: ours."""

MAX_FRAMES = 1000
"""Most frames that are kept: names arrive by message. Source: ours; cars have some dozens."""

Transforms = Mapping[str, tuple[str, np.ndarray]]
"""Child frame -> its parent and `T_parent_child` [m]."""


class FrameTree:
    """The newest transform of each frame, as /tf and /tf_static say it."""

    def __init__(self) -> None:
        """Start without frames."""
        self._parents: dict[str, tuple[str, np.ndarray]] = {}

    def update(self, transforms: Transforms) -> list[str]:
        """Take newer transforms; gives the frames there was no room for (`MAX_FRAMES`)."""
        refused = []
        for child, parent in transforms.items():
            if child in self._parents or len(self._parents) < MAX_FRAMES:
                self._parents[child] = parent
            else:
                refused.append(child)
        return refused

    def find(self, base: str, frame: str) -> np.ndarray | None:
        """`T_base_frame`, or None where `frame` does not hang below `base`."""
        T_base_frame = np.eye(4)
        for _ in range(MAX_CHAIN):
            if frame == base:
                return T_base_frame
            if frame not in self._parents:
                return None
            frame, T_parent_child = self._parents[frame]
            T_base_frame = T_parent_child @ T_base_frame
        return None


class Rig:
    """Intrinsics of camera info go before the file's; extrinsics: parameters, then TF, then file.

    A camera of which either half is unknown is not in `calibration()`.
    """

    def __init__(self, file: Calibration | None, fixed: Mapping[str, np.ndarray]) -> None:
        """Start from what does not change.

        Args:
            file: The calibration file's rig, if there is one.
            fixed: Sensor -> `T_ego_sensor` by parameter: nothing overrides it.
        """
        self._fixed = dict(fixed)
        self._intrinsics: dict[str, CameraCalibration] = dict(file.cameras) if file else {}
        """Of these only the intrinsics and the size are read."""
        self._extrinsics: dict[str, np.ndarray] = {}
        if file:
            self._extrinsics = {n: c.T_ego_cam for n, c in file.cameras.items()}
            self._extrinsics[LIDAR] = file.T_ego_lidar
        self._extrinsics |= self._fixed

    def knows_place_of(self, sensor: str) -> bool:
        """Whether the sensor's extrinsics are known."""
        return sensor in self._extrinsics

    def size_px(self, camera: str) -> tuple[int, int] | None:
        """Width and height of a camera's images; None where they are not known."""
        known = self._intrinsics.get(camera)
        return None if known is None else (known.width_px, known.height_px)

    def set_intrinsics(self, camera: str, K_cam: np.ndarray, width_px: int, height_px: int) -> bool:
        """Take a camera's intrinsics [px]; says whether they differ from the known ones."""
        known = self._intrinsics.get(camera)
        if (
            known is not None
            and (known.width_px, known.height_px) == (width_px, height_px)
            and np.allclose(known.K_cam, K_cam, rtol=0, atol=SAME_INTRINSICS_PX)
        ):
            return False
        self._intrinsics[camera] = CameraCalibration(
            K_cam=K_cam, T_ego_cam=np.eye(4), width_px=width_px, height_px=height_px
        )
        return True

    def set_extrinsics(self, sensor: str, T_ego_sensor: np.ndarray) -> bool:
        """Take a sensor's place on the car; says whether it differs from the known one."""
        known = self._extrinsics.get(sensor)
        same = known is not None and np.allclose(known, T_ego_sensor, rtol=0, atol=SAME_TRANSFORM)
        if same or sensor in self._fixed:
            return False
        self._extrinsics[sensor] = T_ego_sensor
        return True

    def calibration(self) -> Calibration:
        """Everything that is known; a LiDAR whose place is not known is put at the origin."""
        cameras = {
            name: dataclasses.replace(half, T_ego_cam=self._extrinsics[name])
            for name, half in self._intrinsics.items()
            if name in self._extrinsics
        }
        return Calibration(cameras=cameras, T_ego_lidar=self._extrinsics.get(LIDAR, np.eye(4)))
