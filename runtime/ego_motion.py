"""Ego poses by time, for nodes that get odometry as its own stream."""

import bisect
from collections import Counter

import numpy as np
from jaxtyping import Float64

from perception.usable_data import has_jumped
from runtime.time_steps import SetBack

LATEST_NS = 100_000_000
"""Poses come in order within this [ns]. Source: ours; one period of the frames."""


class EgoPoseBuffer:
    """Keeps the recent ego poses and gives the pose at any instant between them.

    Positions are interpolated linearly, rotations along the shortest arc (slerp) between the two
    neighbours. Outside the known span nothing is extrapolated: within `tolerance_ns` of an end that
    end's pose is given, further out none. Where stamps show that time was set back (`SetBack`, with
    the usual period of frames), or a pose cannot follow the one before it (`has_jumped`), the
    buffer starts over: what was seen before a jump cannot be placed after it.
    """

    def __init__(
        self,
        max_age_ns: int = 2_000_000_000,
        *,
        tolerance_ns: int = 20_000_000,
        max_gap_ns: int = 300_000_000,
        max_poses: int = 4096,
    ) -> None:
        """Start empty.

        Args:
            max_age_ns: Poses older than this against the newest are forgotten [ns].
            tolerance_ns: How far outside the known span the end's pose still holds [ns]. Source:
                ours, one period of 50 Hz odometry.
            max_gap_ns: Neighbours further apart than this are not interpolated [ns]. Source: ours.
            max_poses: Most poses kept, whatever their age.
        """
        self.counters: Counter[str] = Counter()
        """Poses not taken, by reason, "time jumped back" and "pose jumped"."""
        self._max_age_ns = max_age_ns
        self._tolerance_ns = tolerance_ns
        self._max_gap_ns = max_gap_ns
        self._max_poses = max_poses
        self._clock = SetBack(LATEST_NS)
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, stamp_ns: int, T_global_ego: Float64[np.ndarray, "4 4"]) -> None:
        """Take a pose, in any order; one with a known stamp replaces the earlier one.

        A pose that is not finite is counted and left out.
        """
        if T_global_ego.shape != (4, 4) or not np.isfinite(T_global_ego).all():
            self.counters["pose not finite"] += 1
            return
        if self._clock.take(stamp_ns):
            self.counters["time jumped back"] += 1
            self._stamps, self._poses = [], []
        place = bisect.bisect_left(self._stamps, stamp_ns)
        if place < len(self._stamps) and self._stamps[place] == stamp_ns:
            self._poses[place] = T_global_ego.copy()
            return
        self._stamps.insert(place, stamp_ns)
        self._poses.insert(place, T_global_ego.copy())
        if self._is_jump(place):
            self.counters["pose jumped"] += 1
            del self._stamps[:place], self._poses[:place]
        oldest_ns = self._stamps[-1] - self._max_age_ns
        num_old = max(
            bisect.bisect_left(self._stamps, oldest_ns), len(self._stamps) - self._max_poses
        )
        del self._stamps[:num_old], self._poses[:num_old]

    def _is_jump(self, place: int) -> bool:
        """Whether a pose does not follow the one before it; over a gap nobody knows."""
        if place == 0 or self._stamps[place] - self._stamps[place - 1] > self._max_gap_ns:
            return False
        return has_jumped(self._poses[place - 1], self._poses[place])

    def at(self, stamp_ns: int) -> Float64[np.ndarray, "4 4"] | None:
        """`T_global_ego` at `stamp_ns`, or None where it is not known."""
        if not self._stamps:
            return None
        place = bisect.bisect_left(self._stamps, stamp_ns)
        if place < len(self._stamps) and self._stamps[place] == stamp_ns:
            return self._poses[place].copy()
        if place in (0, len(self._stamps)):
            end = 0 if place == 0 else -1
            near = abs(stamp_ns - self._stamps[end]) <= self._tolerance_ns
            return self._poses[end].copy() if near else None
        before_ns, after_ns = self._stamps[place - 1], self._stamps[place]
        if after_ns - before_ns > self._max_gap_ns:
            return None
        fraction = (stamp_ns - before_ns) / (after_ns - before_ns)
        return interpolate(self._poses[place - 1], self._poses[place], fraction)


def interpolate(
    T_global_ego_0: Float64[np.ndarray, "4 4"],
    T_global_ego_1: Float64[np.ndarray, "4 4"],
    fraction: float,
) -> Float64[np.ndarray, "4 4"] | None:
    """Pose between two poses, 0 at the first and 1 at the second.

    None where the second is turned by half a turn against the first: the way between is not known.

    Source: slerp, Shoemake 1985; written with axis and angle (Rodrigues' formula).
    """
    R_0_1 = T_global_ego_0[:3, :3].T @ T_global_ego_1[:3, :3]
    skew = (R_0_1 - R_0_1.T) / 2
    axis_sin = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    sin, cos = float(np.linalg.norm(axis_sin)), float(np.trace(R_0_1) - 1) / 2
    angle = np.arctan2(sin, cos)
    if sin < 1e-6 and cos < 0:
        return None
    T = T_global_ego_0 + fraction * (T_global_ego_1 - T_global_ego_0)
    turn = np.eye(3)
    if sin > 0:
        K = skew / sin
        turn = turn + np.sin(fraction * angle) * K + (1 - np.cos(fraction * angle)) * (K @ K)
    T[:3, :3] = T_global_ego_0[:3, :3] @ turn
    return T
