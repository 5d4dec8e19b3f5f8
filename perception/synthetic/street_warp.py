"""From the plan, where streets are straight, to the global frame, where they bend.

All streets are drawn as straight lines along the axes of a plan; one smooth map then bends and
turns the whole plan. Curved roads come for free, and nothing in the global frame lies along an
axis, which the devkit's rasters would not survive.
"""

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float64
from shapely.geometry import Polygon

STEP = 2.0
"""Longest piece that is bent as a straight line [m]: 4 mm off at 120 m radius. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Shifts along each axis by a sine of the other, then turns and moves to the map's middle."""

    amplitude: tuple[float, float]
    """Largest shift in x and in y [m]."""
    wavelength: tuple[float, float]
    """Of the shift in x along y, and in y along x [m]."""
    phase: tuple[float, float]
    """[rad]."""
    rotation: float
    """Heading of the plan's x axis [rad]."""
    center: float
    """Where the plan's origin goes, in both coordinates [m]."""

    def points(self, points_plan: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Take points from the plan to the global frame."""
        x, y = points_plan.T
        x = x + self.amplitude[0] * np.sin(2 * np.pi * y / self.wavelength[0] + self.phase[0])
        y = y + self.amplitude[1] * np.sin(2 * np.pi * x / self.wavelength[1] + self.phase[1])
        c, s = np.cos(self.rotation), np.sin(self.rotation)
        return np.stack([c * x - s * y, s * x + c * y], axis=-1) + self.center

    def line(self, line_plan: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
        """Bend a line, with enough points in between."""
        return self.points(densify(line_plan))

    def polygon(self, polygon_plan: Polygon) -> Polygon:
        """Bend a polygon, holes included, with enough points in between."""
        shell = self.line(shapely.get_coordinates(polygon_plan.exterior))
        holes = [self.line(shapely.get_coordinates(ring)) for ring in polygon_plan.interiors]
        return Polygon(shell, holes)


def densify(line: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
    """Divide pieces longer than `STEP` into equal parts; the given points stay."""
    return shapely.get_coordinates(shapely.segmentize(shapely.linestrings(line), STEP))
