"""Lanes, lines and areas on the road, from the plan to the global frame."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from shapely.geometry import Polygon

from perception.synthetic import street_junctions
from perception.synthetic.street_map import Crossing, Divider, Lane, RoadSegment, StopLine
from perception.synthetic.street_parking import Roadside
from perception.synthetic.street_plan import (
    DIRECTIONS,
    STOP_CLEARANCE,
    Arm,
    Junction,
    StreetPlan,
    Stretch,
)
from perception.synthetic.street_warp import Warp, densify

STOP_DEPTH_RANGE = (2.6, 3.4)
"""Length of the area in which the first car waits [m]. Source: nuScenes' are alike."""


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Lanes of all stretches, then all paths through junctions."""

    lanes: list[Lane]
    of_stretch: dict[tuple[int, int, int], int]
    """Index by stretch, direction (1 along it, -1 against it) and number from the middle."""


def road_segment(stretch: Stretch, roadsides: Sequence[Roadside]) -> Polygon:
    """Outline of a stretch in the plan, with its parking strips."""
    w, n = stretch.street.lane_width, stretch.street.num_lanes
    strips = [roadside for roadside in roadsides if not roadside.is_car_park]
    right = [strip.outline(stretch) for strip in strips if strip.side < 0]
    left = [strip.outline(stretch)[::-1] for strip in reversed(strips) if strip.side > 0]
    ends = [
        np.stack([stretch.plan(station, k * w) for k in range(-n, n + 1)])
        for station in (stretch.start, stretch.end)
    ]
    return Polygon(np.concatenate([*right, ends[1], *left, ends[0][::-1]]))


def build_lanes(plan: StreetPlan, side: int, warp: Warp) -> Lanes:
    """All lanes, joined to their successors.

    Args:
        plan: The streets.
        side: 1 where one drives on the left, -1 on the right.
        warp: Takes the plan to the global frame.
    """
    lanes: list[Lane] = []
    of_stretch: dict[tuple[int, int, int], int] = {}
    for index, stretch in enumerate(plan.stretches):
        for way in (1, -1):
            for number in range(stretch.street.num_lanes):
                offset = side * way * (number + 0.5) * stretch.street.lane_width
                stations = (stretch.start, stretch.end)[::way]
                line = np.stack([stretch.plan(station, offset) for station in stations])
                of_stretch[index, way, number] = len(lanes)
                width = stretch.street.lane_width
                lanes.append(_lane(line, width, index, "straight", warp))
    for index, junction in enumerate(plan.junctions):
        segment = len(plan.stretches) + index
        for entry in junction.arms:
            for leave in junction.arms:
                if entry is leave:
                    continue
                for pair in street_junctions.lane_pairs(junction, entry, leave, side):
                    before = of_stretch[entry.stretch, -_way(entry), pair[0]]
                    after = of_stretch[leave.stretch, _way(leave), pair[1]]
                    line = street_junctions.path(junction, (entry, leave), pair, side)
                    turn = street_junctions.turn_of(entry, leave)
                    path = _lane(line, entry.street.lane_width, segment, turn, warp)
                    lanes[before] = replace(
                        lanes[before], successors=(*lanes[before].successors, len(lanes))
                    )
                    lanes.append(replace(path, successors=(after,), is_connector=True))
    return Lanes(lanes=lanes, of_stretch=of_stretch)


def crossings_and_stop_lines(
    plan: StreetPlan, lanes: Lanes, side: int, warp: Warp, rng: np.random.Generator
) -> tuple[list[Crossing], list[StopLine]]:
    """Zebra crossings of all arms that have one, and the stop areas of all but bends."""
    crossings: list[Crossing] = []
    stop_lines: list[StopLine] = []
    for index, junction in enumerate(plan.junctions):
        segment = len(plan.stretches) + index
        for arm in junction.arms if len(junction.arms) > 2 else ():
            if arm.crossing_depth > 0:
                walkway = plan.stretches[arm.stretch].walkway_width
                crossings.append(_crossing(junction, arm, walkway, segment, warp))
            h = side * arm.street.half_width
            depth = arm.reach + float(rng.uniform(*STOP_DEPTH_RANGE))
            area = _arm_rectangle(junction, arm, (arm.reach, depth), (0.0, -h))
            waiting = [
                lanes.of_stretch[arm.stretch, -_way(arm), number]
                for number in range(arm.street.num_lanes)
            ]
            stop_lines.append(
                StopLine(
                    polygon=warp.polygon(Polygon(area)),
                    lanes=tuple(waiting),
                    crossing=len(crossings) - 1 if arm.crossing_depth > 0 else None,
                )
            )
    return crossings, stop_lines


def road_dividers(plan: StreetPlan, warp: Warp) -> list[Divider]:
    """The middle line of every stretch."""
    return [
        Divider(line=_along(stretch, 0.0, warp), road_segment=index, is_dashed=False)
        for index, stretch in enumerate(plan.stretches)
    ]


def lane_dividers(plan: StreetPlan, warp: Warp) -> list[Divider]:
    """Lines between lanes of one direction."""
    return [
        Divider(
            line=_along(stretch, way * number * stretch.street.lane_width, warp),
            road_segment=index,
            is_dashed=True,
        )
        for index, stretch in enumerate(plan.stretches)
        for way in (1, -1)
        for number in range(1, stretch.street.num_lanes)
    ]


def road_segments(
    areas: Sequence[Polygon], num_stretches: int, warp: Warp
) -> tuple[RoadSegment, ...]:
    """Bend areas of the plan: first stretches, then junctions."""
    return tuple(
        RoadSegment(polygon=warp.polygon(area), is_intersection=index >= num_stretches)
        for index, area in enumerate(areas)
    )


def _way(arm: Arm) -> int:
    """1 where a stretch leads away from the junction, -1 where it comes."""
    return 1 if arm.direction < 2 else -1


def _along(stretch: Stretch, offset: float, warp: Warp) -> Float64[np.ndarray, "n 2"]:
    ends = [stretch.plan(station, offset) for station in (stretch.start, stretch.end)]
    return warp.line(np.stack(ends))


def _lane(
    line_plan: Float64[np.ndarray, "n 2"],
    width: float,
    segment: int,
    turn: str,
    warp: Warp,
) -> Lane:
    line = densify(line_plan)
    tangent = np.gradient(line, axis=0)
    # The ends are shared with other lanes, whose edges they must meet: take the exact headings,
    # which lie along an axis.
    tangent[[0, -1]] = np.rint(
        tangent[[0, -1]] / np.linalg.norm(tangent[[0, -1]], axis=-1)[:, None]
    )
    left = np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)
    left /= np.linalg.norm(left, axis=-1, keepdims=True)
    half = left * width / 2
    return Lane(
        centerline=warp.points(line),
        left_edge=warp.points(line + half),
        right_edge=warp.points(line - half),
        successors=(),
        is_connector=False,
        turn=turn,
        road_segment=segment,
    )


def _crossing(junction: Junction, arm: Arm, walkway: float, segment: int, warp: Warp) -> Crossing:
    h = arm.street.half_width
    far = arm.reach - STOP_CLEARANCE
    near = far - arm.crossing_depth
    area = _arm_rectangle(junction, arm, (near, far), (-h, h))
    middle = (near + far) / 2
    beyond = h + walkway / 2
    path = _arm_rectangle(junction, arm, (middle, middle), (-beyond, beyond))[:2]
    return Crossing(
        polygon=Polygon(warp.points(area)), path=warp.points(path), road_segment=segment
    )


def _arm_rectangle(
    junction: Junction, arm: Arm, distances: tuple[float, float], offsets: tuple[float, float]
) -> Float64[np.ndarray, "4 2"]:
    u, v = DIRECTIONS[arm.direction], DIRECTIONS[(arm.direction + 1) % 4]
    (d, e), (o, p) = distances, offsets
    return junction.center_plan + np.stack(
        [d * u + o * v, d * u + p * v, e * u + p * v, e * u + o * v]
    )
