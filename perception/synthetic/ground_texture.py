"""Colours of the ground by full daylight: base colour, stains, fine grain, joints and wear."""

import cv2
import numpy as np
import shapely
from jaxtyping import Float64, Int16, UInt8
from shapely.geometry import Polygon

from perception.synthetic.ground import Surface
from perception.synthetic.ground_raster import draw, fill
from perception.synthetic.random_streams import stream
from perception.synthetic.street_map import LOCATIONS, StreetMap

NEUTRAL = 128
"""A brightness that leaves the base colour as it is."""
BAND_ROWS = 128
"""Rows that are coloured at a time: the wide intermediate numbers stay small."""
GRAIN_CELLS = 1024
"""Edge of the square of grain that is repeated."""
STAIN_CELLS = 4
"""Edge of a sample of the stains' raster, in cells."""
WEAR_CELLS = 2
COARSE_JOINTS = 4
"""Every fourth slab joint is also one of the car parks'."""

MAP_COLORS_RGB = np.array(
    [
        [214, 232, 205],
        [170, 170, 175],
        [236, 226, 214],
        [204, 210, 226],
        [255, 255, 255],
        [240, 200, 60],
        [140, 140, 140],
        [190, 165, 130],
    ],
    np.uint8,
)
"""Of the drawn map, by `Surface`."""

_PALETTES = {
    Surface.GRASS: ((84, 118, 52), (98, 112, 60), (70, 108, 50), (104, 122, 58)),
    Surface.ASPHALT: ((74, 74, 78), (92, 91, 92), (62, 63, 68), (84, 81, 80)),
    Surface.PAVEMENT: ((186, 170, 148), (170, 122, 102), (196, 184, 160), (178, 146, 126)),
    Surface.CONCRETE: ((130, 140, 150), (142, 151, 159), (122, 134, 146), (134, 145, 149)),
}
"""Colours by location, in the order of `LOCATIONS`. Source: ours."""
_WHITE, _YELLOW, _KERB, _SOIL = (232, 232, 226), (224, 176, 44), (150, 150, 146), (104, 80, 58)

_GRAIN = np.array([64, 30, 18, 16, 14, 14, 16, 46], np.int16)
"""Strength of the fine grain by `Surface`, in 128ths."""
_STAIN = np.array([34, 22, 18, 22, 10, 10, 16, 30], np.int16)
_WEAR = np.array([0, 44, 0, 14, 46, 40, 0, 0], np.int16)
"""How much wheels darken each surface, in 256ths of the wear."""


def paint(
    street_map: StreetMap, surface: UInt8[np.ndarray, "y x"], cell: float, seed: int
) -> UInt8[np.ndarray, "y x 3"]:
    """Colour every cell.

    Args:
        street_map: The streets the surface was made from.
        surface: A `Surface` per cell.
        cell: Edge of a cell [m].
        seed: Decides all that is random.
    """
    rng = stream(seed, street_map.location, "texture")
    colors = _base_colors(street_map.location, rng)
    shade = _shade(street_map, surface, cell, rng)
    wear = _wear(street_map, surface.shape[0] // WEAR_CELLS, cell * WEAR_CELLS)
    stains = _stains(rng, surface.shape[0] // STAIN_CELLS + 1)
    grain = _grain(rng)
    texture = np.empty((*surface.shape, 3), np.uint8)
    for row in range(0, len(surface), BAND_ROWS):
        band = slice(row, min(row + BAND_ROWS, len(surface)))
        kind = surface[band]
        stain = _enlarged(stains, STAIN_CELLS, band, surface.shape[1]) - NEUTRAL
        worn = _enlarged(wear, WEAR_CELLS, band, surface.shape[1])
        noise = _tiled(grain, rng, kind.shape)
        light = noise * _GRAIN.take(kind) + stain * _STAIN.take(kind)
        light >>= 7
        light -= (worn * _WEAR.take(kind)) >> 8
        light += shade[band]
        variant = np.clip(
            (stain + noise // 2 + worn // 4 * (kind >= Surface.WHITE_PAINT)) // 48, -2, 1
        )
        index = (kind.astype(np.int16) << 2) + variant + 2
        brightness = cv2.merge([np.clip(light, 0, 255).astype(np.uint8)] * 3)
        cv2.multiply(colors.take(index, axis=0), brightness, texture[band], 1.0 / NEUTRAL)
    return texture


def _base_colors(location: str, rng: np.random.Generator) -> UInt8[np.ndarray, "k 3"]:
    """Four variants per surface, `4 * surface + variant`, from pale to strong."""
    place = LOCATIONS.index(location)
    of_surface = [
        _PALETTES[Surface.GRASS][place],
        _PALETTES[Surface.ASPHALT][place],
        _PALETTES[Surface.PAVEMENT][place],
        _PALETTES[Surface.CONCRETE][place],
        _WHITE,
        _YELLOW,
        _KERB,
        _SOIL,
    ]
    tone = rng.normal(0.0, 5.0, (8, 1, 1)) + rng.normal(0.0, 1.0, (8, 1, 3))
    base = np.array(of_surface, np.float64)[:, None] + tone
    towards = np.zeros((8, 4, 3))
    towards[Surface.GRASS] = [[-10, 4, -6], [0, 0, 0], [14, 6, 4], [34, 14, 10]]
    towards[Surface.ASPHALT] = [[-4, -4, -3], [0, 0, 0], [3, 3, 3], [7, 6, 5]]
    towards[Surface.PAVEMENT] = [[-8, -6, -4], [0, 0, 0], [4, 4, 6], [8, 8, 10]]
    towards[Surface.CONCRETE] = [[-8, -8, -8], [0, 0, 0], [4, 4, 4], [9, 8, 6]]
    towards[Surface.WHITE_PAINT] = [[0, 0, 0], [-4, -4, -4], [-22, -22, -22], [-70, -70, -68]]
    towards[Surface.YELLOW_PAINT] = [[0, 0, 0], [-4, -4, -2], [-20, -14, 0], [-60, -40, 10]]
    return np.clip(base + towards, 0, 255).astype(np.uint8).reshape(32, 3)


def _shade(
    street_map: StreetMap,
    surface: UInt8[np.ndarray, "y x"],
    cell: float,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "y x"]:
    """Brightness of drawn details: joints, repairs, cracks, covers."""
    shade = np.full_like(surface, NEUTRAL)
    roads = [segment.polygon for segment in street_map.road_segments]
    draw(shade, street_map.slab_joints, 98, cell, cell)
    fill(shade, [park.polygon for park in street_map.car_parks], NEUTRAL, cell)
    draw(shade, street_map.slab_joints[::COARSE_JOINTS], 100, cell, cell)
    fill(shade, roads, NEUTRAL, cell)
    for lane in street_map.lanes:
        repairs, cracks = _damage(lane.centerline, rng)
        for repair in repairs:
            fill(shade, [repair], int(rng.integers(98, 146)), cell)
        draw(shade, cracks, 84, cell, cell)
        if rng.random() < 0.4:
            cover = shapely.Point(*lane.centerline[rng.integers(len(lane.centerline))]).buffer(0.35)
            fill(shade, [cover], 76, cell)
    shade[(surface == Surface.GRASS) | (surface >= Surface.WHITE_PAINT)] = NEUTRAL
    return shade


def _damage(
    line: Float64[np.ndarray, "n 2"], rng: np.random.Generator
) -> tuple[list[Polygon], list[Float64[np.ndarray, "_ 2"]]]:
    """Repaired rectangles along a lane, and cracks that wander across it."""
    repairs, cracks = [], []
    for _ in range(rng.poisson(len(line) / 25)):
        k = int(rng.integers(len(line) - 1))
        u = (line[k + 1] - line[k]) / np.linalg.norm(line[k + 1] - line[k])
        axes = np.array([u, [-u[1], u[0]]])
        half = np.array([rng.uniform(0.6, 3.5), rng.uniform(0.4, 1.5)])
        center = line[k] + rng.uniform(-1.0, 1.0) * axes[1]
        corners = center + (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ axes
        repairs.append(Polygon(corners))
    for _ in range(rng.poisson(len(line) / 12)):
        heading = rng.uniform(0.0, 2 * np.pi) + np.cumsum(rng.normal(0.0, 0.5, 12))
        steps = 0.35 * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        start = line[rng.integers(len(line))] + rng.uniform(-1.5, 1.5, 2)
        cracks.append(start + np.cumsum(steps, axis=0))
    return repairs, cracks


def _wear(street_map: StreetMap, size: int, cell: float) -> UInt8[np.ndarray, "y x"]:
    """Where wheels roll and oil drips: soft tracks along all lanes."""
    wear = np.zeros((size, size), np.uint8)
    for lane in street_map.lanes:
        half_width = lane.left_edge - lane.right_edge
        draw(wear, [lane.centerline], 90, cell, 0.4)
        for share in (-0.25, 0.25):
            draw(wear, [lane.centerline + share * half_width], 200, cell, 0.5)
    return cv2.GaussianBlur(wear, (7, 7), 1.6)


def _stains(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "y x"]:
    """Smooth noise of three scales, 128 in the middle."""
    total = np.full((size, size), 128.0, np.float32)
    for samples, strength in ((size // 60, 26.0), (size // 12, 26.0), (size // 3, 26.0)):
        coarse = rng.standard_normal((samples + 2, samples + 2), np.float32) * strength
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(total, 0, 255).astype(np.uint8)


def _grain(rng: np.random.Generator) -> Int16[np.ndarray, "y x"]:
    """Fine noise round 0."""
    noise = rng.normal(0.0, 34.0, (GRAIN_CELLS, GRAIN_CELLS)).astype(np.float32)
    mixed = noise + 1.6 * cv2.blur(noise, (3, 3), borderType=cv2.BORDER_REFLECT)
    return np.clip(mixed, -127, 127).astype(np.int16)


def _tiled(
    grain: Int16[np.ndarray, "g g"], rng: np.random.Generator, shape: tuple[int, ...]
) -> Int16[np.ndarray, "y x"]:
    """A band of grain from a random place of the square."""
    row = int(rng.integers(GRAIN_CELLS - BAND_ROWS))
    rows = np.roll(grain[row : row + shape[0]], int(rng.integers(GRAIN_CELLS)), axis=1)
    return np.tile(rows, (1, shape[1] // GRAIN_CELLS + 1))[:, : shape[1]]


def _enlarged(
    small: UInt8[np.ndarray, "h w"], factor: int, band: slice, columns: int
) -> Int16[np.ndarray, "y x"]:
    """Rows of a raster enlarged by linear interpolation; cell centres meet."""
    offset = 0.5 / factor - 0.5
    A = np.array([[1 / factor, 0.0, offset], [0.0, 1 / factor, band.start / factor + offset]])
    size = (columns, band.stop - band.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    enlarged = cv2.warpAffine(small, A, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return enlarged.astype(np.int16)
