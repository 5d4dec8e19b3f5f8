"""Ways through the lanes of a map."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from perception.synthetic.street_map import StreetMap


@dataclass(frozen=True, kw_only=True)
class Route:
    """A chain of lanes, each a successor of the one before."""

    line: Float64[np.ndarray, "n 2"]
    """Their centre lines as one [m]."""
    lanes: tuple[int, ...]
    lane_ends: tuple[float, ...]
    """Distance along the line at which each lane ends [m]."""


def draw_route(
    street_map: StreetMap, rng: np.random.Generator, first_lane: int, length: float
) -> Route | None:
    """Walk from the start of a lane along random successors.

    Args:
        street_map: Where the lanes are.
        rng: Source of the turns.
        first_lane: Index of the lane.
        length: How far to go at least [m].

    Returns:
        None where the walk comes to the edge of the map before.
    """
    lanes = [first_lane]
    pieces = [street_map.lanes[first_lane].centerline]
    ends = [line_length(pieces[0])]
    while ends[-1] < length:
        successors = street_map.lanes[lanes[-1]].successors
        if not successors:
            return None
        lanes.append(int(rng.choice(successors)))
        line = street_map.lanes[lanes[-1]].centerline
        pieces.append(line[1:])
        ends.append(ends[-1] + line_length(line))
    return Route(line=np.concatenate(pieces), lanes=tuple(lanes), lane_ends=tuple(ends))


def halts(street_map: StreetMap, route: Route, after: float, overhang: float) -> list[float]:
    """Stations at which a vehicle waits in the stop areas of a route.

    Args:
        street_map: Where the stop areas are.
        route: Of the vehicle.
        after: Only stations beyond this one [m].
        overhang: From the vehicle's point to its front bumper [m].
    """
    with_stop = {lane for stop in street_map.stop_lines for lane in stop.lanes}
    stations = [
        end - overhang - 0.7
        for lane, end in zip(route.lanes, route.lane_ends, strict=True)
        if lane in with_stop
    ]
    return [station for station in stations if station > after]


def line_length(line: Float64[np.ndarray, "n 2"]) -> float:
    """Length of a polyline [m]."""
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
