"""Tiles of noise that pictures are roughened with: the same in every process, made once."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from perception.synthetic.random_streams import stream

TILE_SIZE = 512
"""Edge of a tile, a power of two; tiles repeat without a seam."""
_SENSOR_SHAPE = (456, 1024)


@dataclass(frozen=True, kw_only=True)
class NoiseTiles:
    """Read only."""

    grain: UInt8[np.ndarray, "tile tile"]
    """Fine noise of all sizes up to 8 cells, mean 128, standard deviation 32."""
    clouds: UInt8[np.ndarray, "tile tile"]
    """Soft noise of large shapes, evenly spread over 0..255."""
    sensor: Float32[np.ndarray, "h w 3"]
    """Noise of a camera: standard deviation 1, mostly the same in the three colours."""


@cache
def noise_tiles() -> NoiseTiles:
    """The tiles; they depend on nothing."""
    rng = stream(0, "noise tiles")
    fine = np.sum(
        [_smooth_noise(rng, TILE_SIZE // cells) * cells**0.5 for cells in (1, 2, 4, 8)], axis=0
    )
    soft = np.sum(
        [_smooth_noise(rng, 512 // cells) * cells for cells in (8, 16, 32, 64, 128)], axis=0
    )
    brightness = rng.standard_normal((*_SENSOR_SHAPE, 1), dtype=np.float32)
    color = rng.standard_normal((*_SENSOR_SHAPE, 3), dtype=np.float32)
    sensor = 0.85 * brightness + (1 - 0.85**2) ** 0.5 * color
    tiles = NoiseTiles(
        grain=np.clip(128 + 32 * (fine - fine.mean()) / fine.std(), 0, 255).astype(np.uint8),
        clouds=(soft.ravel().argsort().argsort().reshape(soft.shape) * 256 // soft.size).astype(
            np.uint8
        ),
        sensor=(sensor / sensor.std(axis=(0, 1))).astype(np.float32),
    )
    for tile in (tiles.grain, tiles.clouds, tiles.sensor):
        tile.setflags(write=False)
    return tiles


def _smooth_noise(rng: np.random.Generator, knots: int) -> Float32[np.ndarray, "tile tile"]:
    """Noise of standard deviation about 1 with `knots` values along the tile's edge."""
    values = rng.standard_normal((knots, knots), dtype=np.float32)
    if knots == TILE_SIZE:
        return values
    margin = 2
    wrapped = np.pad(values, margin, mode="wrap")
    scale = TILE_SIZE // knots
    enlarged = cv2.resize(wrapped, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    inner = slice(margin * scale, margin * scale + TILE_SIZE)
    return enlarged[inner, inner]
