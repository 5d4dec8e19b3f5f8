"""Motion over the ground: along a line at a speed that is fit for its bends and stops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

STEP = 0.5
"""Distance between the nodes of a track [m]. Source: ours; a lane's bend is many times longer."""
MAX_LATERAL_ACCELERATION = 2.2
"""[m/s^2]. Source: ours; what passengers find brisk."""
ACCELERATION = 1.6
"""Of vehicles, for braking, too [m/s^2]. Source: ours; an easy driver."""
START_TIME = -1.0
"""When every track begins [s]."""


@dataclass(frozen=True, kw_only=True)
class StaticTrack:
    """Stands where it is."""

    x: float
    y: float
    yaw: float

    def poses(self, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "t 3"]:
        """The same pose at all times: x, y [m] and yaw [rad], global."""
        return np.tile(np.array([self.x, self.y, self.yaw]), (len(times), 1))


@dataclass(frozen=True, kw_only=True)
class LineTrack:
    """Moves along a line; between two knots the acceleration is constant."""

    station_poses: Float64[np.ndarray, "s 3"]
    """x, y, yaw (continuous) at stations 0, STEP, 2 STEP, ..., global."""
    times: Float64[np.ndarray, " k"]
    """Knots, strictly growing from `START_TIME` [s]; it stands still after the last."""
    stations: Float64[np.ndarray, " k"]
    """Distance along the line at the knots [m]."""
    speeds: Float64[np.ndarray, " k"]
    """Speed at the knots [m/s]."""

    def poses(self, times: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, "t 3"]:
        """Poses at times since the start of the scene [s]: x, y [m] and yaw [rad], global."""
        clipped = np.clip(times, self.times[0], self.times[-1])
        knot = np.clip(
            np.searchsorted(self.times, clipped, side="right") - 1, 0, len(self.times) - 2
        )
        since = clipped - self.times[knot]
        acceleration = (self.speeds[knot + 1] - self.speeds[knot]) / (
            self.times[knot + 1] - self.times[knot]
        )
        station = self.stations[knot] + since * (self.speeds[knot] + acceleration * since / 2)
        place = np.clip(station / STEP, 0.0, len(self.station_poses) - 1.001)
        node = place.astype(np.int64)
        share = (place - node)[:, None]
        return self.station_poses[node] * (1 - share) + self.station_poses[node + 1] * share


def resample(line: Float64[np.ndarray, "n 2"], step: float) -> Float64[np.ndarray, "m 2"]:
    """Points of a line at equal distances, without the rest at its end that is shorter."""
    station = _stations(line)
    at = np.arange(0.0, station[-1], step)
    return np.stack([np.interp(at, station, line[:, axis]) for axis in (0, 1)], axis=-1)


def shift_sideways(line: Float64[np.ndarray, "n 2"], to_left: float) -> Float64[np.ndarray, "n 2"]:
    """Parallel of a line; the offset [m] is small against its bends."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return line + to_left * np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)


def station_poses(
    line: Float64[np.ndarray, "n 2"], base: float, *, of_rear: bool = False
) -> Float64[np.ndarray, "s 3"]:
    """Poses of something that touches a line at two points, every `STEP` along it.

    The heading is the chord's: it turns smoothly where the line has corners.

    Args:
        line: Where both points run.
        base: Distance between them [m].
        of_rear: The pose is the rear point's (a car's rear axle) and not the middle's.

    Returns:
        x, y, yaw at distances 0, `STEP`, ... of the pose's point along the line, as far as the
        front point reaches.

    Raises:
        ValueError: The line is not longer than the base.
    """
    station = _stations(line)
    behind, ahead = (0.0, base) if of_rear else (base / 2, base / 2)
    at = np.arange(0.0, station[-1] - ahead, STEP)
    if len(at) < 2 or station[-1] <= base:
        raise ValueError(f"a line of {station[-1]:.1f} m is too short for a base of {base:.1f} m")
    rear, front = (
        np.stack([np.interp(at + offset, station, line[:, axis]) for axis in (0, 1)], axis=-1)
        for offset in (-behind, ahead)
    )
    chord = front - rear
    yaw = np.unwrap(np.arctan2(chord[:, 1], chord[:, 0]))
    origin = rear if of_rear else (rear + front) / 2
    return np.concatenate([origin, yaw[:, None]], axis=-1)


def drive(
    poses: Float64[np.ndarray, "s 3"],
    *,
    start: float,
    cruise: float,
    stops: Sequence[tuple[float, float]] = (),
    acceleration: float = ACCELERATION,
) -> LineTrack:
    """Move along stations: fast where it may be, slower in bends, halting at stops and at the end.

    Args:
        poses: From `station_poses`.
        start: Station at `START_TIME` [m].
        cruise: Speed where nothing asks for less [m/s], > 0.
        stops: Station [m] and waiting time [s] of each halt, ahead of the start.
        acceleration: For braking, too [m/s^2].

    Raises:
        ValueError: Fewer than two stations lie ahead of the start.
    """
    first = int(np.ceil(start / STEP))
    station = np.arange(first, len(poses)) * STEP
    if len(station) < 2:
        raise ValueError(f"start {start:.1f} m leaves no way to go on {len(poses) * STEP:.1f} m")
    curvature = np.abs(np.gradient(poses[first:, 2], STEP))
    limit = np.minimum(cruise**2, MAX_LATERAL_ACCELERATION / np.maximum(curvature, 1e-6))
    limit[-1] = 0.0
    waits: dict[int, float] = {}
    for at, wait in stops:
        node = round(at / STEP) - first
        if 0 <= node < len(station) - 2:
            limit[node] = 0.0
            waits[node] = wait
    reach = 2 * acceleration * station
    squared = np.minimum(
        np.minimum.accumulate(limit - reach) + reach,
        np.minimum.accumulate((limit + reach)[::-1])[::-1] - reach,
    )
    speed = np.sqrt(np.maximum(squared, 0.0))
    # Two neighbouring halts would take forever to get from one to the other.
    duration = 2 * STEP / np.maximum(speed[1:] + speed[:-1], 0.1)
    time = START_TIME + np.concatenate([[0.0], np.cumsum(duration)])
    for node, wait in sorted(waits.items(), reverse=True):
        time[node + 1 :] += wait
        time = np.insert(time, node + 1, time[node] + wait)
        station = np.insert(station, node + 1, station[node])
        speed = np.insert(speed, node + 1, 0.0)
    return LineTrack(station_poses=poses, times=time, stations=station, speeds=speed)


def braking_distance(speed: float) -> float:
    """Way that a vehicle needs to come to a halt [m]."""
    return speed**2 / (2 * ACCELERATION)


def _stations(line: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
