"""The calibration as it stands: what a file, parameters, camera info and TF say together."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class TreeNews:
    """What a message on /tf has changed; names of child frames."""

    changed: frozenset[str]
    """Hang elsewhere, or sit elsewhere by more than `SAME_TRANSFORM`."""
    refused: frozenset[str]
    """There was no room for them (`MAX_FRAMES`)."""
    disputed: frozenset[str]
    """Two publishers seem to disagree: the parent is another one, or the frame is back where it was
    before the change before. The newest counts all the same."""


@dataclass(frozen=True, kw_only=True)
class _Link:
    parent: str
    T_parent_child: np.ndarray
    T_before: np.ndarray | None
    """What the transform before this one said."""


class FrameTree:
    """The newest transform of each frame, as /tf and /tf_static say it."""

    def __init__(self) -> None:
        """Start without frames."""
        self._links: dict[str, _Link] = {}

    def update(self, transforms: Transforms) -> TreeNews:
        """Take newer transforms; what differs by no more than rounding leaves the old one."""
        changed, refused, disputed = set(), set(), set()
        for child, (parent, T_parent_child) in transforms.items():
            known = self._links.get(child)
            if known is None and len(self._links) >= MAX_FRAMES:
                refused.add(child)
                continue
            same_parent = known is not None and known.parent == parent
            if known is not None:
                if same_parent and _same(known.T_parent_child, T_parent_child):
                    continue
                back = known.T_before is not None and _same(known.T_before, T_parent_child)
                if back or not same_parent:
                    disputed.add(child)
            changed.add(child)
            self._links[child] = _Link(
                parent=parent,
                T_parent_child=T_parent_child,
                T_before=known.T_parent_child if known else None,
            )
        return TreeNews(
            changed=frozenset(changed), refused=frozenset(refused), disputed=frozenset(disputed)
        )

    def chain(self, base: str, frame: str) -> list[str]:
        """Frames whose links decide where `frame` sits in `base`, from `frame` upwards."""
        chain: list[str] = []
        while frame != base and len(chain) < MAX_CHAIN:
            chain.append(frame)
            if frame not in self._links:
                break
            frame = self._links[frame].parent
        return chain

    def find(self, base: str, frame: str) -> np.ndarray | None:
        """`T_base_frame`, or None where `frame` does not hang below `base`."""
        T_base_frame = np.eye(4)
        for child in self.chain(base, frame):
            if child not in self._links:
                return None
            link = self._links[child]
            T_base_frame = link.T_parent_child @ T_base_frame
            frame = link.parent
        return T_base_frame if frame == base else None


def _same(T: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(T - other).max() <= SAME_TRANSFORM)


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
        self._placed_frame: dict[str, str] = {}
        """Sensor -> the frame that TF has placed: its place is no other frame's."""

    def knows_place_of(self, sensor: str, frame: str | None = None) -> bool:
        """Whether the sensor's extrinsics are known, for messages of this frame if one is given."""
        placed = self._placed_frame.get(sensor)
        return sensor in self._extrinsics and (None in (placed, frame) or placed == frame)

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

    def set_extrinsics(self, sensor: str, T_ego_sensor: np.ndarray, frame: str) -> bool:
        """Take a sensor's place on the car from TF; says whether it differs from the known one.

        Args:
            sensor: Camera or LiDAR.
            T_ego_sensor: Its place [m].
            frame: The frame it is of. What comes with another frame has no place until that one is
                placed, too.
        """
        if sensor in self._fixed:
            return False
        self._placed_frame[sensor] = frame
        known = self._extrinsics.get(sensor)
        if known is not None and _same(known, T_ego_sensor):
            return False
        self._extrinsics[sensor] = T_ego_sensor
        return True

    def calibration(self) -> Calibration:
        """Everything that is known; where the LiDAR's place is not, it says so."""
        cameras = {
            name: dataclasses.replace(half, T_ego_cam=self._extrinsics[name])
            for name, half in self._intrinsics.items()
            if name in self._extrinsics
        }
        return Calibration(
            cameras=cameras,
            T_ego_lidar=self._extrinsics.get(LIDAR, np.eye(4)),
            knows_lidar=LIDAR in self._extrinsics,
        )
