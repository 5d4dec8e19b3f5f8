"""Draws polygons and lines into rasters whose row is y and whose column is x, both growing."""

from collections.abc import Iterable

import cv2
import numpy as np
import shapely
from jaxtyping import Float64, Int32, UInt8
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

_SHIFT = 4
"""Bits below the pixel in OpenCV's fixed point."""


def fill(
    raster: UInt8[np.ndarray, "y x"], areas: Iterable[BaseGeometry], value: int, cell: float
) -> None:
    """Set the cells of areas; holes stay."""
    for area in areas:
        for part in shapely.get_parts(area):
            if isinstance(part, Polygon) and not part.is_empty:
                rings = [
                    _pixels(np.array(r.coords), cell) for r in [part.exterior, *part.interiors]
                ]
                cv2.fillPoly(raster, rings, (value,), cv2.LINE_8, _SHIFT)


def draw(
    raster: UInt8[np.ndarray, "y x"],
    lines: Iterable[Float64[np.ndarray, "_ 2"]],
    value: int,
    cell: float,
    width: float,
) -> None:
    """Set the cells along lines, `width` wide [m], at least one cell."""
    pixels = [_pixels(line, cell) for line in lines]
    cv2.polylines(raster, pixels, False, (value,), max(round(width / cell), 1), cv2.LINE_8, _SHIFT)


def _pixels(points: Float64[np.ndarray, "n 2"], cell: float) -> Int32[np.ndarray, "n 2"]:
    """OpenCV's coordinates: integers are the centres of pixels."""
    return np.rint((points / cell - 0.5) * (1 << _SHIFT)).astype(np.int32)
