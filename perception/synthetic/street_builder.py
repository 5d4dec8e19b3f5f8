"""Builds the streets of a location: an irregular grid, bent so that nothing is straight."""

import numpy as np
import shapely
from jaxtyping import Float64
from shapely.geometry import Polygon

from perception.errors import InputError
from perception.synthetic import street_junctions, street_lanes, street_parking, street_sides
from perception.synthetic.random_streams import stream
from perception.synthetic.street_map import LOCATIONS, CarPark, StreetMap
from perception.synthetic.street_plan import DIRECTIONS, Stretch, draw_plan
from perception.synthetic.street_warp import Warp

MAP_SIZE = 440.0
"""Edge of every map [m]. Source: ours; a car drives 250 m without leaving it."""
SLAB_SPACING = 1.2
"""Of the joints between paving slabs [m]. Source: ours."""


def build_street_map(location: str, seed: int) -> StreetMap:
    """Draw the streets of a location.

    Raises:
        InputError: The location is not one of nuScenes' four.
    """
    if location not in LOCATIONS:
        raise InputError(
            f"location is {location!r}, expected one of {', '.join(LOCATIONS)}: "
            "the devkit reads no other map"
        )
    rng = stream(seed, location, "streets")
    on_left = location.startswith("singapore")
    side = 1 if on_left else -1
    plan, warp = draw_plan(rng), _draw_warp(rng)
    roadsides = street_parking.draw_roadsides(rng, plan.stretches)
    parks = [roadside for roadside in roadsides if roadside.is_car_park]
    outlines = [Polygon(park.outline(plan.stretches[park.stretch])) for park in parks]
    areas = [
        street_lanes.road_segment(stretch, [r for r in roadsides if r.stretch == index])
        for index, stretch in enumerate(plan.stretches)
    ] + [street_junctions.outline(junction) for junction in plan.junctions]
    lanes = street_lanes.build_lanes(plan, side, warp)
    crossings, stop_lines = street_lanes.crossings_and_stop_lines(plan, lanes, side, warp, rng)
    by_stretch = [(park.stretch, outline) for park, outline in zip(parks, outlines, strict=True)]
    sides = street_sides.build_sides(plan, areas, by_stretch, rng)
    town = shapely.box(1.0, 1.0, MAP_SIZE - 1.0, MAP_SIZE - 1.0)
    return StreetMap(
        location=location,
        size=MAP_SIZE,
        drives_on_left=on_left,
        road_segments=street_lanes.road_segments(areas, len(plan.stretches), warp),
        lanes=tuple(lanes.lanes),
        crossings=tuple(crossings),
        stop_lines=tuple(stop_lines),
        walkways=tuple(warp.polygon(walkway) for walkway in sides.walkways),
        car_parks=tuple(
            CarPark(
                polygon=warp.polygon(outline),
                yaw=_bay_heading(park, plan.stretches[park.stretch], warp),
                road_segment=park.stretch,
            )
            for park, outline in zip(parks, outlines, strict=True)
        ),
        road_dividers=tuple(street_lanes.road_dividers(plan, warp)),
        lane_dividers=tuple(street_lanes.lane_dividers(plan, warp)),
        parking_spots=tuple(
            spot
            for roadside in roadsides
            for spot in street_parking.spots(roadside, plan.stretches[roadside.stretch], side, warp)
        ),
        walking_paths=tuple(warp.line(np.array(line.coords)) for line in sides.walking_paths),
        building_lots=tuple(
            lot for lot_plan in sides.lots if town.contains(lot := _bent_lot(lot_plan, warp))
        ),
        planting_lines=tuple(warp.line(np.array(line.coords)) for line in sides.planting_lines),
        slab_joints=_slab_joints(warp),
    )


def _draw_warp(rng: np.random.Generator) -> Warp:
    """Bends of 150 m radius or more; streets cross at 90 degrees give or take 25."""
    turn = np.deg2rad(rng.uniform(7.0, 13.0)) * rng.choice([-1.0, 1.0])
    return Warp(
        amplitude=_pair(rng, 7.0, 10.0),
        wavelength=_pair(rng, 270.0, 360.0),
        phase=_pair(rng, 0.0, 2 * np.pi),
        rotation=float(turn),
        center=MAP_SIZE / 2,
    )


def _pair(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def _bay_heading(park: street_parking.Roadside, stretch: Stretch, warp: Warp) -> float:
    """Heading of the bays in the middle of a car park, in the global frame."""
    middle = stretch.plan(
        (park.start + park.end) / 2, park.side * (stretch.street.half_width + park.depth / 2)
    )
    heading = DIRECTIONS[stretch.axis] if park.kind == "long" else park.side * stretch.left
    begin, end = warp.points(middle + np.stack([-heading, heading]))
    return float(np.arctan2(end[1] - begin[1], end[0] - begin[0]))


def _bent_lot(lot_plan: Polygon, warp: Warp) -> Polygon:
    return Polygon(warp.points(shapely.get_coordinates(lot_plan)[:4])).convex_hull


def _slab_joints(warp: Warp) -> tuple[Float64[np.ndarray, "_ 2"], ...]:
    """A square grid over the whole plan, so that joints run along the streets."""
    half = MAP_SIZE / 2
    across = np.arange(-half, half, SLAB_SPACING)
    along = np.arange(-half, half + 1.0, 6.0)
    lines = []
    for offset in across:
        line = np.stack([along, np.full_like(along, offset)], axis=-1)
        lines += [warp.points(line), warp.points(line[:, ::-1])]
    return tuple(lines)
