"""Patterns on the faces of boxes, in metres along the face, with soft edges."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from perception.synthetic.noise_tiles import TILE_SIZE, noise_tiles
from perception.synthetic.primitives import Pattern

_RIB_SHARE = 0.14
"""Width of a rib's line in periods."""
_WINDOW_HALF = (0.29, 0.31)
"""Half a window's width and height in periods. Source: ours, as the rest of this file."""
_GRAIN_PER_METER = 14.0


@dataclass(frozen=True, kw_only=True)
class FacePixels:
    """Where pixels lie on their faces."""

    along: Float32[np.ndarray, " n"]
    """Along the face from its middle [m]."""
    up: Float32[np.ndarray, " n"]
    """Up the face from its middle [m]."""
    is_side: Bool[np.ndarray, " n"]
    """Not on the box's upper or lower face."""
    scale: Float32[np.ndarray, " n"]
    """`pattern_scale` [m]."""
    footprint: Float32[np.ndarray, " n"]
    """What a pixel covers of a face seen straight on [m], > 0."""
    salt: Int64[np.ndarray, " n"]
    """A number of each box, so that two of a kind differ."""

    def part(self, rows: slice) -> "FacePixels":
        """Some of the pixels."""
        return FacePixels(
            along=self.along[rows],
            up=self.up[rows],
            is_side=self.is_side[rows],
            scale=self.scale[rows],
            footprint=self.footprint[rows],
            salt=self.salt[rows],
        )


def second_color_share(pattern: Pattern, face: FacePixels) -> Float32[np.ndarray, " n"]:
    """How much of the second colour each pixel has, 0..1."""
    sharpness = face.scale / face.footprint
    if pattern == Pattern.MOTTLED:
        return _tile_value(noise_tiles().grain, face, 3.0 / face.scale) / np.float32(255)
    if pattern == Pattern.WINDOWS:
        across, up = (_from_nearest(value / face.scale)[0] for value in (face.along, face.up))
        inside_x = (np.float32(_WINDOW_HALF[0]) - np.abs(across)) * sharpness
        inside_y = (np.float32(_WINDOW_HALF[1]) - np.abs(up)) * sharpness
        return _soft_step(np.minimum(inside_x, inside_y)) * face.is_side
    if pattern == Pattern.DIAGONAL:
        return _stripes((face.along + face.up) / (2 * face.scale), 0.25, 1.4 * sharpness)
    if pattern == Pattern.BANDS:
        return _stripes(face.up / (2 * face.scale), 0.25, 2 * sharpness)
    if pattern == Pattern.RIBS:
        return _stripes(face.along / face.scale, _RIB_SHARE / 2, sharpness)
    return np.zeros_like(face.along)


def window_lottery(face: FacePixels) -> UInt8[np.ndarray, " n"]:
    """A random number of each window, evenly spread over 0..255."""
    column = _from_nearest(face.along / face.scale)[1]
    row = _from_nearest(face.up / face.scale)[1]
    mixed = (column.astype(np.int32) * 7919 + row.astype(np.int32) * 104729) ^ (
        face.salt.astype(np.int32) * 31
    )
    mixed = (mixed ^ (mixed >> 7)) * 40503
    return ((mixed >> 9) & 255).astype(np.uint8)


def surface_grain(face: FacePixels) -> Float32[np.ndarray, " n"]:
    """Fine unevenness that is fixed to the box, mean 0, standard deviation 1, fading far away."""
    value = _tile_value(noise_tiles().grain, face, np.float32(_GRAIN_PER_METER))
    value -= 128
    value *= np.minimum(
        np.float32(0.5 / _GRAIN_PER_METER / 32) / face.footprint, np.float32(1 / 32)
    )
    return value


def _tile_value(
    tile: UInt8[np.ndarray, "tile tile"], face: FacePixels, cells_per_meter: np.ndarray | np.float32
) -> Float32[np.ndarray, " n"]:
    # Index of 64 bits: numpy would make it from a shorter one, at a cost.
    column = (face.along * cells_per_meter).astype(np.int64) + face.salt
    row = (face.up * cells_per_meter).astype(np.int64) + face.salt * 3
    column &= TILE_SIZE - 1
    row &= TILE_SIZE - 1
    row *= TILE_SIZE
    row += column
    return tile.ravel()[row].astype(np.float32)


def _from_nearest(
    value: Float32[np.ndarray, " n"],
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Offset from the nearest whole number, -0.5..0.5, and that number."""
    nearest = np.round(value)
    return value - nearest, nearest


def _stripes(
    phase: Float32[np.ndarray, " n"], half_width: float, sharpness: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    """Stripes round whole numbers of `phase`; `sharpness` is pixels per unit of it."""
    offset = np.abs(_from_nearest(phase)[0])
    return _soft_step((np.float32(half_width) - offset) * sharpness)


def _soft_step(inside_px: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """How much of a pixel lies inside an edge that is that far from its middle."""
    inside_px += np.float32(0.5)
    np.maximum(inside_px, 0, out=inside_px)
    return np.minimum(inside_px, 1, out=inside_px)
