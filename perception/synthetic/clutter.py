"""What stands beside the streets and is not annotated: buildings, trees, posts, a skyline."""

import numpy as np
import shapely
from jaxtyping import Float64
from shapely.geometry import Polygon

from perception.synthetic import random_streams
from perception.synthetic.part_list import Material, PartList, Rgb
from perception.synthetic.primitives import SEMANTIC_CLASSES, Pattern, Primitives
from perception.synthetic.street_map import StreetMap
from perception.synthetic.tracks import resample, shift_sideways

_BUILDING = SEMANTIC_CLASSES.index("building")
_VEGETATION = SEMANTIC_CLASSES.index("vegetation")
_POLE = SEMANTIC_CLASSES.index("pole")

_FACADES: tuple[tuple[Rgb, Rgb], ...] = (
    ((156, 84, 64), (44, 50, 58)),
    ((176, 150, 116), (52, 56, 62)),
    ((122, 124, 132), (34, 42, 54)),
    ((210, 202, 184), (70, 84, 98)),
    ((92, 110, 128), (150, 180, 204)),
    ((196, 180, 150), (60, 58, 56)),
    ((140, 100, 84), (200, 196, 176)),
    ((226, 224, 218), (54, 66, 80)),
)
_LEAVES: tuple[tuple[Rgb, Rgb], ...] = (
    ((44, 98, 38), (28, 68, 26)),
    ((66, 116, 44), (42, 84, 32)),
    ((88, 122, 48), (60, 92, 36)),
    ((38, 84, 52), (24, 58, 36)),
)
_METAL = Material(rgb=(112, 116, 120), reflectivity=0.4)
_BARK = Material(rgb=(86, 64, 46), second_rgb=(60, 44, 32), pattern=Pattern.MOTTLED, scale=0.15)
_WOOD = Material(rgb=(128, 88, 54), reflectivity=0.3)


def build_clutter(street_map: StreetMap, seed: int) -> Primitives:
    """Everything that stands still for ever at a location, in the global frame."""
    parts = PartList()
    rng = random_streams.stream(seed, street_map.location, "clutter")
    for lot in street_map.building_lots:
        _add_building(parts, lot, rng)
    _add_planting(parts, street_map, rng)
    _add_signals(parts, street_map, rng)
    _add_skyline(parts, street_map.size, rng)
    return parts.table()


def _add_building(parts: PartList, lot: Polygon, rng: np.random.Generator) -> None:
    """One to three boxes with windows, as large as the lot allows."""
    fitted = _rectangle_inside(lot)
    if fitted is None:
        return
    center, length, width, yaw = fitted
    if min(length, width) < 4.0:
        return
    material = _facade(rng)
    height = float(min(rng.uniform(6.0, 16.0) * rng.choice((1.0, 1.0, 1.6, 2.5)), 40.0))
    split = float(rng.uniform(0.35, 0.65)) if length > 18.0 and rng.random() < 0.6 else 1.0
    axis = np.array([np.cos(yaw), np.sin(yaw)])
    for share, side, own_height in (
        (split, -1.0, height),
        (1.0 - split, 1.0, float(max(5.0, height * rng.uniform(0.4, 0.8)))),
    ):
        if share < 0.1:
            continue
        middle = center + axis * side * (length / 2) * (1.0 - share)
        size = (length * share, width * (1.0 if side < 0 else float(rng.uniform(0.75, 1.0))))
        _stand(parts, middle, yaw, (*size, own_height), material, _BUILDING)
    roof = (length * split * 0.35, width * 0.4, float(rng.uniform(1.8, 3.2)))
    top = center - axis * (length / 2) * (1.0 - split)
    plain = Material(rgb=material.rgb, reflectivity=0.3)
    _stand(parts, top, yaw, roof, plain, _BUILDING, bottom=height)


def _add_planting(parts: PartList, street_map: StreetMap, rng: np.random.Generator) -> None:
    """Trees, lamps, bins, benches and hedges along the lines that are kept for them."""
    for line in street_map.planting_lines:
        points = resample(line, 1.0)
        if len(points) < 4:
            continue
        yaw = np.arctan2(*np.gradient(points, axis=0).T[::-1])
        station = int(rng.integers(2, 7))
        while station < len(points) - 2:
            at, heading = points[station], float(yaw[station])
            kind = rng.choice(6, p=(0.46, 0.18, 0.10, 0.08, 0.10, 0.08))
            if kind == 0:
                _add_tree(parts, at, rng)
            elif kind == 1:
                _add_lamp(parts, at, heading, rng)
            elif kind == 2:
                bin_color = Material(rgb=((40, 90, 60), (60, 60, 66), (44, 70, 120))[station % 3])
                _stand(parts, at, heading, (0.5, 0.5, 1.0), bin_color, _POLE)
            elif kind == 3:
                _stand(parts, at, heading, (1.6, 0.45, 0.45), _WOOD, _POLE)
                _stand(parts, at, heading, (1.6, 0.08, 0.45), _WOOD, _POLE, bottom=0.45)
            elif kind == 4:
                length = min(8, len(points) - 2 - station)
                _add_hedge(parts, points[station : station + length + 1], rng)
                station += length
            else:
                _stand(parts, at, heading, (0.12, 0.12, 2.4), _METAL, _POLE)
                sign = Material(rgb=(30, 80, 170), reflectivity=0.95)
                _stand(parts, at, heading, (0.06, 0.6, 0.6), sign, _POLE, bottom=2.0)
            station += int(rng.integers(6, 12))


def _add_tree(parts: PartList, at: Float64[np.ndarray, " 2"], rng: np.random.Generator) -> None:
    rgb, second = _LEAVES[int(rng.integers(len(_LEAVES)))]
    leaves = Material(
        rgb=rgb, second_rgb=second, pattern=Pattern.MOTTLED, scale=0.35, reflectivity=0.45
    )
    height, crown = float(rng.uniform(4.5, 8.5)), float(rng.uniform(2.2, 4.0))
    trunk = float(rng.uniform(0.22, 0.4))
    bottom = float(rng.uniform(2.2, 2.8))
    yaw = float(rng.uniform(0.0, np.pi))
    _stand(parts, at, yaw, (trunk, trunk, bottom + 0.3), _BARK, _VEGETATION)
    middle = bottom + (height - bottom) * 0.55
    _stand(parts, at, yaw, (crown, crown, middle - bottom), leaves, _VEGETATION, bottom=bottom)
    _stand(
        parts,
        at,
        yaw + 0.6,
        (crown * 0.7, crown * 0.7, height - middle),
        leaves,
        _VEGETATION,
        bottom=middle,
    )
    if rng.random() < 0.5:
        aside = at + rng.uniform(-0.35, 0.35, 2) * crown
        size = (crown * 0.75, crown * 0.6, (middle - bottom) * 1.3)
        _stand(parts, aside, yaw + 0.3, size, leaves, _VEGETATION, bottom=bottom + 0.3)


def _add_lamp(
    parts: PartList, at: Float64[np.ndarray, " 2"], yaw: float, rng: np.random.Generator
) -> None:
    height = float(rng.uniform(6.0, 8.0))
    _stand(parts, at, yaw, (0.18, 0.18, height), _METAL, _POLE)
    light = Material(rgb=(255, 236, 190), reflectivity=0.4, glow=0.6)
    _stand(parts, at, yaw, (0.9, 0.35, 0.16), light, _POLE, bottom=height)


def _add_hedge(
    parts: PartList, points: Float64[np.ndarray, "n 2"], rng: np.random.Generator
) -> None:
    """A hedge or a low wall from the first point to the last."""
    chord = points[-1] - points[0]
    length, yaw = float(np.hypot(*chord)), float(np.arctan2(chord[1], chord[0]))
    middle = (points[0] + points[-1]) / 2
    if rng.random() < 0.6:
        rgb, second = _LEAVES[int(rng.integers(len(_LEAVES)))]
        leaves = Material(
            rgb=rgb, second_rgb=second, pattern=Pattern.MOTTLED, scale=0.2, reflectivity=0.45
        )
        size = (length, 0.6, float(rng.uniform(0.6, 1.1)))
        _stand(parts, middle, yaw, size, leaves, _VEGETATION)
    else:
        _stand(parts, middle, yaw, (length, 0.25, 0.6), Material(rgb=(160, 152, 140)), _BUILDING)


def _add_signals(parts: PartList, street_map: StreetMap, rng: np.random.Generator) -> None:
    """A traffic light or a sign at the kerb beside each stop area."""
    drivable = shapely.union_all(
        [segment.polygon for segment in street_map.road_segments]
        + [park.polygon for park in street_map.car_parks]
    )
    shapely.prepare(drivable)
    to_kerb = 1.0 if street_map.drives_on_left else -1.0
    for stop_line in street_map.stop_lines:
        if not stop_line.lanes:
            continue
        lights = rng.random() < 0.7
        lane = street_map.lanes[stop_line.lanes[0]]
        tangent = lane.centerline[-1] - lane.centerline[-2]
        yaw = float(np.arctan2(tangent[1], tangent[0]))
        for offset in np.arange(2.0, 12.0, 0.5):
            line = shift_sideways(lane.centerline[-4:], float(to_kerb * offset))
            post = shapely.Point(line[-1]).buffer(0.4)
            if not drivable.intersects(post):
                _add_signal(parts, line[-1], yaw, lights, rng)
                break


def _add_signal(
    parts: PartList,
    at: Float64[np.ndarray, " 2"],
    yaw: float,
    lights: bool,
    rng: np.random.Generator,
) -> None:
    """A post whose face looks at those who come along `yaw`."""
    if lights:
        _stand(parts, at, yaw, (0.14, 0.14, 3.6), _METAL, _POLE)
        housing = Material(rgb=(34, 36, 36), reflectivity=0.2)
        _stand(parts, at, yaw, (0.3, 0.34, 0.95), housing, _POLE, bottom=2.7)
        red = rng.random() < 0.5
        rgb: Rgb = (255, 40, 30) if red else (50, 255, 120)
        lamp = Material(rgb=rgb, glow=1.0, reflectivity=0.3)
        face = at - 0.16 * np.array([np.cos(yaw), np.sin(yaw)])
        bottom = 3.35 if red else 2.77
        _stand(parts, face, yaw, (0.04, 0.22, 0.22), lamp, _POLE, bottom=bottom)
        return
    _stand(parts, at, yaw, (0.1, 0.1, 2.6), _METAL, _POLE)
    sign = Material(rgb=(200, 24, 28), reflectivity=0.96)
    _stand(parts, at, yaw, (0.12, 0.75, 0.75), sign, _POLE, bottom=1.95)
    bar = Material(rgb=(240, 240, 240), reflectivity=0.96)
    _stand(parts, at, yaw, (0.14, 0.55, 0.16), bar, _POLE, bottom=2.25)


def _add_skyline(parts: PartList, map_size: float, rng: np.random.Generator) -> None:
    """High buildings and groves around the map, so that the horizon is not bare."""
    middle = map_size / 2
    for angle in np.arange(0.0, 2 * np.pi, 2 * np.pi / 72):
        direction = np.array([np.cos(angle), np.sin(angle)])
        to_edge = middle / float(np.abs(direction).max())
        distance = to_edge + float(rng.uniform(25.0, 160.0))
        at = middle + direction * distance
        yaw = float(angle + rng.uniform(-0.5, 0.5))
        size = (float(rng.uniform(14.0, 30.0)), float(rng.uniform(14.0, 34.0)))
        if rng.random() < 0.7:
            height = float(rng.uniform(12.0, 70.0))
            _stand(parts, at, yaw, (*size, height), _facade(rng), _BUILDING)
        else:
            rgb, second = _LEAVES[int(rng.integers(len(_LEAVES)))]
            grove = Material(rgb=rgb, second_rgb=second, pattern=Pattern.MOTTLED, scale=1.5)
            _stand(parts, at, yaw, (*size, float(rng.uniform(6.0, 12.0))), grove, _VEGETATION)


def _facade(rng: np.random.Generator) -> Material:
    rgb, second = _FACADES[int(rng.integers(len(_FACADES)))]
    red, green, blue = (int(v) for v in np.clip(np.array(rgb) + rng.integers(-16, 17, 3), 0, 255))
    return Material(
        rgb=(red, green, blue),
        second_rgb=second,
        pattern=Pattern.WINDOWS,
        scale=float(rng.uniform(2.6, 4.2)),
        reflectivity=float(rng.uniform(0.2, 0.5)),
    )


def _stand(
    parts: PartList,
    at: Float64[np.ndarray, " 2"],
    yaw: float,
    size: tuple[float, float, float],
    material: Material,
    semantic: int,
    *,
    bottom: float = 0.0,
) -> None:
    """Add an upright box above a point of the ground."""
    center = (float(at[0]), float(at[1]), bottom + size[2] / 2)
    parts.add(center, size, material, semantic=semantic, yaw=yaw)


def _rectangle_inside(
    lot: Polygon,
) -> tuple[Float64[np.ndarray, " 2"], float, float, float] | None:
    """Middle, length, width and yaw of a rectangle that lies in a convex polygon."""
    around = np.array(shapely.minimum_rotated_rectangle(lot).exterior.coords)[:4]
    edge, side = around[1] - around[0], around[2] - around[1]
    if np.hypot(*edge) < np.hypot(*side):
        edge, side = side, edge
    center = np.array(lot.centroid.coords[0])
    for scale in np.arange(0.96, 0.3, -0.06):
        corners = [
            center + scale * (sx * edge + sy * side) / 2
            for sx, sy in ((1, 1), (-1, 1), (-1, -1), (1, -1))
        ]
        if lot.contains(Polygon(corners)):
            length, width = float(scale * np.hypot(*edge)), float(scale * np.hypot(*side))
            return center, length, width, float(np.arctan2(edge[1], edge[0]))
    return None
