"""Who is where during a scene: new objects are let in only where nobody ever gets."""

import numpy as np
from jaxtyping import Bool, Float64

from perception.synthetic.tracks import START_TIME

TIME_STEP = 0.1
"""Between two looks [s]: crossing cars move less than half their length."""


class Occupancy:
    """Oriented rectangles over the time of a scene."""

    def __init__(self, duration: float) -> None:
        self.times: Float64[np.ndarray, " t"] = np.arange(
            START_TIME, duration - START_TIME + TIME_STEP / 2, TIME_STEP
        )
        """When it looks [s]."""
        self._standing = np.empty((256, 5))
        self._num_standing = 0
        self._moving_poses = np.empty((128, len(self.times), 3))
        self._moving_half = np.empty((128, 2))
        self._num_moving = 0

    def admit(
        self,
        poses: Float64[np.ndarray, "t 3"],
        size: tuple[float, float],
        margin: float,
    ) -> bool:
        """Add an object unless it comes too near to an earlier one, and say whether it was added.

        Args:
            poses: x, y, yaw of its middle at `times`, or one row when it stands.
            size: Length and width [m].
            margin: Least gap to others [m].
        """
        if not self.is_free(poses, size, margin):
            return False
        self.add(poses, size)
        return True

    def add(self, poses: Float64[np.ndarray, "t 3"], size: tuple[float, float]) -> None:
        """Add an object without a look at the others."""
        half = (size[0] / 2, size[1] / 2)
        if len(poses) == 1:
            if self._num_standing == len(self._standing):
                self._standing = np.concatenate([self._standing, np.empty_like(self._standing)])
            self._standing[self._num_standing] = (*poses[0], *half)
            self._num_standing += 1
            return
        if self._num_moving == len(self._moving_poses):
            self._moving_poses = np.concatenate(
                [self._moving_poses, np.empty_like(self._moving_poses)]
            )
            self._moving_half = np.concatenate(
                [self._moving_half, np.empty_like(self._moving_half)]
            )
        self._moving_poses[self._num_moving] = poses
        self._moving_half[self._num_moving] = half
        self._num_moving += 1

    def is_free(
        self, poses: Float64[np.ndarray, "t 3"], size: tuple[float, float], margin: float
    ) -> bool:
        """Whether an object keeps a gap to all others; arguments as in `admit`."""
        half = np.array(size) / 2
        standing = self._standing[: self._num_standing]
        moving, moving_half = (
            self._moving_poses[: self._num_moving],
            self._moving_half[: self._num_moving],
        )
        return not (
            _any_touch(standing[:, None, :3], standing[:, 3:], poses, half, margin)
            or _any_touch(moving, moving_half, poses, half, margin)
        )


def _any_touch(
    poses: Float64[np.ndarray, "a t 3"],
    half: Float64[np.ndarray, "a 2"],
    own_poses: Float64[np.ndarray, "u 3"],
    own_half: Float64[np.ndarray, " 2"],
    margin: float,
) -> bool:
    """Whether a rectangle touches one of many at a time; t and u are equal, or 1."""
    dx = own_poses[None, :, 0] - poses[..., 0]
    dy = own_poses[None, :, 1] - poses[..., 1]
    reach = np.hypot(half[:, 0], half[:, 1]) + np.hypot(own_half[0], own_half[1]) + margin
    other, time = np.nonzero(dx * dx + dy * dy < (reach**2)[:, None])
    if len(other) == 0:
        return False
    yaw = poses[other, np.minimum(time, poses.shape[1] - 1), 2]
    own_yaw = own_poses[np.minimum(time, len(own_poses) - 1), 2]
    offset = np.stack([dx[other, time], dy[other, time]], axis=-1)
    return bool((gap(offset, yaw, half[other], own_yaw, own_half[None]) < margin).any())


def gap(
    offset: Float64[np.ndarray, "n 2"],
    yaw: Float64[np.ndarray, " n"],
    half: Float64[np.ndarray, "n 2"],
    other_yaw: Float64[np.ndarray, " n"],
    other_half: Float64[np.ndarray, "m 2"],
) -> Float64[np.ndarray, " n"]:
    """Widest gap between pairs of rectangles along one of their four axes [m]; < 0: they overlap.

    Args:
        offset: Middle of the second minus middle of the first [m].
        yaw: Of the first [rad].
        half: Half length and width of the first [m].
        other_yaw: Of the second.
        other_half: Of the second; m is n, or 1.

    Source: separating axis theorem.
    """
    turn = other_yaw - yaw
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    widest = np.full(len(offset), -np.inf)
    for heading, own, foreign in ((yaw, half, other_half), (other_yaw, other_half, half)):
        along = np.abs(offset[:, 0] * np.cos(heading) + offset[:, 1] * np.sin(heading))
        across = np.abs(offset[:, 1] * np.cos(heading) - offset[:, 0] * np.sin(heading))
        widest = np.maximum(widest, along - own[:, 0] - foreign[:, 0] * cos - foreign[:, 1] * sin)
        widest = np.maximum(widest, across - own[:, 1] - foreign[:, 0] * sin - foreign[:, 1] * cos)
    return widest


def inside_square(
    points: Float64[np.ndarray, "n 2"], size: float, margin: float
) -> Bool[np.ndarray, " n"]:
    """Which points lie in the square 0..size and keep a margin to its edge [m]."""
    return ((points > margin) & (points < size - margin)).all(axis=-1)
