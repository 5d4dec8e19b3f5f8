"""The drive of the car itself."""

from dataclasses import dataclass

import numpy as np

from perception.synthetic.occupancy import inside_square
from perception.synthetic.routes import Route, draw_route, halts
from perception.synthetic.stage import EGO_MIDDLE, EGO_SIZE
from perception.synthetic.street_map import StreetMap
from perception.synthetic.tracks import LineTrack, braking_distance, drive, station_poses

_WHEELBASE = 2.6
"""[m]. Source: as `stage.EGO_SIZE`, ours."""


@dataclass(frozen=True, kw_only=True)
class EgoDrive:
    """Where the car goes."""

    track: LineTrack
    """Of its rear axle, which is the origin of the `ego` frame."""
    lanes: frozenset[int]
    """Lanes of its route."""
    words: tuple[str, ...]
    """What happens, such as "turn left"."""


def draw_ego_drive(street_map: StreetMap, rng: np.random.Generator, duration: float) -> EgoDrive:
    """Draw a drive that stays away from the edge of the map for the whole scene.

    Raises:
        ValueError: The map has no way that is long enough.
    """
    starts = [index for index, lane in enumerate(street_map.lanes) if not lane.is_connector]
    attempts = 240
    for attempt in range(attempts):
        # Long scenes on a small map: be content with less in the end.
        patience = 1.0 - attempt / attempts
        cruise = float(rng.uniform(5.0, 6.0 + 6.0 * patience))
        begin = float(rng.uniform(2.0, 40.0 * patience + 4.0))
        length = begin + cruise * (duration + 2.0) + braking_distance(cruise) + 4.0
        route = draw_route(street_map, rng, int(rng.choice(starts)), length)
        if route is None:
            continue
        poses = station_poses(route.line, _WHEELBASE, of_rear=True)
        stops = _draw_stops(street_map, route, rng, begin)
        track = drive(poses, start=begin, cruise=cruise, stops=stops)
        driven = track.poses(np.linspace(-1.0, duration + 1.0, 60))
        edge = 10.0 + 45.0 * patience
        if not inside_square(driven[:, :2], street_map.size, edge).all():
            continue
        if _has_turn(driven[:, 2]) or rng.random() < 0.6 or patience < 0.5:
            return EgoDrive(
                track=track,
                lanes=frozenset(route.lanes),
                words=_describe(track, duration),
            )
    raise ValueError(
        f"no lane of {street_map.location} leads on for {duration:.0f} s after {attempts} attempts"
    )


def _draw_stops(
    street_map: StreetMap, route: Route, rng: np.random.Generator, begin: float
) -> list[tuple[float, float]]:
    """Sometimes wait at the start; sometimes at the first stop area."""
    stops = []
    if rng.random() < 0.12:
        stops.append((begin + 0.5, float(rng.uniform(2.0, 5.0))))
    overhang = EGO_MIDDLE + EGO_SIZE[0] / 2
    ahead = halts(street_map, route, begin + 6.0, overhang)
    if ahead and rng.random() < 0.4:
        stops.append((ahead[0], float(rng.uniform(2.0, 6.0))))
    return stops


def _has_turn(yaw: np.ndarray) -> bool:
    return bool(np.ptp(yaw) > 0.8)


def _describe(track: LineTrack, duration: float) -> tuple[str, ...]:
    times = np.linspace(0.0, duration, max(8, int(duration * 4)))
    poses = track.poses(times)
    speed = np.hypot(*np.diff(poses[:, :2], axis=0).T) / np.diff(times)
    words = []
    turned = float(poses[-1, 2] - poses[0, 2])
    if abs(turned) > 0.8:
        words.append("turn left" if turned > 0 else "turn right")
    if speed.max() < 0.2:
        words.append("waiting")
    elif speed.min() < 0.2:
        words.append("stop")
    return tuple(words) or ("straight on",)
