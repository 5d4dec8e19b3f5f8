"""Outlines of junctions and the paths through them, in the plan's frame.

 |     |
 |     |   arm
-'     `-  rounded corner, all turns run round its middle
    o
---------  a side without an arm is straight
"""

import numpy as np
from jaxtyping import Float64
from shapely.geometry import Polygon

from perception.synthetic.street_plan import DIRECTIONS, Arm, Junction

TURN_STEP = 1.0
"""Spacing of the points of a turn [m]. Source: ours."""


def outline(junction: Junction) -> Polygon:
    """The junction's area from stop line to stop line, with rounded corners."""
    points = []
    for index, arm in enumerate(junction.arms):
        following = junction.arms[(index + 1) % len(junction.arms)]
        street = arm.street
        for k in range(-street.num_lanes, street.num_lanes + 1):
            points.append(_on_arm(junction, arm, arm.reach, k * street.lane_width)[None])
        points.append(_corner(junction, arm, following))
    return Polygon(np.concatenate(points))


def lane_ends(
    junction: Junction, arm: Arm, lane: int, side: int, *, leaving: bool
) -> Float64[np.ndarray, " 2"]:
    """Middle of a lane at the stop line; lane 0 is the innermost.

    Args:
        junction: The junction.
        arm: One of its arms.
        lane: Number of the lane, counted from the middle of the street.
        side: 1 where one drives on the left, -1 on the right.
        leaving: Whether the lane leads out of the junction.
    """
    sign = side if leaving else -side
    offset = sign * (lane + 0.5) * arm.street.lane_width
    return _on_arm(junction, arm, arm.reach, offset)


def turn_of(entry: Arm, leave: Arm) -> str:
    """Whether one goes straight on, left or right from one arm to another."""
    return {1: "right", 2: "straight", 3: "left"}[(leave.direction - entry.direction) % 4]


def lane_pairs(junction: Junction, entry: Arm, leave: Arm, side: int) -> list[tuple[int, int]]:
    """Which lanes of two arms a path joins, counted from the middle of the street.

    Straight on each lane keeps its place; the turn across the opposite lanes is made from the
    innermost lane, the other one along the kerb. Where lanes end or begin, they merge and fork.
    """
    a, b = entry.street.num_lanes, leave.street.num_lanes
    turn = turn_of(entry, leave)
    if turn == "straight" or len(junction.arms) == 2:
        return [(min(k, a - 1), min(k, b - 1)) for k in range(max(a, b))]
    if (turn == "left") == (side > 0):
        return [(a - 1, b - 1)]
    return [(0, 0)]


def path(
    junction: Junction, arms: tuple[Arm, Arm], lanes: tuple[int, int], side: int
) -> Float64[np.ndarray, "n 2"]:
    """Middle line from stop line to stop line: straight, or straight, arc, straight.

    Args:
        junction: The junction.
        arms: Where one enters and where one leaves.
        lanes: The lanes there, counted from the middle of the street.
        side: 1 where one drives on the left, -1 on the right.
    """
    begin = lane_ends(junction, arms[0], lanes[0], side, leaving=False)
    end = lane_ends(junction, arms[1], lanes[1], side, leaving=True)
    heading_in, heading_out = -DIRECTIONS[arms[0].direction], DIRECTIONS[arms[1].direction]
    if heading_in @ heading_out > 0.5:
        return _straight(begin, end, heading_in)
    corner = begin + heading_in * (heading_in @ (end - begin))
    inwards = side if turn_of(*arms) == "left" else -side
    to_kerb = [
        arm.street.half_width - inwards * (lane + 0.5) * arm.street.lane_width
        for arm, lane in zip(arms, lanes, strict=True)
    ]
    radius = min(
        abs(heading_in @ (corner - begin)),
        abs(heading_out @ (end - corner)),
        junction.corner_radius + min(to_kerb),
    )
    middle = corner + radius * (heading_out - heading_in)
    angle = np.linspace(0.0, np.pi / 2, max(int(radius * np.pi / 2 / TURN_STEP), 6))[:, None]
    arc = middle + radius * (np.sin(angle) * heading_in - np.cos(angle) * heading_out)
    return _without_repeats(np.concatenate([begin[None], arc, end[None]]))


def _straight(
    begin: Float64[np.ndarray, " 2"],
    end: Float64[np.ndarray, " 2"],
    heading: Float64[np.ndarray, " 2"],
) -> Float64[np.ndarray, "n 2"]:
    """From point to point along a heading; a shift to the side is a smooth S."""
    along = heading * (heading @ (end - begin))
    share = np.linspace(0.0, 1.0, max(int(np.linalg.norm(along) / TURN_STEP), 2))[:, None]
    return begin + share * along + (3 * share**2 - 2 * share**3) * (end - begin - along)


def _on_arm(
    junction: Junction, arm: Arm, distance: float, offset: float
) -> Float64[np.ndarray, " 2"]:
    """Point outwards on an arm, `offset` to the left of the way out."""
    left = DIRECTIONS[(arm.direction + 1) % 4]
    return junction.center_plan + distance * DIRECTIONS[arm.direction] + offset * left


def _corner(junction: Junction, arm: Arm, following: Arm) -> Float64[np.ndarray, "n 2"]:
    """Kerb from an arm to the next one counter-clockwise."""
    u, v = DIRECTIONS[arm.direction], DIRECTIONS[following.direction]
    quarters = (following.direction - arm.direction) % 4
    if quarters == 2:
        return np.zeros((0, 2))
    h, k = arm.street.half_width, following.street.half_width
    if quarters == 1:
        corner, radius = junction.center_plan + k * u + h * v, junction.corner_radius
    else:
        corner = junction.center_plan - k * u - h * v
        radius = junction.corner_radius + 2 * min(h, k)
    angle = np.linspace(0.0, np.pi / 2, max(int(radius * np.pi / 2 / TURN_STEP), 9))[:, None]
    return corner + radius * (u * (1 - np.sin(angle)) + v * (1 - np.cos(angle)))


def _without_repeats(points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
    moved = np.linalg.norm(np.diff(points, axis=0), axis=-1) > 1e-6
    return points[np.concatenate([[True], moved])]
