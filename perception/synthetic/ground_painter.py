"""From streets to the ground: what it is made of, what the map calls it, and its pictures."""

import cv2
import numpy as np
import shapely
from jaxtyping import UInt8
from shapely.geometry.base import BaseGeometry

from perception.synthetic import ground_marks, ground_texture
from perception.synthetic.ground import MAP_LAYERS, Ground, Surface
from perception.synthetic.ground_raster import draw, fill
from perception.synthetic.random_streams import stream
from perception.synthetic.street_map import StreetMap

CELL = 0.1
"""Edge of a cell [m]. Source: nuScenes' map pictures have the same."""
DIVIDER_WIDTH = 0.4
"""Of a line in `Ground.layers` [m]. Source: the devkit draws lines two pixels wide."""
KERB_CELLS = 2
"""Width of a kerb. Source: ours."""
BED_SPACING = 9.0
"""Between beds of soil along a planting line [m]. Source: ours."""


def paint_ground(street_map: StreetMap, seed: int) -> Ground:
    """Draw the ground of a location; about 20 million cells.

    Args:
        street_map: The streets.
        seed: Decides grain, wear and patches; with the streets' own seed nothing else is needed.
    """
    cells = round(street_map.size / CELL)
    layers = _layers(street_map, cells)
    surface = _surface(street_map, layers, seed)
    texture_rgb = ground_texture.paint(street_map, surface, CELL, seed)
    return Ground(cell=CELL, surface=surface, texture_rgb=texture_rgb, layers=layers)


def drivable_png(ground: Ground) -> bytes:
    """The map picture that nuScenes calls semantic prior: 255 where one can drive, north on top."""
    is_drivable = (ground.layers & _bit("drivable_area")) > 0
    return _png(np.where(is_drivable, np.uint8(255), np.uint8(0)))


def basemap_png(ground: Ground) -> bytes:
    """A picture of the map in one colour per surface, north on top."""
    colors_bgr = ground_texture.MAP_COLORS_RGB[:, ::-1]
    return _png(colors_bgr[ground.surface])


def _layers(street_map: StreetMap, cells: int) -> UInt8[np.ndarray, "y x"]:
    layers = np.zeros((cells, cells), np.uint8)
    roads = [segment.polygon for segment in street_map.road_segments]
    parks = [park.polygon for park in street_map.car_parks]
    areas: dict[str, list[BaseGeometry]] = {
        "drivable_area": [*roads, *parks],
        "ped_crossing": [crossing.polygon for crossing in street_map.crossings],
        "walkway": list(street_map.walkways),
        "stop_line": [stop.polygon for stop in street_map.stop_lines],
        "carpark_area": [*parks],
    }
    for name, polygons in areas.items():
        mask = np.zeros_like(layers)
        fill(mask, polygons, _bit(name), CELL)
        layers |= mask
    for name, dividers in (
        ("road_divider", street_map.road_dividers),
        ("lane_divider", street_map.lane_dividers),
    ):
        mask = np.zeros_like(layers)
        draw(mask, [divider.line for divider in dividers], _bit(name), CELL, DIVIDER_WIDTH)
        layers |= mask
    return layers


def _surface(
    street_map: StreetMap, layers: UInt8[np.ndarray, "y x"], seed: int
) -> UInt8[np.ndarray, "y x"]:
    surface = np.full_like(layers, Surface.GRASS)
    fill(surface, _beds(street_map, seed), Surface.SOIL, CELL)
    fill(surface, street_map.walkways, Surface.PAVEMENT, CELL)
    drivable = layers & _bit("drivable_area")
    near_road = cv2.dilate(drivable, np.ones((2 * KERB_CELLS + 1,) * 2, np.uint8))
    surface[(near_road > 0) & (surface == Surface.PAVEMENT)] = Surface.KERB
    del near_road
    surface[drivable > 0] = Surface.ASPHALT
    fill(surface, [park.polygon for park in street_map.car_parks], Surface.CONCRETE, CELL)
    fill(surface, ground_marks.yellow_areas(street_map), Surface.YELLOW_PAINT, CELL)
    fill(surface, ground_marks.white_areas(street_map), Surface.WHITE_PAINT, CELL)
    return surface


def _beds(street_map: StreetMap, seed: int) -> list[BaseGeometry]:
    """Round beds along planting lines."""
    rng = stream(seed, street_map.location, "beds")
    beds = []
    for line in street_map.planting_lines:
        path = shapely.linestrings(line)
        at = np.arange(rng.uniform(0.0, BED_SPACING), path.length, BED_SPACING)
        at = at + rng.uniform(-0.3, 0.3, len(at)) * BED_SPACING
        points = shapely.line_interpolate_point(path, at)
        beds += list(shapely.buffer(points, rng.uniform(0.4, 1.1, len(at)), quad_segs=3))
    return beds


def _bit(layer: str) -> int:
    return 1 << MAP_LAYERS.index(layer)


def _png(picture: UInt8[np.ndarray, "y x *c"]) -> bytes:
    """Encode with the last row on top."""
    return cv2.imencode(".png", picture[::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
