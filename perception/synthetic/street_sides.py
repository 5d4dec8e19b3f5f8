"""What lies along the roads: walkways, places for houses, lines of trees. All in the plan's frame.

road | walkway | verge with a planting line | building lot
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float64
from shapely.geometry import LineString, MultiPolygon, Polygon

from perception.synthetic.street_plan import Junction, StreetPlan, Stretch

BEYOND = 60.0
"""More than anything reaches from a street [m]."""
GRID = 1e-4
"""Resolution of the set operations: what is meant to touch, touches [m]."""
PLANTING_CLEARANCE = 0.9
"""From a walkway to the planting line [m]. Source: ours."""
SMALLEST_LOT_CLEARANCE = 2.0
"""From a walkway to a house [m]; planting lines run in between. Source: ours."""
BACK_LOTS = 350
"""Tries to place a house away from the street. Source: ours."""
BACK_LOT_REACH = 195.0
"""How far from the plan's middle they may lie, along each axis [m]. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Everything beside the roads."""

    walkways: list[Polygon]
    """Pieces without holes."""
    walking_paths: list[LineString]
    lots: list[Polygon]
    planting_lines: list[LineString]


def build_sides(
    plan: StreetPlan,
    areas: Sequence[Polygon],
    car_parks: Sequence[tuple[int, Polygon]],
    rng: np.random.Generator,
) -> Sides:
    """Lay everything beside the roads.

    Args:
        plan: The streets.
        areas: Road segments: first of all stretches, then of all junctions.
        car_parks: Areas of car parks with the index of their stretch.
        rng: Draws the houses.
    """
    drivable = shapely.union_all([*areas, *(park for _, park in car_parks)], grid_size=GRID)
    widths = _walkway_widths(plan)
    groups = [
        shapely.union_all([area, *(park for at, park in car_parks if at == index)], grid_size=GRID)
        for index, area in enumerate(areas)
    ]
    ends = shapely.union_all(_open_ends(plan.stretches))
    outer, middle = (
        shapely.union_all(
            [
                group.buffer(share * width, join_style="mitre", mitre_limit=2.0)
                for group, width in zip(groups, widths, strict=True)
            ],
            grid_size=GRID,
        )
        for share in (1.0, 0.5)
    )
    paved = shapely.difference(outer, shapely.union(drivable, ends), grid_size=GRID)
    verge = outer.buffer(PLANTING_CLEARANCE)
    return Sides(
        walkways=_pieces(paved, plan),
        walking_paths=_lines(middle, ends),
        lots=_lots(plan, outer, ends, rng),
        planting_lines=_lines(verge, ends.buffer(1.0)),
    )


def _walkway_widths(plan: StreetPlan) -> list[float]:
    of_stretch = [stretch.walkway_width for stretch in plan.stretches]
    of_junction = [
        float(np.mean([of_stretch[arm.stretch] for arm in junction.arms]))
        for junction in plan.junctions
    ]
    return of_stretch + of_junction


def _open_ends(stretches: Sequence[Stretch]) -> list[Polygon]:
    """Where the map ends across a street: no walkway leads round it."""
    ends = []
    for stretch in stretches:
        for is_open, station, out in (
            (stretch.open_start, stretch.start, -1),
            (stretch.open_end, stretch.end, 1),
        ):
            if is_open:
                stations = (station, station + out * BEYOND)
                ends.append(Polygon(stretch.rectangle(stations, (-BEYOND / 2, BEYOND / 2))))
    return ends


def _pieces(paved: Polygon | MultiPolygon, plan: StreetPlan) -> list[Polygon]:
    """Cut walkways at the ends of stretches, so that none is a ring: devkit rasters erase holes."""
    cells = [
        Polygon(stretch.rectangle((stretch.start, stretch.end), (-BEYOND / 2, BEYOND / 2)))
        for stretch in plan.stretches
    ] + [_junction_cell(junction) for junction in plan.junctions]
    pieces = shapely.get_parts(shapely.intersection(paved, np.array(cells), grid_size=GRID))
    return [piece for piece in pieces if isinstance(piece, Polygon) and piece.area > 0.5]


def _junction_cell(junction: Junction) -> Polygon:
    """From stop line to stop line, and as far where there is no arm."""
    reach = {arm.direction: arm.reach for arm in junction.arms}
    furthest = max(reach.values())
    east, north, west, south = (reach.get(direction, furthest) for direction in range(4))
    x, y = junction.center_plan
    return shapely.box(x - west, y - south, x + east, y + north)


def _lines(area: Polygon | MultiPolygon, ends: Polygon | MultiPolygon) -> list[LineString]:
    """The border of an area, round every block and round the town, cut at open ends."""
    border = shapely.difference(area.boundary, ends)
    merged = shapely.line_merge(border) if border.geom_type == "MultiLineString" else border
    return [line for line in shapely.get_parts(merged) if line.length > 8.0]


def _lots(
    plan: StreetPlan,
    outer: Polygon | MultiPolygon,
    ends: Polygon | MultiPolygon,
    rng: np.random.Generator,
) -> list[Polygon]:
    """House fronts along all streets, then some houses inside the blocks and round the town."""
    closed = shapely.union(outer.buffer(SMALLEST_LOT_CLEARANCE), ends)
    shapely.prepare(closed)
    lots: list[Polygon] = []

    def place(corners: Float64[np.ndarray, "4 2"], gap: float) -> bool:
        lot = Polygon(corners)
        free = not shapely.intersects(closed, lot)
        if free and not shapely.intersects(lots, lot.buffer(gap)).any():
            lots.append(lot)
            return True
        return False

    for stretch in plan.stretches:
        for side in (-1, 1):
            _house_fronts(stretch, side, place, rng)
    for _ in range(BACK_LOTS):
        x, y = rng.uniform(-BACK_LOT_REACH, BACK_LOT_REACH, 2)
        w, h = rng.uniform(12.0, 30.0, 2)
        place(np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]), 4.0)
    return lots


def _house_fronts(
    stretch: Stretch,
    side: int,
    place: Callable[[Float64[np.ndarray, "4 2"], float], bool],
    rng: np.random.Generator,
) -> None:
    """Houses one after the other, each as near to the street as what lies between lets it be."""
    station = stretch.start - 12.0
    while station < stretch.end + 6.0:
        front, depth = float(rng.uniform(9.0, 30.0)), float(rng.uniform(9.0, 20.0))
        setback = float(rng.uniform(SMALLEST_LOT_CLEARANCE + 0.1, 6.0))
        near = stretch.street.half_width + stretch.walkway_width + setback
        placed = rng.random() > 0.12 and any(
            place(
                stretch.rectangle(
                    (station, station + front), (side * (near + back), side * (near + back + depth))
                ),
                1.0,
            )
            for back in (0.0, 2.5, 3.5, 7.5, 12.0)
        )
        station += front + float(rng.uniform(1.5, 8.0)) if placed else 4.0
