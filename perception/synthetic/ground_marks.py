"""What is painted on the road, as areas in the global frame. All measures ours."""

from collections.abc import Iterator

import numpy as np
import shapely
from jaxtyping import Float64
from shapely.geometry import LineString, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

from perception.synthetic.street_map import Crossing, Divider, Lane, ParkingSpot, StreetMap

STOP_LINE_WIDTH = 0.5
STRIPE, STRIPE_PITCH = 0.5, 1.0
"""Width of a zebra's stripes and their spacing [m]."""
DASH, DASH_PITCH = 3.0, 6.5
LINE_WIDTH = 0.16
BAY_LINE_WIDTH = 0.12
ARROW_DISTANCE = 9.0
"""From the stop line back to the arrow's tip [m]."""

_STEM = np.array([[-3.2, -0.1], [-3.2, 0.1], [-1.2, 0.1], [-1.2, -0.1]])
_HEAD = np.array([[-1.2, -0.45], [-1.2, 0.45], [0.0, 0.0]])
_BEND = np.array([[-1.4, 0.1], [-1.2, 0.1], [-1.0, 0.5], [-1.2, 0.5]])
_SIDE_HEAD = np.array([[-1.6, 0.35], [-0.4, 0.35], [-1.0, 1.0]])
_ARROWS = {
    "straight": (_STEM, _HEAD),
    "left": (_STEM, _BEND, _SIDE_HEAD),
    "right": (_STEM, _BEND * [1, -1], _SIDE_HEAD * [1, -1]),
}
"""Parts of an arrow in the lane's frame, the tip at the origin [m]."""


def white_areas(street_map: StreetMap) -> Iterator[BaseGeometry]:
    """Zebras, stop lines, lines between lanes, bays, and arrows."""
    for crossing in street_map.crossings:
        yield _zebra(crossing)
    for stop in street_map.stop_lines:
        for index in stop.lanes:
            lane = street_map.lanes[index]
            yield _stop_line(lane)
            turns = {street_map.lanes[k].turn for k in lane.successors}
            yield from _arrows(lane, turns)
    for divider in street_map.lane_dividers:
        yield _line(divider)
    for spot in street_map.parking_spots:
        yield _bay(spot)


def yellow_areas(street_map: StreetMap) -> Iterator[BaseGeometry]:
    """Lines between the directions."""
    for divider in street_map.road_dividers:
        yield _line(divider)


def _line(divider: Divider) -> BaseGeometry:
    line = LineString(divider.line)
    if divider.is_dashed:
        starts = np.arange(0.5, line.length - DASH, DASH_PITCH)
        line = shapely.union_all([substring(line, s, s + DASH) for s in starts])
    return line.buffer(LINE_WIDTH / 2, cap_style="flat")


def _zebra(crossing: Crossing) -> BaseGeometry:
    start, end = crossing.path
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length
    across = np.array([-along[1], along[0]]) * 20.0
    at = np.arange(0.25, length - STRIPE, STRIPE_PITCH)[:, None, None]
    ends = np.stack([-across, across, across + along * STRIPE, along * STRIPE - across])
    stripes = shapely.polygons(start + at * along + ends)
    # A stripe that a kerb cuts to a sliver is not painted.
    painted = shapely.intersection(stripes, crossing.polygon)
    return shapely.union_all(painted[shapely.area(painted) > 0.5 * shapely.area(painted).max()])


def _stop_line(lane: Lane) -> Polygon:
    left, right = lane.left_edge[-1], lane.right_edge[-1]
    back = _backwards(lane) * STOP_LINE_WIDTH
    return Polygon([left, right, right + back, left + back])


def _arrows(lane: Lane, turns: set[str]) -> Iterator[Polygon]:
    line = LineString(lane.centerline)
    if line.length < 4 * ARROW_DISTANCE:
        return
    tip, tail = (
        shapely.get_coordinates(line.interpolate(-ARROW_DISTANCE - d))[0] for d in (0.0, 3.0)
    )
    u = (tip - tail) / np.linalg.norm(tip - tail)
    axes = np.array([u, [-u[1], u[0]]])
    for turn in sorted(turns):
        for part in _ARROWS[turn]:
            yield Polygon(tip + part @ axes)


def _bay(spot: ParkingSpot) -> BaseGeometry:
    """Both sides and the closed end; at the kerb the front end only."""
    u = np.array([np.cos(spot.yaw), np.sin(spot.yaw)])
    a, b = u * spot.length / 2, np.array([-u[1], u[0]]) * (spot.width / 2 + 0.05)
    center = np.array([spot.x, spot.y])
    if spot.in_car_park:
        lines = shapely.linestrings([center + np.stack([b - a, b + a, a - b, -a - b])])
    else:
        lines = shapely.linestrings([center + np.stack([a + b, a - b])])
    return shapely.union_all(lines).buffer(BAY_LINE_WIDTH / 2, cap_style="flat")


def _backwards(lane: Lane) -> Float64[np.ndarray, " 2"]:
    back = lane.centerline[-2] - lane.centerline[-1]
    return back / np.linalg.norm(back)
