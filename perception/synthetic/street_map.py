"""Streets, lanes and places of one location, in the global frame: what everything is built from."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from shapely.geometry import Polygon

LOCATIONS = (
    "singapore-onenorth",
    "boston-seaport",
    "singapore-queenstown",
    "singapore-hollandvillage",
)
"""The devkit knows these four places and no other."""


@dataclass(frozen=True, kw_only=True)
class RoadSegment:
    """A stretch of road between junctions, or a junction."""

    polygon: Polygon
    is_intersection: bool


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One lane in its driving direction, or a path through a junction."""

    centerline: Float64[np.ndarray, "n 2"]
    """Points about 2 m apart or closer, in driving direction [m]."""
    left_edge: Float64[np.ndarray, "n 2"]
    right_edge: Float64[np.ndarray, "n 2"]
    successors: tuple[int, ...]
    """Index of each lane that begins where this one ends; none at the edge of the map."""
    is_connector: bool
    """Whether it is a path through a junction."""
    turn: str
    """"straight", "left" or "right"."""
    road_segment: int
    """Index into `StreetMap.road_segments`."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A zebra crossing."""

    polygon: Polygon
    path: Float64[np.ndarray, "2 2"]
    """From walkway to walkway, through the middle."""
    road_segment: int


@dataclass(frozen=True, kw_only=True)
class StopLine:
    """The area in which cars wait; its far end is painted."""

    polygon: Polygon
    lanes: tuple[int, ...]
    """Lanes that end here."""
    crossing: int | None
    """Index of the crossing behind it."""


@dataclass(frozen=True, kw_only=True)
class ParkingSpot:
    """A place for one vehicle."""

    x: float
    y: float
    yaw: float
    """Heading of a vehicle that is parked forwards [rad]."""
    length: float
    width: float
    in_car_park: bool
    """False: at the kerb, outside the lanes."""


@dataclass(frozen=True, kw_only=True)
class CarPark:
    """An area of parking bays beside the road."""

    polygon: Polygon
    yaw: float
    """Heading of its bays [rad]."""
    road_segment: int


@dataclass(frozen=True, kw_only=True)
class Divider:
    """A painted line between lanes."""

    line: Float64[np.ndarray, "n 2"]
    road_segment: int
    """Index into `StreetMap.road_segments`."""
    is_dashed: bool


@dataclass(frozen=True, kw_only=True)
class StreetMap:
    """One location. All coordinates global [m], inside the square 0..size."""

    location: str
    size: float
    drives_on_left: bool
    road_segments: tuple[RoadSegment, ...]
    """Together they are the drivable area."""
    lanes: tuple[Lane, ...]
    crossings: tuple[Crossing, ...]
    stop_lines: tuple[StopLine, ...]
    walkways: tuple[Polygon, ...]
    car_parks: tuple[CarPark, ...]
    """Drivable, too, but in no lane."""
    road_dividers: tuple[Divider, ...]
    """Between opposite directions."""
    lane_dividers: tuple[Divider, ...]
    """Between lanes of one direction."""
    parking_spots: tuple[ParkingSpot, ...]
    """In car parks and at kerbs; clear of every lane and of each other."""
    walking_paths: tuple[Float64[np.ndarray, "_ 2"], ...]
    """Middle lines of walkways, n >= 2, points about 4 m apart or closer."""
    building_lots: tuple[Polygon, ...]
    """Convex places for buildings, clear of roads and walkways."""
    planting_lines: tuple[Float64[np.ndarray, "_ 2"], ...]
    """Where trees and posts may stand: clear of lanes, spots and the middle of walkways."""
    slab_joints: tuple[Float64[np.ndarray, "_ 2"], ...] = ()
    """Lines along and across the streets, all over the map: joints wherever there are slabs."""
